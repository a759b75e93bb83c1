"""The pencil of two models against dense float64 truth."""

from __future__ import annotations

import math

import pytest
import torch

import eigenexp as ee
from eigenexp.comparison import PencilSolver
from eigenexp.errors import CheckpointError, EigenexpError, InputError, ProductError
from tests.comparison.problems import directions, operators, semidefinite, truth


def test_small_numbers() -> None:
    """A = diag(1, 4, 9, 2), B = diag(3, 1, 2, 8): λ = 1/3, 4, 4.5, 1/4 as δ → 0."""
    a, b = operators(
        torch.diag(torch.tensor([1.0, 4, 9, 2], dtype=torch.float64)),
        torch.diag(torch.tensor([3.0, 1, 2, 8], dtype=torch.float64)),
    )
    found = ee.compare.pencil(a, b, k=4, delta=1e-9, scale="none")
    ratios = found.mu / (1 - found.mu)
    assert torch.allclose(ratios, torch.tensor([4.5, 4, 1 / 3, 1 / 4], dtype=torch.float64))
    assert found.converged
    assert found.common_null_dimension == 0
    assert found.common_null_is_exact


@pytest.mark.parametrize("seed", range(3))
def test_random_pencils(seed: int) -> None:
    """Rank-deficient A and B with a shared null space: no pair missed, every bound holds."""
    n = 48
    null = directions(n, 5, 100 + seed)
    a, b = semidefinite(n, 20, seed, null), semidefinite(n, 30, 50 + seed, null)
    delta = (1e-1, 1e-3, 1e-5)[seed % 3]
    first, second = operators(a, b)
    found = ee.compare.pencil(first, second, k=2, delta=delta, seed=seed, tol=1e-4)
    assert found.converged, str(found)
    for side, (mu, bounds) in enumerate(
        ((found.mu, found.error_bounds), (found.mu_reverse, found.error_bounds_reverse))
    ):
        true = truth(a, b, delta, found.scales)[side][:2]
        assert bool(((true - mu).abs() <= bounds).all()), (mu, true, bounds)
        vectors = (found.distortions, found.distortions_reverse)[side]
        assert vectors.flatten(1).norm(dim=1).allclose(torch.ones(2, dtype=torch.float64))


def test_resume_is_bit_identical() -> None:
    n = 60
    a, b = semidefinite(n, 40, 1), semidefinite(n, 30, 2)
    settings = {"k": 2, "delta": 1e-3, "tol": 1e-5, "seed": 3}
    whole = PencilSolver(n, **settings)
    states = []
    while not whole.done:
        block = whole.ask()
        states.append(whole.state_dict())
        whole.tell([a @ block, b @ block])
    for state in states[:: max(1, len(states) // 3)]:
        again = PencilSolver(n, **settings)
        again.load_state_dict(state)
        while not again.done:
            block = again.ask()
            again.tell([a @ block, b @ block])
        for mine, theirs in zip(again.result(), whole.result(), strict=True):
            assert mine is not None
            assert theirs is not None
            assert mine.mu.equal(theirs.mu)
            assert mine.vectors.equal(theirs.vectors)
            assert mine.error_bounds.equal(theirs.error_bounds)
        assert again.num_products == whole.num_products
    other = PencilSolver(n, **{**settings, "delta": 1e-2})
    with pytest.raises(CheckpointError, match="delta"):
        other.load_state_dict(states[0])


def test_bad_input_is_one_line() -> None:
    a, b = operators(semidefinite(12, 12, 0), semidefinite(12, 12, 1))
    small, zero = operators(semidefinite(10, 10, 0), torch.zeros(12, 12, dtype=torch.float64))
    pencil = ee.compare.pencil
    for call, words in (
        (lambda: pencil(a, a), "given twice"),
        (lambda: pencil(a, *operators(3 * a.to_dense())), "given twice or a multiple"),
        (lambda: pencil(a, small), "pictures of one shape"),
        (lambda: pencil(a, zero), "Jacobian that is zero"),
        (lambda: pencil(a, b, delta=-1.0), "delta"),
        (lambda: pencil(a, b, scale="mean"), "scale"),
        (lambda: pencil(a, b, k=13), "k"),
        (lambda: pencil(ee.models.OnOff(), ee.models.OnOff()), "picture"),
    ):
        with pytest.raises(EigenexpError, match=words) as told:
            call()
        assert "\n" not in str(told.value)
    null = directions(12, 1, 0)
    blind = operators(semidefinite(12, 11, 0, null), semidefinite(12, 11, 1, null))
    for seed in range(4):
        with pytest.raises(InputError, match="singular"):
            pencil(*blind, delta=0.0, seed=seed)
    whole = pencil(a, b, delta=0.0)
    assert all(status == ee.PairStatus.CONVERGED for status in whole.status)


def test_products_are_checked() -> None:
    solver = PencilSolver(12)
    block = solver.ask()
    with pytest.raises(ProductError, match="2 operators"):
        solver.tell([block])
    with pytest.raises(ProductError, match="NaN"):
        solver.tell([block, block * math.nan])
    with pytest.raises(ProductError, match="symmetric"):
        solver.tell([block, torch.randn(12, 12, dtype=torch.float64) @ block])
