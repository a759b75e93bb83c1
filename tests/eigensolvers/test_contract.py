"""One contract, every method: prescribed spectra, honesty, state that resumes bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eigenexp.eigensolvers import METHODS, Eigensolver, make_solver, multiply, solve
from eigenexp.errors import CheckpointError, InputError, ProductError
from eigenexp.operators import DenseOperator
from eigenexp.spectrum import PairStatus, StopReason

WHOLE = [name for name in ("power", "lanczos", "auto", "davidson", "exact") if name in METHODS]
# The top alone: what is said of both ends leaves it out.
EVERY = [*WHOLE, "randomized_svd"]
ITERATIVE = [name for name in EVERY if name != "exact"]


def prescribed(values: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> DenseOperator:
    """F = Q diag(values) Qᵀ with a random orthogonal Q."""
    n = len(values)
    draw = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(draw).Q
    matrix = (q * values) @ q.T
    return DenseOperator(((matrix + matrix.T) / 2).to(dtype))


def falling(values: list[float]) -> Tensor:
    return torch.tensor(sorted(values, reverse=True), dtype=torch.float64)


SPECTRA = {
    "gap": falling([100.0, 90.0, *torch.linspace(5, 20, 46).tolist(), 0.5, 0.1]),
    "repeated": falling([9.0] * 4 + torch.linspace(3, 6, 40).tolist() + [1.0] * 4),
    "cluster": falling([8.0, 8.0 + 1e-9, 7.99, *torch.linspace(2, 4, 40).tolist(), 1e-9, 2e-9]),
    "one ulp apart": falling([4.0, 4.0 + 2**-50, *torch.linspace(1, 2, 30).tolist()]),
    "rank deficient": falling([*torch.linspace(1, 2, 25).tolist(), *([0.0] * 15)]),
    "identity": torch.ones(20, dtype=torch.float64),
    "zero": torch.zeros(12, dtype=torch.float64),
    "single": torch.tensor([3.0], dtype=torch.float64),
    "pair": torch.tensor([3.0, 1.0], dtype=torch.float64),
}


@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_wrong_pair_is_called_converged(method: str, name: str, seed: int) -> None:
    values, tol = SPECTRA[name], 1e-3
    k = min(2, len(values))
    operator = prescribed(values, seed)
    found = solve(operator, method, k=k, which="both", tol=tol, seed=seed, max_products=30_000)
    true, limit = values[found.eigenindex], 2 * tol * float(values[0]) + 1e-12
    # Without a proof that none was missed the pairs are right all the same, and say "unverified".
    assert found.stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)
    assert PairStatus.UNCONVERGED not in found.status
    assert float((found.eigenvalues.double() - true).abs().max()) <= limit
    vectors = found.eigenvectors.double()
    residuals = vectors @ operator.to_dense().double() - found.eigenvalues[:, None] * vectors
    assert float(residuals.norm(dim=1).max()) <= limit
    if method == "power" and name in ("identity", "zero"):
        vectors = vectors[:k]  # its two blocks are not kept apart where all eigenvalues are one
    gram = vectors @ vectors.T
    torch.testing.assert_close(gram, torch.eye(len(gram)).double(), atol=3e-2, rtol=0)


@pytest.mark.parametrize("method", EVERY)
def test_progress_is_that_of_the_state_that_was_loaded(method: str) -> None:
    operator, chosen = prescribed(SPECTRA["gap"]), {"k": 2, "which": "top", "tol": 1e-8}
    ahead = make_solver(operator, method, **chosen)
    for _ in range(6):
        ahead.tell(*multiply(operator, ahead.request, ahead.ask()))
        if ahead.done:
            break
    behind = make_solver(operator, method, **chosen)
    assert behind.progress().num_products == 0
    behind.load_state_dict(ahead.state_dict())
    there, here = ahead.progress(), behind.progress()
    assert here.num_products == there.num_products > 0
    assert torch.equal(here.eigenvalues, there.eigenvalues)
    assert torch.equal(here.residuals, there.residuals)


@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.parametrize("which", ["top", "bottom", "both"])
def test_ends_are_indexed_and_decreasing(method: str, which: str) -> None:
    found = solve(prescribed(SPECTRA["gap"]), method, k=3, which=which, tol=1e-4)
    n = len(SPECTRA["gap"])
    expected = {"top": [0, 1, 2], "bottom": [n - 3, n - 2, n - 1]}
    wanted = expected.get(which, expected["top"] + expected["bottom"])
    assert found.eigenindex.tolist() == wanted
    assert bool((found.eigenvalues.diff() <= 1e-9).all())


@pytest.mark.parametrize("method", WHOLE)
def test_every_pair_of_a_small_problem(method: str) -> None:
    values = falling([5.0, 4.0, 3.0, 2.0, 1.0])
    found = solve(prescribed(values), method, k=5, which="both", tol=1e-6)
    torch.testing.assert_close(found.eigenvalues.double(), values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("seed", range(3))
def test_error_bounds_hold(method: str, seed: int) -> None:
    values = SPECTRA["gap"]
    found = solve(prescribed(values, seed), method, k=2, tol=1e-2, seed=seed)
    for value, bound in zip(found.eigenvalues, found.error_bounds, strict=True):
        nearest = float((values - float(value)).abs().min())
        assert nearest <= float(bound) + 1e-10


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("power", [-50, -30, 30, 60])
def test_the_size_of_the_response_changes_no_bit(method: str, power: int) -> None:
    """F · 4^p has the eigenpairs of F, though squares of its products leave float32's range."""
    which = "top" if method == "randomized_svd" else "both"
    ways = {"k": 2, "which": which, "tol": 1e-3}
    here = prescribed(SPECTRA["gap"], dtype=torch.float32)
    there = DenseOperator(here.to_dense() * 4.0**power)
    expected, found = solve(here, method, **ways), solve(there, method, **ways)
    assert expected.stop_reason is found.stop_reason
    assert expected.status == found.status
    assert expected.num_products == found.num_products
    assert torch.equal(expected.eigenvectors, found.eigenvectors)
    for name in ("eigenvalues", "residuals", "error_bounds", "scale"):
        before, after = getattr(expected, name), getattr(found, name)
        torch.testing.assert_close(after, before * 4.0**power, rtol=1e-15, atol=0)


@pytest.mark.parametrize("method", EVERY)
def test_the_size_of_the_response_is_kept_in_the_state(method: str) -> None:
    which = "top" if method == "randomized_svd" else "both"
    ways = {"k": 1, "which": which, "tol": 1e-3}
    operator = DenseOperator(prescribed(SPECTRA["gap"], dtype=torch.float32).to_dense() * 4.0**-40)
    solver = make_solver(operator, method, **ways)
    for _ in range(3):
        solver.tell(*multiply(operator, solver.request, solver.ask()))
    other = make_solver(operator, method, **ways)
    other.load_state_dict(solver.state_dict())
    assert torch.equal(other.progress().eigenvalues, solver.progress().eigenvalues)
    while not other.done:
        other.tell(*multiply(operator, other.request, other.ask()))
    assert torch.equal(other.result().eigenvalues, solve(operator, method, **ways).eigenvalues)


@pytest.mark.parametrize("method", EVERY)
def test_products_too_small_for_their_dtype_are_refused(method: str) -> None:
    which = "top" if method == "randomized_svd" else "both"
    operator = DenseOperator(torch.eye(30) * 1e-34)
    with pytest.raises(ProductError, match="scale the model's response up, or solve in float64"):
        solve(operator, method, which=which)
    solver = make_solver(operator, method, which=which)
    block = solver.ask()
    with pytest.raises(ProductError, match="0 for a response that is not"):
        solver.tell(torch.zeros_like(block), torch.ones(5, block.shape[1]))
    assert torch.equal(solver.ask(), block)


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_spent_budget_is_not_called_converged(method: str) -> None:
    values = falling(torch.logspace(-6, 0, 120, dtype=torch.float64).tolist())
    found = solve(prescribed(values), method, k=2, tol=1e-10, max_products=30)
    assert found.num_products <= 30 + 2 * 8
    assert found.stop_reason is StopReason.MAX_PRODUCTS
    assert PairStatus.CONVERGED not in found.status
    assert bool((found.residuals >= 0).all())


@pytest.mark.parametrize("method", ITERATIVE)
def test_float32_reaches_its_tolerance_or_names_the_floor(method: str) -> None:
    values = falling(torch.linspace(1, 2, 60, dtype=torch.float64).tolist())
    operator = prescribed(values, dtype=torch.float32)
    easy = solve(operator, method, k=1, tol=1e-4, which="top", max_products=20_000)
    assert easy.eigenvectors.dtype == torch.float32
    assert easy.stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)


@pytest.mark.parametrize("which", ["top", "both"])
@pytest.mark.parametrize("spectrum", ["gap", "repeated", "cluster"])
def test_a_tolerance_below_rounding_ends_at_the_floor_and_says_so(
    which: str, spectrum: str
) -> None:
    operator = prescribed(SPECTRA[spectrum], dtype=torch.float32)
    found = solve(operator, "lanczos", k=1, tol=1e-12, which=which, max_products=20_000)
    assert found.stop_reason is StopReason.FLOOR
    assert found.num_products < 1000
    assert PairStatus.CONVERGED not in found.status


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("seed", range(3))
def test_every_copy_of_a_repeated_eigenvalue_is_found(method: str, seed: int) -> None:
    values = falling([9.0] * 4 + torch.linspace(3, 6, 80).tolist() + [1.0] * 4)
    found = solve(prescribed(values, seed), method, k=4, tol=1e-4, seed=seed, max_products=30_000)
    torch.testing.assert_close(
        found.eigenvalues.double(), values[found.eigenindex], atol=2e-4 * 9, rtol=0
    )


def drive(solver: Eigensolver, operator: DenseOperator, turns: int) -> None:
    while not solver.done and turns > 0:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
        turns -= 1


@pytest.mark.parametrize("method", EVERY)
@settings(max_examples=12, deadline=None)
@given(cut=st.integers(0, 60), between=st.booleans())
def test_any_cut_of_the_work_is_bit_identical(method: str, cut: int, between: bool) -> None:
    operator = prescribed(SPECTRA["repeated"])
    options: dict[str, Any] = {"k": 2, "tol": 1e-3, "seed": 4}
    whole = make_solver(operator, method, **options)
    drive(whole, operator, 10_000)
    first = make_solver(operator, method, **options)
    drive(first, operator, cut)
    if between and not first.done:
        first.ask()
    second = make_solver(operator, method, **options)
    second.load_state_dict(first.state_dict())
    drive(second, operator, 10_000)
    a, b = whole.result(), second.result()
    assert torch.equal(a.eigenvalues, b.eigenvalues)
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert (a.num_products, a.stop_reason) == (b.num_products, b.stop_reason)


@pytest.mark.parametrize("method", ITERATIVE)
def test_state_goes_through_a_file_that_executes_nothing(method: str, tmp_path: Any) -> None:
    operator = prescribed(SPECTRA["gap"])
    solver = make_solver(operator, method, k=2)
    drive(solver, operator, 5)
    torch.save(solver.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    make_solver(operator, method, k=2).load_state_dict(loaded)


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_finished_solver_goes_on_to_a_smaller_tolerance(method: str) -> None:
    operator = prescribed(SPECTRA["gap"])
    rough = make_solver(operator, method, k=1, tol=1e-2)
    drive(rough, operator, 10_000)
    fine = make_solver(operator, method, k=1, tol=1e-6)
    fine.load_state_dict(rough.state_dict())
    drive(fine, operator, 30_000)
    assert fine.stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)
    assert float(fine.result().relative_residuals.max()) <= 1e-6


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_state_of_another_problem_is_refused(method: str) -> None:
    operator = prescribed(SPECTRA["gap"])
    state = make_solver(operator, method, k=2).state_dict()
    with pytest.raises(CheckpointError, match="expected k = 1"):
        make_solver(operator, method, k=1).load_state_dict(state)


@pytest.mark.parametrize("method", EVERY)
def test_wrong_products_are_refused_and_change_nothing(method: str) -> None:
    operator = prescribed(SPECTRA["gap"])
    solver = make_solver(operator, method, k=1)
    with pytest.raises(ProductError, match="expected ask"):
        solver.tell(torch.zeros(50, 1, dtype=torch.float64))
    drive(solver, operator, 3)
    if solver.done:
        return
    before = solver.num_products
    block = solver.ask()
    products, _ = multiply(operator, solver.request, block)
    for wrong in (
        products[:-1] if solver.request != "adjoint" else products[:, :0],
        products.float(),
        products * torch.nan,
        torch.cat([products, products], dim=1),
    ):
        with pytest.raises(ProductError) as caught:
            solver.tell(wrong)
        assert "\n" not in str(caught.value)
    assert solver.num_products == before
    assert torch.equal(solver.ask(), block)


@pytest.mark.parametrize("method", ["lanczos"])
def test_an_asymmetric_operator_is_found_out(method: str) -> None:
    draw = torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skew = draw @ draw.T + 3 * (draw - draw.T)
    solver = make_solver(prescribed(torch.ones(30).double()), method, k=1, tol=1e-9)
    solver.tell(skew @ solver.ask())

    def go_on() -> None:
        for _ in range(25):
            solver.tell(skew @ solver.ask())

    with pytest.raises(ProductError, match=r"symmetric|asymmetr"):
        go_on()


@pytest.mark.parametrize("method", EVERY)
def test_tell_changes_no_argument_and_no_global_random_state(method: str) -> None:
    operator = prescribed(SPECTRA["gap"])
    torch.manual_seed(7)
    state = torch.get_rng_state()
    solver = make_solver(operator, method, k=2)
    for _ in range(12):
        if solver.done:
            break
        products, responses = multiply(operator, solver.request, solver.ask())
        kept = products.clone()
        solver.tell(products, responses)
        assert torch.equal(products, kept)
    solver.result()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", EVERY)
def test_progress_and_result_are_there_at_any_time(method: str) -> None:
    operator = prescribed(SPECTRA["gap"])
    solver = make_solver(operator, method, k=2)
    for _ in range(15):
        progress, result = solver.progress(), solver.result()
        assert len(progress.eigenvalues) == len(progress.residuals) == len(progress.eigenindex)
        assert len(result) <= 4
        if not solver.done:
            solver.tell(*multiply(operator, solver.request, solver.ask()))


def test_unknown_methods_and_settings_name_what_exists() -> None:
    operator = prescribed(SPECTRA["gap"])
    with pytest.raises(InputError, match="lanczos"):
        make_solver(operator, "magic")
    with pytest.raises(InputError, match="basis_size"):
        make_solver(operator, "lanczos", basis=3)
    with pytest.raises(InputError, match="k: expected 1 to n = 50"):
        make_solver(operator, "lanczos", k=51)
    with pytest.raises(InputError, match="which"):
        make_solver(operator, "lanczos", which="sideways")


def test_finite_products_whose_sum_overflows_are_not_taken_for_nan() -> None:
    solver = METHODS["power"](1000, k=1, which="top", dtype=torch.float32)
    block = solver.ask()
    with pytest.raises(ProductError, match="finite"):
        solver.tell(torch.full_like(block, torch.inf))
    solver.tell(torch.full_like(block, 1e36))
    assert solver.num_products == block.shape[1]
