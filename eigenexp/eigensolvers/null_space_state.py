"""All that changes while vectors of a known null space are made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eigenexp.eigensolvers import state as kinds
from eigenexp.eigensolvers.state import State

__all__ = ["NullSpaceState"]


@dataclass
class NullSpaceState(State):
    """All that changes.

    Attributes
    ----------
    way, reason, has_rows, has_responses
        Empty until the first product has told m; whether rows of J can be gathered; whether J v
        comes with each product.
    stage
        ``"starting"``, ``"gathering"``, ``"descending"``, ``"restarting"`` or ``"measuring"``.
    m, rows, gathered
        The responses, how many rows of J are told, and these ``(rows, n)``.
    rounds, steps, spent
        Rounds begun, steps of the present one, half products so far.
    vectors
        ``(n, k)``: what goes to the null space.
    gradients, directions, energies
        ``(n, k)``, ``(n, k)``, ``(k,)``: F v, the conjugate directions and ‖F v‖² of the descent.
    first
        ``(k,)``: ‖F v‖ when the round began.
    heights
        ``(k,)``: ‖J v‖² / ‖v‖² as last measured.
    is_open
        ``(k,)``: whose descent goes on.
    largest
        The largest Rayleigh quotient seen, a lower bound of λmax.
    values, residuals
        ``(k,)``: of the vectors returned, from true products.
    """

    way: str = ""
    reason: str = ""
    has_rows: bool = False
    has_responses: bool = False
    stage: str = "starting"
    m: int = 0
    rows: int = 0
    rounds: int = 0
    steps: int = 0
    spent: int = 0
    largest: float = 0.0
    gathered: Tensor | None = kinds.vectors()
    vectors: Tensor | None = kinds.vectors()
    gradients: Tensor | None = kinds.vectors()
    directions: Tensor | None = kinds.vectors()
    energies: Tensor | None = kinds.numbers(begins_empty=False)
    first: Tensor | None = kinds.numbers(begins_empty=False)
    heights: Tensor | None = kinds.numbers(begins_empty=False)
    is_open: Tensor | None = kinds.numbers(begins_empty=False)
    values: Tensor | None = kinds.numbers(begins_empty=False)
    residuals: Tensor | None = kinds.numbers(begins_empty=False)
