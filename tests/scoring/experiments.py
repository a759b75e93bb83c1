"""Simulated experiments with a known truth, for the tests of thresholds and scores."""

from __future__ import annotations

from typing import Any

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
    trials: int, experiments: int, seed: int = 0, **options: Any
) -> list[ee.scoring.Difference]:
    """D of so many simulated experiments, of the two distortions of one observer each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(experiments):
        pair = [answers("top", 1.0, trials, rng), answers("bottom", np.exp(D), trials, rng)]
        fit = ee.scoring.fit_thresholds(pair, **options)
        found.append(fit.difference("bottom", "top"))
    return found


MODELS = ("LN", "LG", "LGG", "OnOff")
PRINCIPAL = np.exp([[-10.0699, -8.2516, -11.1351, -7.2419], [-1.6089, -13.6952, -5.8545, -5.2293]])
"""uᵀFu of the first and the second principal distortion of the four models at X24, with a floor of
1e-4 of each model's λmax: their variance is 26.645."""


def principal_design(levels: int = 6, reach: float = 2.4) -> ee.scoring.Design:
    """Both principal distortions at levels that hold the thresholds of all four models."""
    eigenvalues = np.asarray(PRINCIPAL)
    thresholds = -0.5 * np.log(eigenvalues)
    # Up to a gain each: as if half of a model's D were in either threshold.
    middles = thresholds - thresholds.mean(axis=0)
    amplitudes = np.concatenate([
        np.exp(np.linspace(row.min() - reach / 2, row.max() + reach / 2, levels)) for row in middles
    ])  # fmt: skip
    names = [name for name in ("first", "second") for _ in range(levels)]
    predictions = [
        ee.scoring.Prediction(
            model,
            amplitudes * np.sqrt(np.repeat(eigenvalues[:, i], levels)),
            {"first": eigenvalues[0, i], "second": eigenvalues[1, i]},
        )
        for i, model in enumerate(MODELS)
    ]
    return ee.scoring.Design(
        manifest="0123456789abcdef",
        task="2afc",
        alternatives=2,
        stimuli=tuple(f"{name}-{i}" for i, name in enumerate(names)),
        distortions=tuple(names),
        amplitudes=amplitudes,
        predictions=tuple(predictions),
        contrasts=(ee.scoring.Contrast("second", "first", "principal 0 and 1", "LN"),),
    )
