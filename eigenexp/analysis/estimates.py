"""A number that was sampled, with the interval in which the true one lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student
from torch import Tensor

from eigenexp.console import known_digits

__all__ = ["Estimate", "half_width"]


@dataclass(frozen=True)
class Estimate:
    """A value and an interval that holds the true one with the card's confidence.

    Attributes
    ----------
    value, low, high
        ``low <= value <= high``; all equal where the number is exact but for rounding.
    """

    value: float
    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        """Whether nothing was sampled."""
        return self.low == self.high

    def __str__(self) -> str:
        if self.is_exact:
            return f"{self.value:.6g}"
        return known_digits(self.value, max(self.high - self.value, self.value - self.low))

    def as_record(self) -> dict[str, float]:
        """Return the three numbers."""
        return {"value": self.value, "low": self.low, "high": self.high}


def half_width(groups: Sequence[Tensor], confidence: float) -> float:
    """Return the half width of an interval about the sum of the means of independent samples.

    Parameters
    ----------
    groups
        Each ``(s,)``, s ≥ 2: the estimate is the sum of their means.
    confidence
        Of the two-sided interval.

    Notes
    -----
    Student's t with the degrees of freedom of Welch and Satterthwaite (Welch 1947).
    """
    parts = [(float(x.var()) / len(x), len(x) - 1) for x in groups]
    total = sum(variance for variance, _ in parts)
    if not total > 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / dof for variance, dof in parts)
    return float(student.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(total)
