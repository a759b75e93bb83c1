"""What the last stage of a solve knows of its pairs, and the phases it goes through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eigenexp.eigensolvers.certificates.frozen import Frozen
from eigenexp.eigensolvers.state import State, numbers, part

__all__ = ["GUARDING", "MAIN", "SEARCHING", "VERIFYING", "Certificate"]

MAIN, SEARCHING, GUARDING, VERIFYING = "main", "searching", "guarding", "verifying"


@dataclass
class Certificate(State):
    """What the last stage knows.

    Attributes
    ----------
    phase
        ``"main"`` while the method works by itself, then ``"searching"``, ``"guarding"`` (the
        search for missed pairs) and ``"verifying"`` (true products).
    norms
        Residual norms of the wanted pairs when last measured, ``(wanted,)``.
    frozen
        The wanted vectors and the witness of the present attempt.
    attempts, following
        Attempts begun, and products of the present one.
    least, stalled
        The smallest trace of the attempt over its limit, and products since.
    proved
        Whether the search for missed pairs has ended with its claim.
    given_up
        Whether it ended without.
    edges
        Proved edges of F′: ``top`` above all of its spectrum, ``bottom`` below.
    refine
        How much smaller than first thought the residuals at the bottom are to be.
    standing, stood
        Residuals when there last was progress, and steps since.
    rule
        How the certificate was made.
    """

    phase: str = MAIN
    norms: Tensor = numbers()
    frozen: Any = part(lambda saved, like: _restored(Frozen(), saved, like))
    attempts: int = 0
    following: int = 0
    least: float = float("inf")
    stalled: int = 0
    proved: bool = False
    given_up: bool = False
    edges: dict[str, float] = field(default_factory=dict)
    refine: float = 1.0
    standing: list[float] = field(default_factory=list)
    stood: int = 0
    truth: Any = part()
    rule: str = "frozen"


def _restored(state: State, saved: Any, like: Tensor) -> State:
    state.restore(saved, like)
    return state
