"""Amplitudes of one distortion: for a wanted d′, within its radii."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from eigenexp.stimuli.settings import Settings

__all__ = ["Radii", "Wanted", "reach_level", "wanted_amplitudes"]

_FACTOR = 1.5  # between two looks for a bracket
_PRECISION = 1e-6  # of ln α


@dataclass(frozen=True)
class Radii:
    """Up to which α a distortion is what F says of it, and what a display shows of it.

    Attributes
    ----------
    validity, clip
        See :class:`eigenexp.analysis.PairAmplitude`; None: undefined.
    reach
        Where no picture is left.
    """

    validity: float | None
    clip: float | None
    reach: float

    def most(self, settings: Settings) -> float:
        """Return the largest α within the radii that the settings do not ask to leave."""
        limits = [self.reach]
        for flag, radius in (("validity", self.validity), ("clip_radius", self.clip)):
            if flag not in settings.allow and radius is not None:
                limits.append(radius)
        return min(limits)


@dataclass(frozen=True)
class Wanted:
    """One amplitude: α with the d′ it was asked for, or why there is none."""

    level: float | None
    alpha: float | None
    problem: str = ""


def reach_level(
    d_prime: Callable[[float], float], level: float, start: float, reach: float
) -> float | None:
    """Return an α > 0 with d′(α) = ``level``; None where there is none up to ``reach``.

    Of several, one next to ``start``, where F predicts it.

    Parameters
    ----------
    d_prime
        d′ at α > 0; NaN where it is not defined, which counts as out of reach.
    level
        Above 0.
    start
        Where to look first.
    reach
        Where to stop looking.
    """
    low = high = min(start, reach)
    value = d_prime(low)
    if value == level:
        return low
    if math.isfinite(value) and value < level:
        while value < level:
            if high >= reach:
                return None
            low, high = high, min(high * _FACTOR, reach)
            value = d_prime(high)
            if not math.isfinite(value):
                return None
    else:
        while not value < level:
            low, high = low / _FACTOR, low
            if low < 1e-12 * reach:
                return None
            value = d_prime(low)
        if not math.isfinite(d_prime(high)):
            return None
    found = brentq(
        lambda log: d_prime(math.exp(log)) - level,
        math.log(low),
        math.log(high),
        xtol=_PRECISION,
        rtol=1e-12,
    )
    return float(math.exp(found))


def wanted_amplitudes(
    d_prime: Callable[[float], float], slope: float, radii: Radii, settings: Settings
) -> list[Wanted]:
    """Return one :class:`Wanted` for each stimulus asked for of a distortion with a sign.

    Parameters
    ----------
    d_prime
        True d′ at α > 0, gain included, neither clipped nor rounded.
    slope
        gain · √λ; 0 where the model is blind to it.
    radii
        Of the distortion.
    settings
        Levels, a span, or amplitudes.
    """
    if settings.amplitudes is not None:
        return [Wanted(None, alpha) for alpha in settings.amplitudes]
    if not slope > 0:
        why = (
            "the model is blind to it, no amplitude has a d′; give amplitudes=…, or solve with "
            "noise=pixel_floor"
        )
        levels = settings.levels or (math.nan,) * settings.count
        return [Wanted(_finite(level), None, why) for level in levels]
    levels = settings.levels or ()
    if settings.span is not None:
        low, high, count = settings.span
        most = radii.most(settings)
        reached = d_prime(most * (1 - 1e-6))
        high = min(high, reached) if math.isfinite(reached) else high
        if not low < high:
            why = f"the span begins beyond its radii, which end at d′ = {reached:.3g}"
            return [Wanted(None, None, why)] * int(count)
        levels = tuple(float(level) for level in np.geomspace(low, high, int(count)))
    found = []
    for level in levels:
        alpha = reach_level(d_prime, level, level / slope, radii.reach)
        why = "" if alpha is not None else "no amplitude up to the picture's whole range reaches it"
        found.append(Wanted(level, alpha, why))
    return found


def _finite(level: float) -> float | None:
    return level if math.isfinite(level) else None
