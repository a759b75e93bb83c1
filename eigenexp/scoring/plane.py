"""An experiment in a plane: two distortions as axes, an ellipse measured beside a model's.

A change of the picture is E z with two distortions as the columns of E; a model sees
d′² = zᵀ (EᵀFE) z. Answers to changes in several directions of the plane give a matrix M of the same
kind. The two agree up to a gain when they are proportional: their distance is
ln κ = ln(λmax / λmin) of the pencil (M, EᵀFE), Hilbert's projective distance, 0 only then. It is
never negative, so that a measured one is above 0 even for the true model; how far is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.scoring.curves import TaskCurve, task_curve

__all__ = [
    "PlaneAnswers",
    "PlaneComparison",
    "PlaneFit",
    "compare_plane",
    "fit_plane",
    "log_kappa",
    "plane_matrix",
]

Array = NDArray[np.float64]

_FEWEST_DIRECTIONS = 3
"""A quadratic form of the plane has three entries."""


class _Products(Protocol):
    """An operator that gives F V."""

    def __matmul__(self, block: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PlaneAnswers:
    """Answers to changes in a plane, a row a cell.

    Parameters
    ----------
    offsets
        ``(c, 2)`` z of each cell: coordinates along the two axes.
    trials, correct
        ``(c,)`` how often shown, and how often right.
    task, alternatives
        As in :func:`eigenexp.analysis.units.fraction_correct`.

    Raises
    ------
    InputError
        When shapes or numbers do not fit.
    """

    offsets: Array
    trials: NDArray[np.int64]
    correct: NDArray[np.int64]
    task: str = "2afc"
    alternatives: int = 2

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets, dtype=np.float64)
        trials, correct = (np.asarray(v, dtype=np.int64) for v in (self.trials, self.correct))
        if offsets.ndim != 2 or offsets.shape[1] != 2 or not len(offsets):
            raise InputError(f"offsets: expected shape (c, 2), got {offsets.shape}")
        if not len(offsets) == len(trials) == len(correct):
            raise InputError(
                f"offsets: expected as many trials and correct, got {len(offsets)}, {len(trials)} "
                f"and {len(correct)}"
            )
        if not np.isfinite(offsets).all():
            raise InputError("offsets: expected finite numbers, got NaN or inf")
        if not ((correct >= 0) & (correct <= trials)).all():
            raise InputError("correct: expected from 0 to as many as there are trials")
        for name, value in (("offsets", offsets), ("trials", trials), ("correct", correct)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class PlaneFit:
    """A measured quadratic form.

    Attributes
    ----------
    matrix
        ``(2, 2)`` M: d′² = zᵀMz.
    lapses
        Share of answers without looking.
    log_likelihood
        At the fit, without the binomial coefficients.
    answers
        It was fitted to.
    """

    matrix: Array
    lapses: float
    log_likelihood: float
    answers: PlaneAnswers

    def ellipse(self, points: int = 100) -> Array:
        """Return ``(points, 2)`` of the contour at d′ = 1."""
        angle = np.linspace(0, 2 * np.pi, points)
        root = np.linalg.inv(np.linalg.cholesky(self.matrix)).T
        return np.asarray((root @ np.stack([np.cos(angle), np.sin(angle)])).T)


@dataclass(frozen=True)
class PlaneComparison:
    """A measured ellipse beside a model's.

    Attributes
    ----------
    log_kappa
        Hilbert's distance between the two: 0 where they are proportional.
    expected
        What it would be on average, were the model right: from simulated experiments.
    chance
        Share of these, the measured one counted among them, that came out at least as far.
    gain
        g of the model's observer whose d′ fits the answers best.
    log_likelihood_ratio
        Of the free ellipse over the model's, gain free.
    """

    log_kappa: float
    expected: float
    chance: float
    gain: float
    log_likelihood_ratio: float


def plane_matrix(operator: _Products, distortions: Tensor) -> Array:
    """Return EᵀFE ``(2, 2)``.

    Parameters
    ----------
    operator
        F of the model at the picture, such as a :class:`~eigenexp.operators.FisherOperator`.
    distortions
        ``(2, …)`` the axes, in the shape of the picture or flat; need not be orthogonal.

    Raises
    ------
    InputError
        When there are not two, or they are proportional.

    Examples
    --------
    >>> import torch, eigenexp as ee
    >>> operator = ee.DenseOperator(torch.diag(torch.tensor([9.0, 4.0, 1.0])))
    >>> ee.scoring.plane_matrix(operator, torch.eye(3)[[0, 2]]).tolist()
    [[9.0, 0.0], [0.0, 1.0]]
    """
    if len(distortions) != 2:
        raise InputError(f"distortions: expected two axes of a plane, got {len(distortions)}")
    axes = distortions.detach().reshape(2, -1).T
    flat = axes.to(torch.float64).cpu().numpy()
    cosine = flat[:, 0] @ flat[:, 1] / max(np.linalg.norm(flat, axis=0).prod(), 1e-300)
    if not abs(cosine) < 1 - 1e-6:
        raise InputError("distortions: expected two that differ, got two of one direction")
    product = (operator @ axes.contiguous()).to(torch.float64).cpu().numpy()
    matrix = flat.T @ product
    return np.asarray((matrix + matrix.T) / 2)


def log_kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Return ln(λmax/λmin) of the pencil of two positive matrices; infinite where one is singular.

    Raises
    ------
    InputError
        When they are not square and of one size, or not symmetric.
    """
    first, second = (np.asarray(m, dtype=np.float64) for m in (a, b))
    if first.ndim != 2 or first.shape != second.shape or first.shape[0] != first.shape[1]:
        raise InputError(
            f"matrices: expected two square ones of one size, got {first.shape} and {second.shape}"
        )
    for one in (first, second):
        if not np.allclose(one, one.T, rtol=1e-6, atol=1e-12 * np.abs(one).max()):
            raise InputError("matrices: expected symmetric ones")
        values = np.linalg.eigvalsh(one)
        if not values[0] > 1e-14 * abs(values[-1]):
            return math.inf
    values = eigh(first, second, eigvals_only=True)
    return float(np.log(values[-1] / values[0]))


def fit_plane(answers: PlaneAnswers) -> PlaneFit:
    """Return the quadratic form that answers in a plane speak for, by maximum posterior.

    ln M is free, lapses are Beta(1, 20).

    Raises
    ------
    InputError
        When the answers are in fewer than three directions, or all at chance or all right, so
        that they do not tell an ellipse.
    """
    used = (answers.trials > 0) & (np.abs(answers.offsets).max(axis=1) > 0)
    angles = np.arctan2(answers.offsets[used, 1], answers.offsets[used, 0]) % np.pi
    apart = np.unique(np.round(angles / np.pi, 6) % 1.0)
    if len(apart) < _FEWEST_DIRECTIONS:
        raise InputError(
            f"offsets: expected at least {_FEWEST_DIRECTIONS} directions for an ellipse, got "
            f"{len(apart)}"
        )
    curve = task_curve(answers.task, answers.alternatives)
    n, right = answers.trials[used].sum(), answers.correct[used].sum()
    if right == n or right <= curve.chance * n + 2 * math.sqrt(n * curve.chance / 2):
        raise InputError(
            f"correct: expected answers between chance and all right, got {right} of {n}: they do "
            "not tell an ellipse; show other amplitudes"
        )
    size = math.log(float((answers.offsets[used] ** 2).sum(axis=1).mean()))
    starts = [np.array([-size + shift, -size + shift, 0.0, -4.0]) for shift in (0.0, 2.0, -2.0)]
    return _fitted(answers, curve, starts)


def _fitted(answers: PlaneAnswers, curve: TaskCurve, starts: Sequence[Array]) -> PlaneFit:
    found = [minimize(_cost, start, args=(answers, curve), method="BFGS") for start in starts]
    best = min(found, key=lambda one: float(one.fun))
    lapses = float(1 / (1 + np.exp(-best.x[3])))
    matrix = _matrix(best.x)
    return PlaneFit(matrix, lapses, _log_likelihood(matrix, lapses, answers, curve), answers)


def compare_plane(
    fit: PlaneFit, model: ArrayLike, simulations: int = 200, seed: int = 0
) -> PlaneComparison:
    """Return how far a measured ellipse is from a model's, and how far chance alone would put it.

    Parameters
    ----------
    fit
        Measured.
    model
        ``(2, 2)`` EᵀFE, see :func:`plane_matrix`.
    simulations
        Experiments of the same cells, with the model's ellipse at the best gain, fitted alike.
    seed
        Of these.

    Raises
    ------
    InputError
        When the model's matrix is no positive one of the plane.
    """
    matrix = np.asarray(model, dtype=np.float64)
    if matrix.shape != (2, 2):
        raise InputError(f"model: expected a matrix (2, 2), got {matrix.shape}")
    measured = log_kappa(fit.matrix, matrix)
    if not math.isfinite(measured):
        raise InputError(
            "model: expected an ellipse, got a matrix that is singular: the model does not see a "
            "direction of the plane; give it a floor under its noise (noise=pixel_floor)"
        )
    answers = fit.answers
    curve = task_curve(answers.task, answers.alternatives)
    grid = 0.5 * np.log(np.trace(fit.matrix) / np.trace(matrix)) + np.linspace(-4, 4, 321)
    logs = [
        _log_likelihood(np.exp(2 * g) * matrix, fit.lapses, answers, curve) for g in grid
    ]  # fmt: skip
    best = int(np.argmax(logs))
    gain = float(np.exp(grid[best]))
    share = _shares(gain**2 * matrix, fit.lapses, answers, curve)
    rng = np.random.default_rng(seed)
    start = [_parameters(gain**2 * matrix, fit.lapses)]
    distances = []
    for _ in range(simulations):
        drawn = rng.binomial(answers.trials, share)
        again = PlaneAnswers(
            answers.offsets, answers.trials, drawn, answers.task, answers.alternatives
        )
        distances.append(log_kappa(_fitted(again, curve, start).matrix, matrix))
    known = [one for one in distances if math.isfinite(one)]
    at_least = sum(one >= measured for one in distances)
    return PlaneComparison(
        log_kappa=measured,
        expected=float(np.mean(known)) if known else float("nan"),
        chance=(1 + at_least) / (1 + simulations),
        gain=gain,
        log_likelihood_ratio=fit.log_likelihood - float(logs[best]),
    )


def _matrix(parameters: Array) -> Array:
    a, b, c = np.clip(parameters[:3], -60, 60)
    # exp of a symmetric 2×2 matrix: its mean, and what is left, whose square is r² I.
    mean, half = (a + b) / 2, (a - b) / 2
    r = math.hypot(half, c)
    ratio = math.sinh(r) / r if r > 1e-8 else 1.0
    rest = ratio * np.array([[half, c], [c, -half]])
    return np.asarray(math.exp(mean) * (math.cosh(r) * np.eye(2) + rest))


def _parameters(matrix: Array, lapses: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    log = (vectors * np.log(values)) @ vectors.T
    odds = math.log(max(lapses, 1e-4) / (1 - lapses))
    return np.array([log[0, 0], log[1, 1], log[0, 1], odds])


def _shares(matrix: Array, lapses: float, answers: PlaneAnswers, curve: TaskCurve) -> Array:
    squared = np.einsum("ci,ij,cj->c", answers.offsets, matrix, answers.offsets)
    seen = curve(0.5 * np.log(np.maximum(squared, 1e-300)))
    return np.asarray(lapses * curve.chance + (1 - lapses) * seen)


def _log_likelihood(matrix: Array, lapses: float, answers: PlaneAnswers, curve: TaskCurve) -> float:
    share = np.clip(_shares(matrix, lapses, answers, curve), 1e-12, 1 - 1e-12)
    wrong = answers.trials - answers.correct
    return float(answers.correct @ np.log(share) + wrong @ np.log1p(-share))


def _cost(parameters: Array, answers: PlaneAnswers, curve: TaskCurve) -> Any:
    lapses = 1 / (1 + np.exp(-np.clip(parameters[3], -30, 30)))
    prior = 19 * np.log1p(-lapses) + np.log(lapses) + np.log1p(-lapses)  # Beta(1, 20) of the logit
    # Of ln M, so weak that it only stops what the answers leave open.
    prior -= 0.5 * (parameters[2] / 5) ** 2 + 0.5 * ((parameters[0] - parameters[1]) / 10) ** 2
    return -_log_likelihood(_matrix(parameters), float(lapses), answers, curve) - prior
