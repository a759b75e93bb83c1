"""One contract for all methods: prescribed spectra, truth of every claim, state, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenexp.eigensolvers import METHODS, make_solver, multiply, solve
from eigenexp.errors import CheckpointError, InputError, ProductError
from eigenexp.operators import DenseOperator
from eigenexp.spectrum import StopReason
from tests.eigensolvers.matrices import assert_truthful, jacobian, run, spectra, true_eigenvalues

ALL = sorted(METHODS)
SPECTRA = spectra()
FINISHED = (StopReason.CONVERGED, StopReason.UNVERIFIED)


def ends(method):
    return ("top",) if method == "randomized_svd" else ("top", "bottom", "both")


def make(method, operator, which=None, **options):
    which = which or ("top" if method == "randomized_svd" else "both")
    return make_solver(operator, method, which=which, **options)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ALL)
def test_prescribed_spectra(method, name, dtype, k):
    J = jacobian(SPECTRA[name], dtype=dtype)
    tol = 1e-4
    for which in ends(method):
        operator = DenseOperator.from_jacobian(J)
        spectrum = solve(operator, method, k=k, which=which, tol=tol, max_products=6000)
        assert_truthful(spectrum, J)
        assert spectrum.num_products == operator.num_products or method == "exact"
        assert spectrum.stop_reason in FINISHED, spectrum
        assert (spectrum.relative_residuals <= tol).all()
        # Not only claimed: right, in every case.
        truth = true_eigenvalues(J)
        error = (spectrum.eigenvalues - truth[spectrum.eigenindex]).abs().max()
        assert error <= 2 * tol * truth[0]


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_smallest_sizes_and_all_pairs(method, n):
    J = jacobian(torch.linspace(1, 0.25, n, dtype=torch.float64))
    for which in ends(method):
        spectrum = solve(DenseOperator.from_jacobian(J), method, k=n, which=which, tol=1e-8)
        assert spectrum.eigenindex.tolist() == list(range(n))
        assert_truthful(spectrum, J)
        assert bool(spectrum.converged.all())


@pytest.mark.parametrize("method", [m for m in ALL if m != "power"])
def test_all_pairs(method):
    J = jacobian(SPECTRA["gap"])
    n = J.shape[1]
    which = "top" if method == "randomized_svd" else "both"
    spectrum = solve(DenseOperator.from_jacobian(J), method, k=n, which=which, tol=1e-8)
    assert bool(spectrum.converged.all())
    torch.testing.assert_close(spectrum.eigenvalues, true_eigenvalues(J), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ALL)
def test_without_responses(method):
    if method == "exact":
        pytest.skip("asks for J itself")
    J = jacobian(SPECTRA["gap"])
    operator = DenseOperator(J.T @ J)
    solver = make(method, operator, k=2, tol=1e-6)
    spectrum = run(solver, operator, responses=False)
    assert spectrum.stop_reason in FINISHED
    assert_truthful(spectrum, J)


@pytest.mark.parametrize("method", ALL)
def test_valid_before_and_while_solving(method):
    J = jacobian(SPECTRA["gap"])
    operator = DenseOperator.from_jacobian(J)
    solver = make(method, operator, k=2, tol=1e-6)
    before = solver.progress()
    assert before.worst == float("inf")
    assert len(solver.result()) == 0
    assert solver.stop_reason is StopReason.RUNNING
    told = 0
    while not solver.done:
        products, responses = multiply(operator, solver.request, solver.ask())
        solver.tell(products, responses)
        told += products.shape[1]
        assert solver.num_products == told
        progress, spectrum = solver.progress(), solver.result()
        assert progress.num_products == spectrum.num_products == told
        if not solver.done:
            assert spectrum.stop_reason is StopReason.RUNNING
        assert_truthful(spectrum, J)
    assert solver.progress().worst <= 1e-6
    with pytest.raises(RuntimeError, match="done"):
        solver.ask()


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("budget", [1, 2, 7, 20])
def test_budget_is_honest(method, budget):
    if method == "exact":
        pytest.skip("needs all columns; see test_exact")
    J = jacobian(SPECTRA["one_ulp"])
    operator = DenseOperator.from_jacobian(J)
    spectrum = solve(
        operator, method, k=2, which="top", tol=1e-13, max_products=budget, callback=None
    )
    assert operator.num_products == spectrum.num_products == budget
    assert spectrum.stop_reason is StopReason.MAX_PRODUCTS
    assert not bool(spectrum.converged.any())
    assert_truthful(spectrum, J)


@pytest.mark.parametrize("method", ALL)
def test_resume_is_bit_identical_from_every_state(method):
    J = jacobian(SPECTRA["repeated"])
    operator = DenseOperator.from_jacobian(J)
    options = {"k": 3, "tol": 1e-5, "seed": 3}
    whole = make(method, operator, **options)
    states = [whole.state_dict()]
    while not whole.done:
        whole.tell(*multiply(operator, whole.request, whole.ask()))
        states.append(whole.state_dict())
    expected = whole.result()

    @settings(max_examples=8, deadline=None)
    @given(split=st.integers(0, len(states) - 1), asked=st.booleans())
    def check(split, asked):
        solver = make(method, operator, **options)
        solver.load_state_dict(states[split])
        if asked and not solver.done:
            solver.ask()
            again = make(method, operator, **options)
            again.load_state_dict(solver.state_dict())
            solver = again
        result = run(solver, operator)
        assert torch.equal(result.eigenvalues, expected.eigenvalues)
        assert torch.equal(result.eigenvectors, expected.eigenvectors)
        assert torch.equal(result.residuals, expected.residuals)
        assert result.status == expected.status
        assert result.num_products == expected.num_products

    check()


@pytest.mark.parametrize("method", ALL)
def test_state_survives_weights_only_loading(method, tmp_path):
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    solver = make(method, operator, k=2)
    for _ in range(3):
        if not solver.done:
            solver.tell(*multiply(operator, solver.request, solver.ask()))
    torch.save(solver.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again = make(method, operator, k=2)
    again.load_state_dict(loaded)
    assert torch.equal(run(again, operator).eigenvectors, run(solver, operator).eigenvectors)


@pytest.mark.parametrize("method", ALL)
def test_another_tolerance_goes_on(method):
    J = jacobian(SPECTRA["gap"])
    operator = DenseOperator.from_jacobian(J)
    rough = make(method, operator, k=2, tol=1e-2)
    run(rough, operator)
    used = rough.num_products
    fine = make(method, operator, k=2, tol=1e-9)
    fine.load_state_dict(rough.state_dict())
    spectrum = run(fine, operator)
    assert spectrum.stop_reason in FINISHED
    assert (spectrum.relative_residuals <= 1e-9).all()
    assert spectrum.num_products >= used
    assert_truthful(spectrum, J)
    loose = make(method, operator, k=2, tol=1e-2)
    loose.load_state_dict(fine.state_dict())
    assert loose.done
    assert bool(loose.result().converged.all())


@pytest.mark.parametrize("method", ALL)
def test_a_larger_budget_goes_on(method):
    if method == "exact":
        pytest.skip("needs all columns; see test_exact")
    J = jacobian(SPECTRA["gap"])
    operator = DenseOperator.from_jacobian(J)
    short = make(method, operator, k=1, tol=1e-6, max_products=5)
    run(short, operator)
    assert short.stop_reason is StopReason.MAX_PRODUCTS
    longer = make(method, operator, k=1, tol=1e-6)
    longer.load_state_dict(short.state_dict())
    assert not longer.done
    whole = make(method, operator, k=1, tol=1e-6)
    assert torch.equal(run(longer, operator).eigenvectors, run(whole, operator).eigenvectors)


@pytest.mark.parametrize("method", ALL)
def test_foreign_states_are_refused(method):
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    state = make(method, operator, k=2).state_dict()
    with pytest.raises(CheckpointError, match="k = 1"):
        make(method, operator, k=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="version"):
        make(method, operator, k=2).load_state_dict({**state, "version": 99})
    with pytest.raises(CheckpointError, match="expected"):
        make(method, operator, k=2).load_state_dict({**state, "name": "other"})


@pytest.mark.parametrize("method", ALL)
def test_tell_refuses_and_keeps_its_state(method):
    J = jacobian(SPECTRA["gap"])
    operator = DenseOperator.from_jacobian(J)
    solver = make(method, operator, k=2, tol=1e-6)
    expected = run(make(method, operator, k=2, tol=1e-6), operator)
    with pytest.raises(ProductError, match="nobody asked"):
        solver.tell(torch.zeros(48, 1, dtype=torch.float64))
    turns = 0
    while not solver.done:
        block = solver.ask()
        products, responses = multiply(operator, solver.request, block)
        copies = products.clone(), None if responses is None else responses.clone()
        bad = products.clone()
        bad[3, 0] = float("nan")
        with pytest.raises(ProductError, match="finite"):
            solver.tell(bad, responses)
        if solver.request == "fisher":
            with pytest.raises(ProductError, match="shape"):
                solver.tell(products[:-1], responses)
        with pytest.raises(ProductError, match="shape"):
            solver.tell(torch.cat([products, products], dim=1), responses)
        with pytest.raises(ProductError, match=r"torch\.float64"):
            solver.tell(products.float(), responses)
        if responses is not None:
            with pytest.raises(ProductError, match="responses"):
                solver.tell(products, responses[:, :0])
        solver.tell(products, responses)
        assert torch.equal(products, copies[0])
        assert responses is None or torch.equal(responses, copies[1])
        turns += 1
    assert turns > 0
    assert torch.equal(solver.result().eigenvectors, expected.eigenvectors)


@pytest.mark.parametrize("method", ALL)
def test_asymmetric_and_indefinite_products_are_refused(method):
    if method == "exact":
        pytest.skip("asks for J itself, which may be anything")
    n = 48
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, n, generator=generator, dtype=torch.float64)
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    for matrix, words in ((A @ A.T + 3 * (A - A.T), "symmetric"), (A + A.T, "semi-definite")):
        solver = make(method, operator, k=2)
        with pytest.raises(ProductError, match=words):  # noqa: PT012 - some turn must refuse
            while not solver.done:
                state = solver.state_dict()
                solver.tell(matrix @ solver.ask())
        assert _equal(solver.state_dict()["state"], state["state"]) or state["pending"] is None


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


@pytest.mark.parametrize("method", ALL)
def test_random_state_is_left_alone_and_seeds_matter(method):
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    before = torch.get_rng_state()
    first = run(make(method, operator, k=2, seed=1), operator)
    again = run(make(method, operator, k=2, seed=1), operator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.eigenvectors, again.eigenvectors)


@pytest.mark.parametrize("method", ALL)
def test_blocks_are_copies_and_never_wider_than_said(method):
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    solver = make(method, operator, k=2)
    expected = run(make(method, operator, k=2), operator)
    while not solver.done:
        block = solver.ask()
        assert 1 <= block.shape[1] <= solver.block_size
        products, responses = multiply(operator, solver.request, block)
        block.fill_(float("nan"))
        assert not bool(torch.isnan(solver.ask()).any())
        solver.tell(products, responses)
    assert torch.equal(solver.result().eigenvectors, expected.eigenvectors)


@pytest.mark.parametrize("method", ALL)
def test_unknown_options_are_named(method):
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    with pytest.raises(InputError, match="basis_sise"):
        make(method, operator, basis_sise=3)
    with pytest.raises(InputError, match="k:"):
        make(method, operator, k=49)
    with pytest.raises(InputError, match="tol"):
        make(method, operator, tol=0.0)


def test_unknown_method_is_named():
    operator = DenseOperator.from_jacobian(jacobian(SPECTRA["gap"]))
    with pytest.raises(InputError, match="lanczos"):
        make_solver(operator, "lanczoz")
