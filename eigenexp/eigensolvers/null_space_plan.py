"""Which way to a null space known beforehand is cheaper: the rows of J, or a descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Plan", "Way", "make_plan"]

Way = Literal["rows", "descent"]


@dataclass(frozen=True)
class Plan:
    """The way that is predicted to be cheaper, and what it costs.

    Attributes
    ----------
    products
        Predicted, the measuring of the vectors at the end included.
    reason
        A sentence.
    """

    way: Way
    products: float
    reason: str


def make_plan(m: int, n: int, k: int, *, eps: float, has_rows: bool = True) -> Plan:
    """Choose the way to k vectors of the null space of J ``(m, n)`` by predicted cost.

    A descent is predicted to take as many steps as for a random J of that shape: its condition is
    κ = (1 + √(m/n)) / (1 − √(m/n)) (Marchenko & Pastur 1967), and ½ κ ln(2/eps) steps reach
    rounding. Pooled blurs are better, deep networks may be worse; a descent that has cost what the
    rows would is given up for them, so that nothing costs more than twice the cheaper way.

    Parameters
    ----------
    has_rows
        Whether Jᵀ is at hand, and the rows have room in memory.
    """
    rows = m / 2 + k
    root = math.sqrt(m / n)
    condition = (1 + root) / max(1 - root, 1e-300)
    steps = min(0.5 * condition * math.log(2 / eps), 4.0 * m)
    descent = k * (steps + 2)
    if has_rows and rows <= descent:
        reason = f"the {m} rows of J cost {m} half products, a descent about {descent:.0f} products"
        return Plan("rows", rows, reason)
    if not has_rows:
        return Plan("descent", descent, "the rows of J are not at hand, or do not fit in memory")
    reason = f"a descent costs about {descent:.0f} products, the {m} rows of J {rows:.0f}"
    return Plan("descent", descent, reason)
