"""Rounding to whole levels: plain, dithered, or such that the model sees least of the error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eigenexp.errors import InputError
from eigenexp.stimuli.levels import Light

__all__ = [
    "MOST_PIXELS",
    "ROUNDINGS",
    "forecast",
    "round_dithered",
    "round_for_model",
    "round_plain",
]

Array = npt.NDArray[Any]

ROUNDINGS = ("plain", "dithered", "model")
MOST_PIXELS = 4096
"""Values of a picture for which the dense F of model-aware rounding is gathered: 134 MB."""
_MOST_MOVES = 20  # a value, on average; a few are the rule


def round_plain(levels: Array) -> Array:
    """Return the nearest whole levels; a half goes to the even one."""
    return np.asarray(np.rint(levels))


def round_dithered(levels: Array, dither: Array) -> Array:
    """Return ⌊levels + dither⌋, right on average for ``dither`` uniform in [0, 1).

    The same dither for a stimulus and its reference leaves what both share as it is.
    """
    return np.asarray(np.floor(levels + dither))


def round_for_model(
    wanted: Array, levels: Array, reference: Array, fisher: Array, light: Light
) -> Array:
    """Return whole levels whose error the model sees least: coordinate descent on qᵀFq.

    q = (picture of the levels) − (reference) − (wanted change). From the plain rounding on, the
    one value is moved by one level whose move lowers qᵀFq most, until none does; no value moves a
    whole level away from where it should be.

    Parameters
    ----------
    wanted
        The change sign·αe, of any shape, in picture values.
    levels
        What the picture with it would be, not rounded.
    reference
        The picture without it, as its file is read back.
    fisher
        Dense F, ``(n, n)``.
    light
        From levels to picture values.

    Raises
    ------
    InputError
        When F is of another size.
    """
    n = levels.size
    if fisher.shape != (n, n):
        raise InputError(f"fisher: expected shape {(n, n)}, got {fisher.shape}")
    flat = levels.reshape(-1)
    found = np.rint(flat)
    aim = (reference + wanted).reshape(-1)
    error = light.decode(found) - aim
    seen = fisher @ error
    own = fisher.diagonal().copy()
    steps = np.stack([_step(found, by, flat, light) for by in (-1, 1)])
    for _ in range(_MOST_MOVES * n):
        gains = steps * (2 * seen + steps * own)  # of qᵀFq, by each move
        gains[steps == 0] = 0.0
        best = int(gains.argmin())
        direction, place = divmod(best, n)
        if not gains[direction, place] < -1e-12 * max(float(error @ seen), 0.0):
            break
        step = steps[direction, place]
        error[place] += step
        seen += step * fisher[:, place]
        found[place] += 1 if direction else -1
        here = slice(place, place + 1)
        for row, by in enumerate((-1, 1)):
            steps[row, here] = _step(found[here], by, flat[here], light)
    return found.reshape(levels.shape)


def _step(found: Array, by: int, wanted: Array, light: Light) -> Array:
    """Return the change of each value by a move of one level; 0 where it must not be made."""
    moved = found + by
    allowed = (np.abs(moved - wanted) <= 1) & (moved >= 0) & (moved <= light.full)
    kept = np.where(allowed, moved, found)
    return np.asarray(light.decode(kept) - light.decode(found))


def forecast(trace: float, light: Light) -> float:
    """Return what plain rounding adds to d′² on average: tr(F) Δ²/12, Δ one level.

    It holds where the change is a level or more at most pixels, and in a display whose levels are
    evenly spaced in the picture's values. A forecast: what counts is d′ read back from the file.
    """
    step = (light.display.white - light.display.black) / light.full
    return float(trace * step**2 / 12)
