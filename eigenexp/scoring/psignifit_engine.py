"""psignifit (GPL-3, never bundled) as the engine of threshold fits, by its public door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from eigenexp.errors import InputError
from eigenexp.scoring.counts import Counts
from eigenexp.scoring.curves import TaskCurve
from eigenexp.scoring.grid import central_interval
from eigenexp.scoring.thresholds import Thresholds

__all__ = ["fit_each"]

Array = NDArray[np.float64]

_STEPS = 801


class _Independent:
    """Posteriors of thresholds that share nothing, each on an axis of one common step."""

    def __init__(self, axes: Sequence[Array], weights: Sequence[Array]) -> None:
        self._axes, self._weights = axes, weights

    def difference(self, i: int, j: int) -> tuple[Array, Array]:
        """Return values of ln T_i − ln T_j and their probabilities."""
        a, b = self._axes[i], self._axes[j]
        density = np.convolve(self._weights[i], self._weights[j][::-1])
        return a[0] - b[-1] + (a[1] - a[0]) * np.arange(len(density)), density / density.sum()


def fit_each(
    counts: Sequence[Counts], curve: TaskCurve, states: Sequence[str], confidence: float
) -> Thresholds:
    """Fit a cumulative normal over ln α to each distortion alone; see its thresholds at d′ = 1.

    Parameters
    ----------
    counts, curve, confidence
        As in :func:`~eigenexp.scoring.psychometric.fit_thresholds`.
    states
        Which thresholds the answers tell: psignifit's own prior would put one where none is told.

    Raises
    ------
    InputError
        When psignifit is not installed, or a distortion has fewer than two levels.
    """
    fit = _psignifit()
    found = [
        _one(fit, one, curve) if state == "known" else None
        for one, state in zip(counts, states, strict=True)
    ]
    ends = [(axis[0], axis[-1]) for axis, _, _ in filter(None, found)]
    step = max((high - low for low, high in ends), default=1.0) / _STEPS
    axes, weights = [], []
    means, spreads = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    intervals = np.tile([-np.inf, np.inf], (len(counts), 1))
    for i, one in enumerate(found):
        axis, density, _ = one or (np.zeros(2), np.ones(2), {})
        even = np.arange(axis[0], axis[-1] + step, step)
        weight = np.interp(even, axis, density, right=0.0)
        axes.append(even)
        weights.append(weight / weight.sum())
        if one:
            means[i] = weights[i] @ even
            spreads[i] = weights[i] @ (even - means[i]) ** 2
            intervals[i] = central_interval(even, weights[i], confidence)
    shared = [facts for _, _, facts in filter(None, found)]
    covariance = np.diag(spreads)
    covariance[np.isnan(spreads), :] = covariance[:, np.isnan(spreads)] = np.nan
    return Thresholds(
        names=tuple(one.name for one in counts),
        log_thresholds=means,
        covariance=covariance,
        intervals=intervals,
        states=tuple(states),
        exponent=float(np.mean([facts["exponent"] for facts in shared])) if shared else np.nan,
        lapses=float(np.mean([facts["lambda"] for facts in shared])) if shared else np.nan,
        deviances=np.full(len(counts), np.nan),
        confidence=confidence,
        task=curve.task,
        posterior=_Independent(axes, weights),
    )


def _psignifit() -> Any:
    try:
        from psignifit import psignifit
    except ImportError as error:
        raise InputError(
            "engine=psignifit: expected psignifit (GPL-3) to be installed, got none; "
            "pip install 'eigenexp[experiment]', or leave engine=grid"
        ) from error
    return psignifit


def _one(fit: Any, counts: Counts, curve: TaskCurve) -> tuple[Array, Array, dict[str, float]]:
    """Return the axis of ln T at d′ = 1, the density on it, and what else was found."""
    shown = counts.trials > 0
    levels = np.log(counts.amplitudes[shown])
    if len(np.unique(levels)) < 2:
        raise InputError(
            f"engine=psignifit: expected at least two levels of {counts.name}, got one; "
            "leave engine=grid"
        )
    data = np.stack([levels, counts.correct[shown], counts.trials[shown]], axis=1)
    kind = {"experiment_type": "nAFC", "experiment_choices": round(1 / curve.chance)}
    result = fit(data, sigmoid="norm", verbose=False, **kind)
    # Its threshold is the middle of the curve, ours d′ = 1.
    middle = (float(curve(0.0)) - curve.chance) / (1 - curve.chance)
    width = float(result.parameter_estimate["width"])
    shift = width * float(ndtri(middle)) / (2 * float(ndtri(0.95)))
    axis = np.asarray(result.parameter_values["threshold"], dtype=np.float64) + shift
    density = np.asarray(result.marginal_posterior_values["threshold"], dtype=np.float64)
    # The exponent whose curve is as steep in the middle as the normal one.
    steepest = 2 * float(ndtri(0.95)) / width / np.sqrt(2 * np.pi) * (1 - curve.chance)
    exponent = steepest / float(curve.slope(0.0))
    return axis, density, {"exponent": exponent, "lambda": result.parameter_estimate["lambda"]}
