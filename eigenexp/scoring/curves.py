"""The share of correct answers over d′, for whole arrays: one smooth table a task."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from eigenexp.analysis.units import TASKS, fraction_correct
from eigenexp.errors import InputError

__all__ = ["TaskCurve", "task_curve"]

Array = NDArray[np.float64]

_LOWEST, _HIGHEST, _KNOTS = -7.0, 2.5, 381
"""Of ln d′: below, d′² adds under 1e-6 to chance; above, what is missing to 1 is under 1e-15."""


class TaskCurve:
    """How often an observer of a task is right at d′, and how fast that grows.

    Attributes
    ----------
    task, alternatives
        As in :func:`eigenexp.analysis.units.fraction_correct`, whose values these are.
    chance
        At d′ = 0.
    """

    def __init__(self, task: str, alternatives: int) -> None:
        self.task = task
        self.alternatives = alternatives
        self.chance = {"2afc": 0.5, "oddity": 1 / 3}.get(task, 1 / alternatives)
        knots = np.linspace(_LOWEST, _HIGHEST, _KNOTS)
        values = [fraction_correct(float(d), task, alternatives) for d in np.exp(knots)]
        self._curve = PchipInterpolator(knots, np.clip(values, self.chance, 1.0))
        self._slope = self._curve.derivative()

    def __call__(self, log_d_prime: ArrayLike) -> Array:
        """Return the share of correct answers at ln d′, of the same shape; −∞ is chance."""
        given = np.clip(np.asarray(log_d_prime, dtype=np.float64), _LOWEST, _HIGHEST)
        return np.asarray(self._curve(given), dtype=np.float64)

    def slope(self, log_d_prime: ArrayLike) -> Array:
        """Return its derivative by ln d′."""
        given = np.asarray(log_d_prime, dtype=np.float64)
        inside = (given > _LOWEST) & (given < _HIGHEST)
        slopes = self._slope(np.clip(given, _LOWEST, _HIGHEST))
        return np.where(inside, slopes, 0.0)


@functools.lru_cache(maxsize=16)
def task_curve(task: str = "2afc", alternatives: int = 3) -> TaskCurve:
    """Return the curve of a task; ``alternatives`` counts for ``"mafc"`` alone.

    Raises
    ------
    InputError
        When there is no such task, or fewer than two alternatives.
    """
    if task not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    return TaskCurve(task, alternatives)
