"""Simulated experiments with a known truth, for the tests of thresholds and scores."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

import eigenexp as ee

LAPSES = 0.01
LEVELS = np.geomspace(0.5, 4.0, 6)
"""Multiples of a distortion's threshold."""
D = 4.417
"""ln T(bottom) − ln T(top) of OnOff at the 32² crop of camera."""


def answers(
    name: str, threshold: float, trials: int, rng: np.random.Generator, exponent: float = 1.0
) -> ee.scoring.Counts:
    """2AFC answers of an observer with d′ = (α / T)^b at six levels about the threshold."""
    shown = np.full(len(LEVELS), trials // len(LEVELS))
    shown[: trials % len(LEVELS)] += 1
    seen = ndtr(LEVELS**exponent / np.sqrt(2))
    share = LAPSES / 2 + (1 - LAPSES) * seen
    return ee.scoring.Counts(name, threshold * LEVELS, shown, rng.binomial(shown, share))


def ideal_deviation(trials: int) -> float:
    """Cramér–Rao deviation of D where exponents and lapses are known."""
    seen = ndtr(LEVELS / np.sqrt(2))
    share = LAPSES / 2 + (1 - LAPSES) * seen
    slope = (1 - LAPSES) * LEVELS / np.sqrt(2) * np.exp(-(LEVELS**2) / 4) / np.sqrt(2 * np.pi)
    information = trials / len(LEVELS) * (slope**2 / (share * (1 - share))).sum()
    return float(np.sqrt(2 / information))


def differences(
    trials: int, experiments: int, seed: int = 0, **options: object
) -> list[ee.scoring.Difference]:
    """D of so many simulated experiments, of the two distortions of one observer each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(experiments):
        pair = [answers("top", 1.0, trials, rng), answers("bottom", np.exp(D), trials, rng)]
        fit = ee.scoring.fit_thresholds(pair, **options)  # type: ignore[arg-type]
        found.append(fit.difference("bottom", "top"))
    return found
