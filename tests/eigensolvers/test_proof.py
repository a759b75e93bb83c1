"""Never called converged without proof: witnesses of missed pairs, bounds, checks of products."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.eigensolvers import make_solver, multiply, solve
from eigenexp.eigensolvers.numerics import error_bounds, rounding_floor
from eigenexp.eigensolvers.witness import (
    chance_of_miss,
    draw_probe,
    galerkin_weights,
    suspects,
)
from eigenexp.errors import ProductError
from eigenexp.operators import DenseOperator
from eigenexp.spectrum import StopReason


def orthogonal(n: int, seed: int) -> Tensor:
    draw = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(draw).Q


def prescribed(values: Tensor, seed: int = 0) -> DenseOperator:
    q = orthogonal(len(values), seed)
    matrix = (q * values) @ q.T
    return DenseOperator((matrix + matrix.T) / 2)


def triples(n: int) -> Tensor:
    """Every eigenvalue three times, 1/3n apart: one Krylov space sees one of each."""
    return torch.linspace(1, 0.01, n // 3, dtype=torch.float64).repeat_interleave(3)


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("which", ["top", "bottom", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_no_copy_of_a_repeated_eigenvalue_is_missed(method: str, which: str, seed: int) -> None:
    values = triples(150)
    found = solve(prescribed(values, seed), method, k=4, which=which, tol=1e-3, seed=seed)
    assert found.stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)
    error = (found.eigenvalues - values[found.eigenindex]).abs().max()
    assert float(error) <= 2e-3


def test_the_trace_of_a_missed_pair_is_at_most_what_the_witness_bounds() -> None:
    """⟨g, e⟩ = ⟨y, e⟩ for every eigenvector e of the deflated F, whatever the search space."""
    n, tol = 60, 1e-12
    values = torch.linspace(2, 0.1, n, dtype=torch.float64)
    q = orthogonal(n, 1)
    fisher = (q * values) @ q.T
    wanted = q[:, :2]
    deflated = fisher - (wanted * values[:2]) @ wanted.T
    g = torch.randn(n, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    g = g / g.norm()
    space = torch.linalg.qr(torch.cat([wanted, g, fisher @ g, fisher @ (fisher @ g)], dim=1)).Q
    theta, s = torch.linalg.eigh(space.T @ fisher @ space)
    theta, ritz = theta.flip(0), space @ s.flip(1)
    residuals = fisher @ ritz - ritz * theta
    assert float(residuals[:, :2].norm()) < tol * 100
    for e, value in ((q[:, i], values[i]) for i in (5, 20, 59)):
        weights = galerkin_weights(theta, (ritz.T @ g)[:, 0], [0, 1], float(value))
        y = residuals @ weights
        projected = g[:, 0] - wanted @ (wanted.T @ g[:, 0])
        assert float(e @ y) == pytest.approx(float(e @ projected), abs=1e-10)
        assert float(y.norm()) >= abs(float(e @ g[:, 0])) - 1e-12
    assert float((deflated @ q[:, 5] - values[5] * q[:, 5]).norm()) < 1e-12


def test_the_chance_is_that_of_a_random_vector_with_so_small_a_part() -> None:
    n, norm = 400, 2e-3
    draws = torch.randn(4000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = (draws[:, 0] / draws.norm(dim=1)).abs()
    share = float((part <= norm).double().mean())
    bound = chance_of_miss([norm], n)
    assert bound == pytest.approx(math.sqrt(4 * n / math.pi) * norm)
    assert share <= 1.15 * bound / math.sqrt(2)
    assert share >= 0.7 * bound / math.sqrt(2)
    assert chance_of_miss([1.0], n) == 1.0


def test_the_probe_holds_mirror_images_of_what_was_found() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 32, 32, generator=generator, dtype=torch.float64)
    picture /= picture.norm()
    noise = torch.randn(1024, generator=generator, dtype=torch.float64)
    weights = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    found = picture.reshape(-1, 1)
    g = draw_probe(noise, weights, found, (1, 32, 32))
    bare = draw_probe(noise, weights, found, None)
    for twin in (picture.flip(-1), picture.flip(-2), picture.mT):
        assert abs(float(g @ twin.reshape(-1))) > 0.1
        assert abs(float(bare @ twin.reshape(-1))) < 0.1
    torch.testing.assert_close(bare, noise / noise.norm() / math.sqrt(2))


@pytest.mark.parametrize("seed", [17, 18, 19])
def test_a_short_search_finds_the_copies_that_symmetry_makes(seed: int) -> None:
    """A blur treats both axes alike: most eigenvalues are double. Noise alone misses one (18)."""
    picture = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    operator = ee.FisherOperator(ee.models.Gaussian(9, 1.0).double(), picture)
    values = torch.linalg.eigvalsh(operator.to_dense()).flip(0)
    found = solve(operator, "lanczos", k=5, which="top", tol=1e-3, seed=seed)
    assert bool(found.converged.all())
    assert found.num_verification_products <= 15
    assert float((found.eigenvalues - values[:5]).abs().max()) <= 2e-3 * float(values[0])


def test_suspects_lie_beyond_the_last_wanted_pair() -> None:
    assert min(suspects("top", 0.9, 1e-3, 1.0)) > 0.9
    assert max(suspects("bottom", 0.1, 1e-3, 1.0)) < 0.1
    assert min(suspects("bottom", 1e-9, 1e-3, 1.0)) == 0.0


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
def test_a_strict_verification_says_how_likely_a_miss_is(method: str) -> None:
    values = torch.linspace(1, 0.1, 80, dtype=torch.float64)
    found = solve(prescribed(values), method, k=2, which="top", tol=1e-3, strict_verification=True)
    assert found.stop_reason is StopReason.CONVERGED
    (note,) = [note for note in found.notes if "missed" in note]
    assert float(note.split()[-1]) <= 0.05


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
def test_a_search_for_missed_pairs_that_proves_nothing_is_not_called_converged(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"eigenexp.eigensolvers.{method}"
    monkeypatch.setattr(f"{module}.chance_of_miss", lambda norms, n: 1.0)
    values = torch.linspace(1, 0.1, 400, dtype=torch.float64)
    found = solve(prescribed(values), method, k=1, which="top", tol=1e-3)
    assert found.stop_reason is StopReason.UNVERIFIED
    assert not bool(found.converged.any())


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("which", ["top", "bottom", "both"])
def test_an_indefinite_operator_is_refused(method: str, which: str) -> None:
    values = torch.linspace(1, -0.5, 40, dtype=torch.float64)
    with pytest.raises(ProductError, match="no negative eigenvalue"):
        solve(prescribed(values), method, k=2, which=which, tol=1e-6)


def test_davidson_refuses_an_asymmetric_product_and_keeps_its_state() -> None:
    operator = prescribed(torch.linspace(1, 0.1, 30, dtype=torch.float64))
    solver = make_solver(operator, "davidson", k=1, tol=1e-9)
    for _ in range(4):
        solver.tell(*multiply(operator, "fisher", solver.ask()))
    skew = torch.randn(30, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = solver.state_dict()["state"]["space"]["basis"].clone()
    with pytest.raises(ProductError, match="symmetric"):
        solver.tell((skew - skew.T) @ solver.ask())
    assert torch.equal(solver.state_dict()["state"]["space"]["basis"], before)
    while not solver.done:
        solver.tell(*multiply(operator, "fisher", solver.ask()))
    assert solver.stop_reason is StopReason.CONVERGED


@pytest.mark.parametrize("method", ["lanczos", "davidson", "auto"])
def test_a_looser_tolerance_ends_a_loaded_solver_at_once(method: str) -> None:
    values = torch.logspace(0, -3, 60, dtype=torch.float64)
    operator = prescribed(values)
    fine = make_solver(operator, method, k=1, which="top", tol=1e-6)
    while not fine.done:
        fine.tell(*multiply(operator, fine.request, fine.ask()))
    rough = make_solver(operator, method, k=1, which="top", tol=1e-2)
    rough.load_state_dict(fine.state_dict())
    assert rough.done
    assert rough.result().stop_reason is StopReason.CONVERGED
    assert rough.num_products == fine.num_products


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("seed", range(5))
def test_kato_temple_bounds_hold_and_beat_the_residual(method: str, seed: int) -> None:
    values = torch.cat([torch.tensor([3.0, 2.5]), torch.linspace(1, 0.1, 60)]).double()
    found = solve(prescribed(values, seed), method, k=2, which="top", tol=1e-3, seed=seed)
    for value, bound, residual in zip(
        found.eigenvalues, found.error_bounds, found.residuals, strict=True
    ):
        assert float((values - value).abs().min()) <= float(bound)
        assert float(bound) < 0.5 * float(residual) + 1e-12


def test_no_gap_no_kato_temple() -> None:
    values, residuals = torch.tensor([1.0, 1.0]).double(), torch.tensor([1e-3, 1e-3]).double()
    guards = torch.tensor([[0.5, 1e-3]]).double()
    none = torch.zeros(2, dtype=torch.bool)
    assert torch.equal(error_bounds(values, residuals, 0.0, none, guards), residuals)
    alone = error_bounds(values[:1], residuals[:1], 0.0, none[:1], guards)
    assert float(alone) == pytest.approx(1e-6 / (0.5 - 2e-3))


def test_a_known_null_space_is_told() -> None:
    jacobian = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = solve(DenseOperator.from_jacobian(jacobian), "davidson", k=3, which="bottom")
    assert found.null_space_dimension >= 18
    assert any("at least 18 dimensions" in note for note in found.notes)
    assert bool(found.converged.all())
    assert float(found.eigenvalues.max()) < 1e-10


def test_the_floor_follows_the_precision_of_the_network() -> None:
    assert rounding_floor(torch.float32, 1000, 1e-2) == 2e-2
    assert rounding_floor(torch.float32, 1000) == rounding_floor(torch.float32, 1000, 1e-9)
    rough = torch.linspace(1, 0.1, 60, dtype=torch.float64)
    problem = prescribed(rough).problem
    assert make_solver(problem, "lanczos").eps == torch.finfo(torch.float64).eps
    coarse = make_solver(replace(problem, product_eps=1e-3), "lanczos")
    assert coarse.eps == 1e-3
    assert coarse.floor == 2e-3
