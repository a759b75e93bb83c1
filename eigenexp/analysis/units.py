"""Discriminability and what follows from it: thresholds, shares of correct answers, contrasts.

d′ = α√λ is the discriminability of a picture from itself changed by αe, in standard deviations of
the noise (Green and Swets 1966), so that 1/√λ is the amplitude at d′ = 1.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from scipy.integrate import quad
from scipy.special import ndtr
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.spectrum import Spectrum

__all__ = ["TASKS", "amplitude_at", "d_prime", "fraction_correct", "thresholds"]

TASKS = ("2afc", "mafc", "oddity")


def d_prime(alpha: float, eigenvalue: float) -> float:
    """Return d′ = α√λ.

    Parameters
    ----------
    alpha
        Amplitude α of e, in the picture's units.
    eigenvalue
        λ.
    """
    return alpha * math.sqrt(max(eigenvalue, 0.0))


def amplitude_at(eigenvalue: float, d_prime: float = 1.0) -> float:
    """Return the amplitude d′/√λ at which a change has this d′; infinite for λ = 0.

    Raises
    ------
    InputError
        When d′ is not above 0.
    """
    if not d_prime > 0:
        raise InputError(f"d_prime: expected a number above 0, got {d_prime}")
    return d_prime / math.sqrt(eigenvalue) if eigenvalue > 0 else math.inf


def fraction_correct(d_prime: float, task: str = "2afc", alternatives: int = 3) -> float:
    """Return how often an ideal observer is right.

    Parameters
    ----------
    d_prime
        At least 0.
    task
        ``"2afc"``: Φ(d′/√2). ``"mafc"``: one of ``alternatives`` is changed,
        ∫ φ(z − d′) Φ(z)^{m−1} dz (Green and Dai 1991). ``"oddity"``: one of three intervals is, and
        the observer does not know how: the one furthest from the other two is chosen,
        2 ∫₀^∞ φ(u) [Φ(d′√⅔ − u√3) + Φ(−d′√⅔ − u√3)] du (Ennis 1993).
    alternatives
        m, for ``"mafc"``.

    Raises
    ------
    InputError
        When there is no such task, or a number is out of range.
    """
    if not d_prime >= 0:
        raise InputError(f"d_prime: expected at least 0, got {d_prime}")
    if task == "2afc":
        return float(ndtr(d_prime / math.sqrt(2)))
    if task == "mafc":
        if alternatives < 2:
            raise InputError(f"alternatives: expected at least 2, got {alternatives}")
        return _forced_choice(float(d_prime), alternatives)
    if task == "oddity":
        return _oddity(float(d_prime))
    raise InputError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")


@functools.lru_cache(maxsize=1024)
def _forced_choice(d_prime: float, alternatives: int) -> float:
    def right(z: float) -> float:
        density = math.exp(-0.5 * (z - d_prime) ** 2) / math.sqrt(2 * math.pi)
        return float(density * ndtr(z) ** (alternatives - 1))

    # Beyond nine standard deviations nothing is left.
    return float(quad(right, d_prime - 9, d_prime + 9, epsabs=1e-10)[0])


@functools.lru_cache(maxsize=1024)
def _oddity(d_prime: float) -> float:
    # The two unchanged ones differ by √2 u, and both are further from the third (Ennis 1993).
    def right(u: float) -> float:
        apart, shift = math.sqrt(3) * u, d_prime * math.sqrt(2 / 3)
        density = 2 * math.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
        return float(density * (ndtr(shift - apart) + ndtr(-shift - apart)))

    return float(quad(right, 0.0, 9.0, epsabs=1e-10)[0])


def thresholds(spectrum: Spectrum, image: Tensor | None = None) -> list[dict[str, Any]]:
    """Return the amplitude at d′ = 1 of each pair, in several units.

    Parameters
    ----------
    spectrum
        Pairs.
    image
        The picture in [0, 1]; tells RMS contrasts.

    Returns
    -------
    list of dict
        ``index``; ``threshold``, α = 1/√λ in the picture's units; ``peak_grey_levels`` and
        ``rms_grey_levels`` of αe, of 255; with an image ``rms_contrast``, the standard deviation
        of αe over the picture's mean. None where λ = 0: no amplitude is enough.
    """
    mean = None if image is None else float(image.double().mean())
    rows = []
    for i, null in enumerate(spectrum.is_null):
        e = spectrum.eigenvectors[i].double()
        alpha = amplitude_at(0.0 if null else float(spectrum.eigenvalues[i]))
        known = math.isfinite(alpha)
        row: dict[str, Any] = {
            "index": int(spectrum.eigenindex[i]),
            "threshold": alpha if known else None,
            "peak_grey_levels": 255 * alpha * float(e.abs().max()) if known else None,
            "rms_grey_levels": 255 * alpha * float(e.square().mean().sqrt()) if known else None,
        }
        if mean is not None:
            usable = known and mean > 0
            spread = float(e.std(correction=0))
            row["rms_contrast"] = alpha * spread / mean if usable else None
        rows.append(row)
    return rows
