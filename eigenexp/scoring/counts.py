"""Answers counted by cell, and what is believed of an observer before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenexp.errors import InputError

__all__ = ["Counts", "Prior"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """What one observer answered to the stimuli of one distortion.

    Parameters
    ----------
    name
        Of the distortion.
    amplitudes
        ``(k,)`` α > 0 of the cells, in any order; may repeat.
    trials, correct
        ``(k,)`` how often shown, and how often right; 0 trials is an empty cell.

    Raises
    ------
    InputError
        When lengths differ, or a number is out of range.
    """

    name: str
    amplitudes: Array
    trials: NDArray[np.int64]
    correct: NDArray[np.int64]

    def __post_init__(self) -> None:
        amplitudes = np.asarray(self.amplitudes, dtype=np.float64).reshape(-1)
        trials, correct = (np.asarray(v).reshape(-1) for v in (self.trials, self.correct))
        if not len(amplitudes) == len(trials) == len(correct) or not len(amplitudes):
            raise InputError(
                f"counts of {self.name}: expected as many amplitudes, trials and correct, got "
                f"{len(amplitudes)}, {len(trials)} and {len(correct)}"
            )
        if not (np.isfinite(amplitudes) & (amplitudes > 0)).all():
            raise InputError(f"counts of {self.name}: expected amplitudes above 0")
        if not ((correct >= 0) & (correct <= trials)).all():
            raise InputError(
                f"counts of {self.name}: expected from 0 to as many correct as there are trials"
            )
        object.__setattr__(self, "amplitudes", amplitudes)
        object.__setattr__(self, "trials", trials.astype(np.int64))
        object.__setattr__(self, "correct", correct.astype(np.int64))

    @property
    def num_trials(self) -> int:
        """Of all cells together."""
        return int(self.trials.sum())


@dataclass(frozen=True)
class Prior:
    """What is believed of an observer before the first trial.

    Attributes
    ----------
    exponent, exponent_spread
        Middle of b, and the standard deviation of ln b between observers. d′ grows in proportion to
        a small change (b = 1); detection near an absolute threshold is steeper (b = 2 to 3).
    distortion_spread
        Standard deviation of ln b between the distortions of one observer.
    most_lapses
        Lapses are between 0 and this, the few more likely: Beta(1, 20), cut there.
    """

    exponent: float = 1.0
    exponent_spread: float = 0.5
    distortion_spread: float = 0.1
    most_lapses: float = 0.1
