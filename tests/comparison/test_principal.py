"""Principal distortions against dense float64 truth and published definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.comparison import PrincipalSolver, bound_log_ratios
from eigenexp.comparison.problems import operators_of
from eigenexp.errors import EigenexpError
from tests.comparison.problems import operators, semidefinite


def ellipse(angle: float, first: float, second: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([first, second], dtype=torch.float64)) @ turn.mT


def ridged(matrix: Tensor, ridge: float) -> Tensor:
    top = torch.linalg.eigvalsh(matrix)[-1]
    return matrix / top + ridge * torch.eye(len(matrix), dtype=torch.float64)


def test_three_ellipses() -> None:
    """(0, 1, .1), (π/6, 2, .5), (π/3, 1, .02): 5.5722 at 87.0° and 150.7°."""
    made = operators(
        ellipse(0, 1, 0.1), ellipse(math.pi / 6, 2, 0.5), ellipse(math.pi / 3, 1, 0.02)
    )
    found = ee.compare.principal(made, ridge=0.0)
    assert found.value == pytest.approx(5.5723, abs=1e-4)
    angles = sorted(
        math.degrees(math.atan2(float(e[1]), float(e[0]))) % 180 for e in found.distortions
    )
    assert angles == pytest.approx([87.0, 150.7], abs=0.1)


def test_two_models_are_the_ends_of_their_pencil() -> None:
    a, b = semidefinite(40, 20, 0), semidefinite(40, 30, 1)
    found = ee.compare.principal(operators(a, b), ridge=1e-2, tol=1e-6)
    values = scipy.linalg.eigh(ridged(a, 1e-2).numpy(), ridged(b, 1e-2).numpy(), eigvals_only=True)
    log_kappa = math.log(values[-1] / values[0])
    assert found.value == pytest.approx(log_kappa**2 / 4, rel=1e-5)
    assert found.value <= found.bound <= 1.05 * found.value


def test_one_model_gives_eigendistortions() -> None:
    a = semidefinite(40, 40, 3)
    found = ee.compare.principal(operators(a), ridge=1e-6, tol=1e-7)
    values, vectors = torch.linalg.eigh(a)
    top, bottom = found.distortions
    assert float((top @ vectors[:, -1]).abs()) == pytest.approx(1, abs=1e-6)
    expected = math.log(float(values[-1] / values[0]))
    assert float(found.log_ratios[0]) == pytest.approx(expected, rel=0.02)
    assert float(bottom @ a @ bottom) < 2 * float(values[0])


def test_bound_holds() -> None:
    """Every ln λmax lies between its bounds, and no pair of distortions beats the polytope."""
    matrices = [semidefinite(40, 16 + 6 * i, 10 + i) for i in range(4)]
    made = operators(*matrices)
    found = ee.compare.principal(made, ridge=1e-2, pairs=2)
    dense = [ridged(m, 1e-2) for m in matrices]
    known = bound_log_ratios(operators_of(made), found.scales, 1e-2)
    for i, j in itertools.permutations(range(4), 2):
        true = math.log(
            scipy.linalg.eigh(dense[i].numpy(), dense[j].numpy(), eigvals_only=True)[-1]
        )
        assert float(known.lower[i, j]) <= true + 1e-6
        assert true <= float(known.upper[i, j]) + 1e-6
    assert found.value <= found.bound < math.inf
    assert found.converged
    assert found.scree[0] >= found.scree[1] > 0
    ratios = torch.stack([found.log_ratios, found.further[0].log_ratios])
    for pair, own in zip((found, found.further[0]), ratios, strict=True):
        u, v = pair.distortions
        seen = torch.stack([(u @ m @ u).log() - (v @ m @ v).log() for m in dense])
        assert seen.allclose(own, atol=1e-6)
    assert found.at_ten_ridge is not None
    assert found.at_ten_ridge.value < found.value


def test_resume_is_bit_identical() -> None:
    matrices = [semidefinite(36, 30, i) for i in range(3)]
    whole = PrincipalSolver(36, 3, ridge=1e-2, tol=1e-4)
    states = []
    while not whole.done:
        block = whole.ask()
        states.append(whole.state_dict())
        whole.tell([m @ block for m in matrices])
    again = PrincipalSolver(36, 3, ridge=1e-2, tol=1e-4)
    again.load_state_dict(states[len(states) // 2])
    while not again.done:
        block = again.ask()
        again.tell([m @ block for m in matrices])
    assert again.result()[0].vectors.equal(whole.result()[0].vectors)
    assert again.num_products == whole.num_products


def test_survivors() -> None:
    ratios = torch.tensor([1.0, 2.0, 4.0])
    assert ee.compare.survivors(ratios, 1.8, 0.3).tolist() == [False, True, False]


def test_bad_input_is_one_line() -> None:
    a, b, zero = operators(
        semidefinite(12, 8, 0), semidefinite(12, 8, 1), torch.zeros(12, 12, dtype=torch.float64)
    )
    for call, words in (
        (lambda: ee.compare.principal([a, b], ridge=0.0), "ridge"),
        (lambda: ee.compare.principal([a, b], pairs=2), "pairs"),
        (lambda: ee.compare.principal([a, zero]), "Jacobian that is zero"),
        (lambda: ee.compare.principal([]), "at least one"),
        (lambda: ee.compare.survivors(torch.ones(2), 1.0, 0.0), "sd"),
    ):
        with pytest.raises(EigenexpError, match=words) as told:
            call()
        assert "\n" not in str(told.value)
