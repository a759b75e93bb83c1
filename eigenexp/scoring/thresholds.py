"""Thresholds of one observer and their differences, whatever engine found them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eigenexp.errors import InputError
from eigenexp.scoring.grid import central_interval

__all__ = ["Difference", "Posterior", "Thresholds"]

Array = NDArray[np.float64]


class Posterior(Protocol):
    """What is asked of a posterior once thresholds are found."""

    def difference(self, i: int, j: int) -> tuple[Array, Array]:
        """Return values of ln T_i − ln T_j, in equal steps, and their probabilities."""
        ...


@dataclass(frozen=True)
class Thresholds:
    """Log thresholds of one observer, with how well they are known.

    Attributes
    ----------
    names
        ``K`` distortions.
    log_thresholds
        ``(K,)`` posterior means of ln T; NaN where the answers do not tell.
    covariance
        ``(K, K)`` of the posterior; NaN in the rows and columns of those.
    intervals
        ``(K, 2)`` of ln T, central, at ``confidence``; an end that no answer bounds is infinite.
    states
        ``K`` of ``"known"``, ``"below"`` (every level is seen), ``"above"`` (none is),
        ``"unknown"`` (too few answers to tell), ``"empty"`` (no trial).
    exponent, lapses
        Posterior means of b and l, of the observer.
    deviances
        ``(K,)`` of the cells at the posterior mean, against a share of their own for each.
    confidence
        Of the intervals.
    task
        Whose curve was fitted.
    posterior
        On its grid, for :meth:`difference`.
    """

    names: tuple[str, ...]
    log_thresholds: Array
    covariance: Array
    intervals: Array
    states: tuple[str, ...]
    exponent: float
    lapses: float
    deviances: Array
    confidence: float
    task: str
    posterior: Posterior

    @property
    def known(self) -> tuple[int, ...]:
        """Places of the thresholds that the answers tell."""
        return tuple(i for i, state in enumerate(self.states) if state == "known")

    @property
    def deviations(self) -> Array:
        """``(K,)`` standard deviations of ln T."""
        return np.sqrt(np.diag(self.covariance))

    def difference(self, upper: str, lower: str) -> Difference:
        """Return D = ln T(upper) − ln T(lower) with its interval.

        Raises
        ------
        InputError
            When a name is not among :attr:`names`, or its threshold is not known.
        """
        places = []
        for name in (upper, lower):
            if name not in self.names:
                raise InputError(
                    f"distortion: expected one of {', '.join(self.names)}, got {name!r}"
                )
            place = self.names.index(name)
            if self.states[place] != "known":
                raise InputError(
                    f"D of {upper} and {lower}: expected two known thresholds, got one that is "
                    f"{self.states[place]} ({name})"
                )
            places.append(place)
        values, weights = self.posterior.difference(*places)
        mean = float(weights @ values)
        deviation = float(np.sqrt(weights @ (values - mean) ** 2))
        low, high = central_interval(values, weights, self.confidence)
        return Difference(upper, lower, mean, deviation, low, high)


@dataclass(frozen=True)
class Difference:
    """D = ln T(upper) − ln T(lower), nats.

    Attributes
    ----------
    upper, lower
        Names of the distortions.
    value, deviation
        Mean and standard deviation of the posterior.
    low, high
        Ends of the central interval.
    """

    upper: str
    lower: str
    value: float
    deviation: float
    low: float
    high: float
