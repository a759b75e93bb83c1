"""``exact`` proves every pair; ``randomized_svd`` claims no more than it knows."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.callbacks import ResultFiles
from eigenexp.cli import main
from eigenexp.eigensolvers import Exact, RandomizedSVD, make_solver, multiply, solve
from eigenexp.errors import CheckpointError, InputError, ProductError
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.operators import DenseOperator, memory
from eigenexp.runs.folder import list_runs
from eigenexp.spectrum import PairStatus, StopReason
from tests.training import quiet_trainer as trainer


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular(values: Tensor, m: int, n: int) -> Tensor:
    """A Jacobian ``(m, n)`` with these singular values."""
    left, right = torch.linalg.qr(randn(m, m)).Q, torch.linalg.qr(randn(n, n, seed=1)).Q
    return (left[:, : len(values)] * values) @ right[:, : len(values)].T


def drive(solver: Any, operator: Any, turns: int = 10_000) -> None:
    while not solver.done and turns:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
        turns -= 1


# -- exact -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 20), (20, 20), (12, 20), (1, 20), (3, 1)])
def test_exact_gathers_the_shorter_side_and_finds_every_pair(shape: tuple[int, int]) -> None:
    jacobian = randn(*shape)
    m, n = shape
    operator = DenseOperator.from_jacobian(jacobian)
    found = solve(operator, "exact", k=n, tol=1e-12)
    values = torch.zeros(n, dtype=torch.float64)
    values[: min(m, n)] = torch.linalg.svdvals(jacobian).square()
    torch.testing.assert_close(found.eigenvalues, values, rtol=1e-12, atol=1e-13)
    assert found.stop_reason is StopReason.CONVERGED
    assert set(found.status) == {PairStatus.CONVERGED}
    assert found.eigenindex.tolist() == list(range(n))
    assert found.scale == pytest.approx(float(values[0]))
    assert found.null_space_dimension == max(0, n - m)
    assert found.num_products == 1 + min(m, n)
    assert found.num_verification_products == 1
    sides = (operator.jacobian.num_jvp, operator.jacobian.num_vjp)
    assert sides == ((n + 1, 1) if n <= m else (1, m + 1))
    gram = found.eigenvectors @ found.eigenvectors.T
    torch.testing.assert_close(gram, torch.eye(n).double(), atol=1e-12, rtol=0)
    if m < n:
        null = found.eigenvectors[m:]
        assert float((jacobian @ null.T).norm()) <= 1e-12 * float(values[0]) ** 0.5
        assert not found.eigenvalues[m:].any()


def test_exact_resolves_eigenvalues_that_squaring_would_lose() -> None:
    singular = torch.logspace(0, -12, 25, dtype=torch.float64)
    operator = DenseOperator.from_jacobian(with_singular(singular, 40, 25))
    found = solve(operator, "exact", k=3)
    error = (found.eigenvalues - singular.square()[found.eigenindex]).abs()
    assert bool((error <= found.error_bounds).all())
    assert float(error[-1]) <= 1e-3 * 1e-24  # λmin = 1e-24, λmax = 1


def test_exact_says_what_is_zero_only_up_to_rounding() -> None:
    singular = torch.cat([torch.linspace(2, 1, 7), torch.zeros(3)]).double()
    found = solve(DenseOperator.from_jacobian(with_singular(singular, 10, 15)), "exact", k=15)
    assert found.null_space_dimension == 5  # 15 - 10 is proven; three more are not
    assert any("numerical rank 7 of at most 10: 3 eigenvalues more" in n for n in found.notes)
    full = solve(DenseOperator.from_jacobian(randn(10, 15)), "exact")
    assert not any("numerical rank" in note for note in full.notes)


@pytest.mark.parametrize("side", ["columns", "rows", "fisher"])
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_any_side_and_chunk_give_the_same_pairs(side: str, chunk_size: int) -> None:
    jacobian = randn(17, 20)
    operator = DenseOperator.from_jacobian(jacobian)
    solver = make_solver(operator, "exact", k=2, side=side, chunk_size=chunk_size)
    sizes = []
    while not solver.done:
        block = solver.ask()
        sizes.append(block.shape[1])
        solver.tell(*multiply(operator, solver.request, block))
    length = 17 if side == "rows" else 20
    assert sizes[0] == 1
    assert sum(sizes) == length + 1
    assert max(sizes) == min(chunk_size, length) <= solver.block_size
    values = torch.cat([torch.linalg.svdvals(jacobian).square()[:2], torch.zeros(2).double()])
    torch.testing.assert_close(solver.result().eigenvalues, values, rtol=1e-10, atol=1e-12)


def test_exact_works_in_a_loop_that_tells_fisher_products_alone() -> None:
    jacobian = randn(30, 12)
    operator = DenseOperator.from_jacobian(jacobian)
    solver = Exact(12, k=6, tol=1e-10)
    while not solver.done:
        solver.tell(operator @ solver.ask())
    found = solver.result()
    torch.testing.assert_close(found.eigenvalues, torch.linalg.svdvals(jacobian).square())
    assert found.stop_reason is StopReason.CONVERGED
    assert bool((found.error_bounds >= 1e-16 * found.scale).all())
    solver = Exact(12, side="columns")
    with pytest.raises(InputError, match="side='fisher'"):
        solver.tell(operator @ solver.ask())


@pytest.mark.parametrize("shape", [(30, 20), (12, 20)])
def test_a_spent_budget_claims_nothing_and_goes_on_when_raised(shape: tuple[int, int]) -> None:
    operator = DenseOperator.from_jacobian(randn(*shape))
    whole = solve(operator, "exact", chunk_size=4)
    short = make_solver(operator, "exact", chunk_size=4, max_products=8)
    drive(short, operator)
    found = short.result()
    assert found.stop_reason is StopReason.MAX_PRODUCTS
    assert (len(found), found.num_products) == (0, 8)
    assert short.progress().worst == math.inf
    assert "7 of" in short.progress().phase
    longer = make_solver(operator, "exact", chunk_size=4)
    longer.load_state_dict(short.state_dict())
    drive(longer, operator)
    assert torch.equal(longer.result().eigenvectors, whole.eigenvectors)
    assert longer.result().num_products == whole.num_products


def test_the_state_is_what_was_gathered_and_no_more() -> None:
    operator = DenseOperator.from_jacobian(randn(30, 20))
    solver = make_solver(operator, "exact", chunk_size=4)
    drive(solver, operator, 3)
    state = solver.state_dict()["state"]
    assert state["gathered"].shape == (8, 30)
    with pytest.raises(CheckpointError, match="expected side 'rows', got one that gathered"):
        make_solver(operator, "exact", side="rows").load_state_dict(solver.state_dict())


def test_a_finished_solver_judges_a_new_tolerance_without_a_product() -> None:
    operator = DenseOperator.from_jacobian(randn(30, 20).float())
    rough = make_solver(operator, "exact", tol=1e-4)
    drive(rough, operator)
    assert rough.stop_reason is StopReason.CONVERGED
    fine = make_solver(operator, "exact", tol=1e-13)
    fine.load_state_dict(rough.state_dict())
    assert fine.stop_reason is StopReason.FLOOR
    assert PairStatus.CONVERGED not in fine.result().status
    assert fine.num_products == rough.num_products


@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_exact_hold_in_float32(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 3), nn.Softplus())
    model.requires_grad_(False)
    image = torch.rand(1, 1, 9, 9)
    found = solve(ee.FisherOperator(model, image), "exact", k=40, tol=1e-5)
    reference = ee.JacobianOperator(model.double(), image.double()).to_dense()
    true = torch.zeros(81, dtype=torch.float64)
    singular = torch.linalg.svdvals(reference)
    true[: len(singular)] = singular.square()
    error = (found.eigenvalues - true[found.eigenindex]).abs()
    assert bool((error <= found.error_bounds).all())
    # ... and are of use: a smaller one for a smaller eigenvalue.
    assert float(found.error_bounds[-1]) < 1e-2 * float(found.error_bounds[0]) < 1e-7 * found.scale


def test_products_that_do_not_fit_together_are_found_out() -> None:
    jacobian = randn(12, 20)
    right, wrong = (DenseOperator.from_jacobian(scale * jacobian) for scale in (1.0, 1.01))
    solver = make_solver(right, "exact")
    solver.tell(*right.apply(solver.ask()))

    def gather() -> None:
        while not solver.done:
            solver.tell(*multiply(wrong, solver.request, solver.ask()))

    with pytest.raises(ProductError, match=r"J v is 1\.0e-02 off"):
        gather()
    assert not solver.done
    skew = randn(12, 12)
    solver = Exact(12)
    solver.tell((skew + skew.T) @ solver.ask())

    def gather_skew() -> None:
        while not solver.done:
            solver.tell(skew @ solver.ask())

    with pytest.raises(ProductError, match="symmetric"):
        gather_skew()


def test_a_response_of_another_length_is_refused() -> None:
    operator = DenseOperator.from_jacobian(randn(30, 20))
    solver = make_solver(operator, "exact", chunk_size=4)
    drive(solver, operator, 1)
    solver.ask()
    with pytest.raises(ProductError, match=r"expected products of shape \(30, 4\), got \(29, 4\)"):
        solver.tell(torch.zeros(29, 4, dtype=torch.float64))
    assert solver.num_products == 1


def test_a_jacobian_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = DenseOperator.from_jacobian(randn(64, 16))
    monkeypatch.setattr(memory, "ALWAYS_FITS", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * 16 * 16 - 1)
    with pytest.raises(InputError, match=r"16 × 16 numbers.*use method='auto'"):
        make_solver(operator, "exact")
    # m is known after the first product only.
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * 64 * 16 - 1)
    solver = make_solver(operator, "exact")
    with pytest.raises(InputError, match="64 × 16 numbers") as caught:
        drive(solver, operator)
    assert "\n" not in str(caught.value)
    assert solver.num_products == 0
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * 64 * 16)
    drive(solver, operator)
    assert solver.stop_reason is StopReason.CONVERGED


@pytest.mark.parametrize(
    ("options", "words"), [({"side": "left"}, "side: expected"), ({"chunk_size": 0}, "chunk_size")]
)
def test_options_of_exact_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Exact(5, **options)


# -- randomized SVD --------------------------------------------------------------------------------


def diagonal(values: Tensor) -> DenseOperator:
    return DenseOperator.from_jacobian(torch.diag(values.sqrt()))


FAST = torch.logspace(0, -12, 60, dtype=torch.float64)
SLOW = torch.linspace(2, 1, 60, dtype=torch.float64)


def test_small_residuals_are_followed_by_the_proof() -> None:
    fast = solve(diagonal(FAST), "randomized_svd", k=3, tol=1e-2, oversampling=20)
    assert fast.stop_reason is StopReason.CONVERGED
    torch.testing.assert_close(fast.eigenvalues, FAST[:3], atol=2e-2, rtol=0)
    slow = solve(diagonal(SLOW), "randomized_svd", k=3, tol=1e-6)
    assert slow.stop_reason is StopReason.CONVERGED
    torch.testing.assert_close(slow.eigenvalues, SLOW[:3], atol=4e-6, rtol=0)
    assert float(slow.relative_residuals.max()) <= 1e-6


def test_a_pair_that_no_product_leads_to_is_found_by_the_witness() -> None:
    solver = RandomizedSVD(60, k=3, oversampling=20, tol=1e-2)
    state = solver.state_dict()
    blind = state["state"]["main"]["block"]
    blind[0] = 0  # exactly: no product ever leads to the largest eigenvalue
    blind.copy_(torch.linalg.qr(blind).Q)
    blind[0] = 0
    solver.load_state_dict(state)
    operator = diagonal(FAST)
    seen = []
    while not solver.done:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
        seen.append(float(solver.progress().eigenvalues[0]))
    found = solver.result()
    assert seen[0] < 0.7
    assert found.stop_reason is StopReason.CONVERGED
    torch.testing.assert_close(found.eigenvalues, FAST[:3], atol=2e-2, rtol=0)


@pytest.mark.parametrize("q", [0, 1, 40])
def test_any_number_of_power_iterations_is_stable_and_counted(q: int) -> None:
    operator = diagonal(1e200 * FAST)  # powers of F overflow at once
    found = solve(operator, "randomized_svd", k=20, oversampling=5, power_iterations=q)
    assert found.num_products == operator.num_products >= 25 * (q + 2) + 10
    assert found.num_verification_products >= 10
    assert bool(torch.isfinite(found.eigenvectors).all())
    gram = found.eigenvectors @ found.eigenvectors.T
    torch.testing.assert_close(gram, torch.eye(20).double(), atol=1e-12, rtol=0)
    if q:  # for q = 40 the plain power scheme loses all below eps^(1/(2q+1)) = 0.64 of the first
        torch.testing.assert_close(found.eigenvalues, 1e200 * FAST[:20], rtol=1e-5, atol=0)


def test_fixed_iterations_end_above_the_tolerance_and_say_so() -> None:
    found = solve(diagonal(SLOW), "randomized_svd", k=3, tol=1e-9, power_iterations=2)
    assert found.stop_reason is StopReason.MAX_PRODUCTS
    assert PairStatus.UNCONVERGED in found.status
    assert float(found.relative_residuals.max()) > 1e-9


def test_a_block_as_wide_as_the_space_is_proof() -> None:
    operator = diagonal(SLOW[:8])
    found = solve(operator, "randomized_svd", k=4, tol=1e-10)
    assert found.stop_reason is StopReason.CONVERGED
    assert operator.num_products == found.num_products == 8


def test_without_a_search_nothing_is_converged() -> None:
    found = solve(diagonal(FAST), "randomized_svd", k=3, tol=1e-2, miss_chance=None)
    assert found.stop_reason is StopReason.UNVERIFIED
    assert set(found.status) == {PairStatus.UNVERIFIED}
    assert found.miss_chance is None


def test_randomized_svd_in_float32_ends_at_the_floor() -> None:
    operator = DenseOperator.from_jacobian(with_singular(FAST.sqrt(), 60, 60).float())
    found = solve(operator, "randomized_svd", k=3, tol=1e-12)
    assert found.stop_reason is StopReason.FLOOR
    assert found.num_products < 30 * 13


def test_a_zero_matrix_has_zero_eigenvalues() -> None:
    found = solve(DenseOperator(torch.zeros(30, 30).double()), "randomized_svd", k=2)
    assert not found.eigenvalues.any()
    assert found.stop_reason is StopReason.CONVERGED


@pytest.mark.parametrize("which", ["bottom", "both"])
def test_only_the_top_is_served_and_who_serves_the_rest_is_named(which: Any) -> None:
    with pytest.raises(InputError, match=r"expected 'top' .*'lanczos', 'power' or 'exact'"):
        RandomizedSVD(20, which=which)


@pytest.mark.parametrize(
    "options", [{"oversampling": -1}, {"power_iterations": -1}, {"verification_products": -1}]
)
def test_options_of_randomized_svd_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        RandomizedSVD(20, **options)


# -- in a Trainer ----------------------------------------------------------------------------------


def dense(m: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, m), nn.Softplus()).double()


IMAGE = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CASES = [("exact", 40), ("exact", 20), ("randomized_svd", 40)]


@pytest.mark.parametrize(("method", "m"), CASES)
def test_trainer_and_bare_loop_agree_to_the_last_bit(method: str, m: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"k": 2, "which": "top", "tol": 1e-6, "seed": 2}
    module = EigendistortionModule(dense(m), IMAGE, method=method, **settings)
    trainer(tmp_path).fit(module)
    bare = solve(ee.FisherOperator(dense(m), IMAGE), method, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # randomized_svd's pairs are not proven
        fitted = module.spectrum()
    assert torch.equal(fitted.eigenvalues, bare.eigenvalues)
    assert torch.equal(fitted.eigenvectors, bare.eigenvectors)
    assert fitted.num_products == bare.num_products


@pytest.mark.parametrize(("method", "m"), CASES)
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_resume_computes_only_the_rest_and_ends_in_the_same_bits(
    method: str, m: int, cut: int, tmp_path: Path
) -> None:
    def module() -> EigendistortionModule:
        return EigendistortionModule(dense(m), IMAGE, method=method, k=2, which="top", tol=1e-6)

    def computed(module: EigendistortionModule) -> int:
        return module.operator.jacobian.num_jvp + module.operator.jacobian.num_vjp

    whole = module()
    trainer(tmp_path).fit(whole)
    checkpoint = ee.SolverCheckpoint(tmp_path / "checkpoints")
    broken = module()
    trainer(tmp_path, [checkpoint], max_steps=cut, enable_checkpointing=True).fit(broken)
    assert not broken.solver.done
    resumed = module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path).fit(resumed, ckpt_path=str(checkpoint.last_path))
    a, b = resumed.solver.result(), whole.solver.result()
    assert torch.equal(a.eigenvalues, b.eigenvalues)
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert a.num_products == b.num_products
    assert 0 < computed(broken) < computed(whole)
    assert computed(resumed) == computed(whole) - computed(broken)


def test_exact_gathers_fisher_where_products_come_in_parts(tmp_path: Path) -> None:
    images = [IMAGE, IMAGE]
    module = ee.AverageModule(dense(40), images, method="exact", k=2, tol=1e-9, parts=2)
    trainer(tmp_path, precision="64-true").fit(module)
    found = module.spectrum()
    jacobian = ee.JacobianOperator(dense(40), IMAGE).to_dense()
    expected = torch.linalg.svdvals(jacobian).square()
    torch.testing.assert_close(found.eigenvalues, expected[found.eigenindex], atol=1e-12, rtol=0)
    assert any("columns of F" in note for note in found.notes)


def test_a_fit_stopped_before_any_pair_writes_what_there_is(tmp_path: Path) -> None:
    module = EigendistortionModule(dense(40), IMAGE, method="exact")
    results = ResultFiles(tmp_path / "results")
    trainer(tmp_path, [ee.ConvergenceLogging(), results], max_steps=3).fit(module)
    assert len(ee.Spectrum.load(results.paths["spectrum.safetensors"])) == 0
    assert "distortions.png" not in results.paths


# -- on the command line ---------------------------------------------------------------------------

SMALL = ("image.crop=16", "logger=none", "trainer=cpu", "trainer.enable_progress_bar=false")


def test_a_fit_cut_short_by_its_budget_is_resumed_to_the_same_bits(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "solver=exact", "root=whole", *SMALL]) == 0
    assert "converged" in capsys.readouterr().out
    assert main(["fit", "solver=exact", "solver.max_products=100", *SMALL]) == 3
    assert "go on with: eigenexp resume" in capsys.readouterr().out
    assert main(["resume", "last", "solver.max_products=null"]) == 0
    assert "changed on purpose" in capsys.readouterr().err
    (whole,), (resumed,) = list_runs(Path("whole")), list_runs(Path("mlruns"))
    a, b = (ee.Spectrum.load(run.results / "spectrum.safetensors") for run in (whole, resumed))
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert a.num_products == b.num_products == 257
    assert b.converged.all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solver=randomized_svd", "solver.which=both"], "which: expected 'top'"),
        (["solver=exact", "solver.side=left"], "side: expected 'auto'"),
        (["solver=exact"], "fits in memory"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str],
    words: str,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "ALWAYS_FITS", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    assert main(["fit", *SMALL, *arguments]) != 0
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("eigenexp: ")
    assert words in message
