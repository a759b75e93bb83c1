"""The posterior over an observer's log thresholds, exponents and lapses, summed on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from eigenexp.scoring.counts import Counts, Prior
from eigenexp.scoring.curves import TaskCurve

__all__ = ["Axes", "GridPosterior", "central_interval", "wide_axes"]

Array = NDArray[np.float64]

_THRESHOLD_STEPS, _EXPONENT_STEPS, _LAPSE_STEPS = 161, 33, 9
_MARGIN = 2.0
"""Nats that the thresholds considered reach beyond the levels shown."""


@dataclass(frozen=True)
class Axes:
    """Where the posterior is looked at: ln T of each distortion (one step), ln b, lapses."""

    thresholds: tuple[Array, ...]
    exponents: Array
    lapses: Array


def wide_axes(counts: Sequence[Counts], prior: Prior) -> Axes:
    """Return axes over all that the prior considers."""
    logs = [np.log(one.amplitudes) for one in counts]
    ends = [(float(log.min()) - _MARGIN, float(log.max()) + _MARGIN) for log in logs]
    exponents = np.linspace(-2.5, 2.5, _EXPONENT_STEPS) * prior.exponent_spread
    lapses = np.linspace(0, prior.most_lapses, _LAPSE_STEPS)
    return Axes(_stepped(ends), exponents + np.log(prior.exponent), lapses)


def _stepped(ends: Sequence[tuple[float, float]]) -> tuple[Array, ...]:
    """Return an axis for each pair of ends, all of one step."""
    step = max(high - low for low, high in ends) / _THRESHOLD_STEPS
    axes = [low + step * np.arange(int((high - low) / step) + 2) for low, high in ends]
    return tuple(np.asarray(axis, dtype=np.float64) for axis in axes)


class GridPosterior:
    """The posterior on a grid: of what is shared, and of each threshold given that."""

    def __init__(
        self, counts: Sequence[Counts], curve: TaskCurve, prior: Prior, axes: Axes
    ) -> None:
        self.axes = axes
        self._counts, self._curve, self._prior = counts, curve, prior
        exponents, lapses = axes.exponents, axes.lapses
        spread = prior.distortion_spread
        mixing = np.exp(-0.5 * ((exponents[:, None] - exponents) / spread) ** 2)
        mixing /= mixing.sum(axis=1, keepdims=True)
        observer = -0.5 * ((exponents - np.log(prior.exponent)) / prior.exponent_spread) ** 2
        ends = np.ones(len(lapses))
        ends[[0, -1]] = 0.5  # trapezoid
        shared = observer[:, None] + 19 * np.log1p(-lapses) + np.log(ends)
        given = []
        for one, thresholds in zip(counts, axes.thresholds, strict=True):
            # (t, e, l) to (s, l, t): the exponent of the distortion is summed over.
            logs = _log_likelihood(one, curve, thresholds, exponents, lapses)
            top = logs.max()
            table = np.einsum("se,tel->slt", mixing, np.exp(logs - top))
            total = np.maximum(table.sum(axis=2), 1e-300)
            shared = shared + np.log(total)
            given.append(table / total[:, :, None])
        weight = np.exp(shared - shared.max())
        self.weight = weight / weight.sum()
        self.given = given

    def marginal(self, i: int) -> Array:
        """Return the probabilities of the i-th threshold's axis."""
        return np.asarray(np.einsum("sl,slt->t", self.weight, self.given[i]))

    def shared_mean(self, which: int) -> float:
        """Return the mean of ln b of the observer (0), or of its lapses (1)."""
        axis = (self.axes.exponents, self.axes.lapses)[which]
        return float(self.weight.sum(axis=1 - which) @ axis)

    def moments(self) -> tuple[Array, Array]:
        """Return means ``(K,)`` and covariance ``(K, K)`` of ln T."""
        weight = self.weight.reshape(-1)
        means, spreads = [], []
        for table, axis in zip(self.given, self.axes.thresholds, strict=True):
            mean = (table @ axis).reshape(-1)
            means.append(mean)
            spreads.append(float(weight @ ((table @ axis**2).reshape(-1) - mean**2)))
        centred = np.stack(means) - (np.stack(means) @ weight)[:, None]
        covariance = (centred * weight) @ centred.T + np.diag(spreads)
        return np.stack(means) @ weight, covariance

    def states(self, confidence: float) -> tuple[tuple[str, ...], Array]:
        """Say which thresholds the answers tell, and where each lies.

        An end of an interval in the outer quarter of the margin lies where the axis stops, not
        where an answer puts it: it is open.
        """
        states, intervals = [], np.empty((len(self._counts), 2))
        for i, (one, axis) in enumerate(zip(self._counts, self.axes.thresholds, strict=True)):
            low, high = central_interval(axis, self.marginal(i), confidence)
            is_open = (low < axis[0] + _MARGIN / 4, high > axis[-1] - _MARGIN / 4)
            state = {(0, 0): "known", (1, 0): "below", (0, 1): "above"}.get(is_open, "unknown")
            states.append(state if one.num_trials else "empty")
            intervals[i] = -np.inf if is_open[0] else low, np.inf if is_open[1] else high
        return tuple(states), intervals

    def narrowed(self, states: Sequence[str]) -> Axes:
        """Return finer axes about where this posterior is; those of unknown thresholds stay."""
        means, covariance = self.moments()
        reach = 6 * np.sqrt(np.diag(covariance))
        ends = [
            (max(axis[0], mean - far), min(axis[-1], mean + far))
            if state == "known"
            else (axis[0], axis[-1])
            for axis, mean, far, state in zip(
                self.axes.thresholds, means, reach, states, strict=True
            )
        ]
        by_exponent, by_lapse = self.weight.sum(axis=1), self.weight.sum(axis=0)
        room = 4 * self._prior.distortion_spread
        return Axes(
            _stepped(ends),
            _about(self.axes.exponents, by_exponent, room),
            _about(self.axes.lapses, by_lapse, 0.0),
        )

    def difference(self, i: int, j: int) -> tuple[Array, Array]:
        """Return values and probabilities of ln T_i − ln T_j; given what is shared, independent."""
        a, b = self.axes.thresholds[i], self.axes.thresholds[j]
        count = len(a) + len(b) - 1
        values = a[0] - b[-1] + (a[1] - a[0]) * np.arange(count)
        size = 1 << (count - 1).bit_length()
        left = np.fft.rfft(self.given[i], size, axis=2)
        right = np.fft.rfft(self.given[j][:, :, ::-1], size, axis=2)
        summed = np.einsum("sl,slf->f", self.weight, left * right)
        density = np.maximum(np.fft.irfft(summed, size)[:count], 0.0)
        return values, density / density.sum()

    def deviances(self) -> Array:
        """Return −2 ln of the likelihood at the posterior means over that of the cells' shares."""
        means, _ = self.moments()
        exponent, lapse = self.shared_mean(0), self.shared_mean(1)
        found = np.empty(len(means))
        for i, (one, mean) in enumerate(zip(self._counts, means, strict=True)):
            axis = [np.array([value]) for value in (mean, exponent, lapse)]
            log = float(_log_likelihood(one, self._curve, *axis)[0, 0, 0])
            own = one.correct / np.maximum(one.trials, 1)
            found[i] = 2 * (_binomial(one, own) - log)
        return found


def _about(axis: Array, weights: Array, room: float) -> Array:
    mean = float(weights @ axis)
    far = 5 * float(np.sqrt(weights @ (axis - mean) ** 2)) + room
    return np.linspace(max(axis[0], mean - far), min(axis[-1], mean + far), len(axis))


def _log_likelihood(
    counts: Counts, curve: TaskCurve, thresholds: Array, exponents: Array, lapses: Array
) -> Array:
    """Return ln of the binomial likelihood ``(t, e, l)``, without the coefficients."""
    total = np.zeros((len(thresholds), len(exponents), len(lapses)))
    for alpha, n, right in zip(counts.amplitudes, counts.trials, counts.correct, strict=True):
        if n == 0:
            continue
        log_d = (np.log(alpha) - thresholds)[:, None] * np.exp(exponents)
        share = curve(log_d)[:, :, None]
        p = share + lapses * (curve.chance - share)
        if right:
            total += right * np.log(p)
        if n > right:
            total += (n - right) * np.log(np.maximum(1 - p, 1e-300))
    return total


def _binomial(counts: Counts, share: Array) -> float:
    wrong = counts.trials - counts.correct
    return float((xlogy(counts.correct, share) + xlogy(wrong, 1 - share)).sum())


def central_interval(axis: Array, weights: Array, confidence: float) -> tuple[float, float]:
    """Return the central interval; between two points of the axis the mass is spread evenly."""
    step = axis[1] - axis[0]
    edges = np.concatenate([[axis[0] - step / 2], axis + step / 2])
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    tail = (1 - confidence) / 2
    low, high = np.interp([tail, 1 - tail], mass / mass[-1], edges)
    return float(low), float(high)
