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
    witnesses
        Random vectors of the present attempt, the one that is followed included.
    banked
        For each end, the product of the chances that former witnesses of the attempt reached, and
        the edge beyond which.
    traces, waits
        For each end, the smallest trace of the present witness over its limit, and products since.
    suspect
        The end and the λ that the space grows at, and its ‖y‖ when it was chosen; or empty.
    plain
        Whether more than the tolerance asks for was given up, as rounding hides it.
    filling
        Whether witnesses show nothing more, and the space grows until it is the whole.
    proved
        Whether the search for missed pairs has ended with its claim.
    given_up
        Whether it ended without.
    edges
        Proved edges of F′: ``top`` above all of its spectrum, ``bottom`` below. An end that is not
        here is not proved.
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
    witnesses: int = 1
    banked: dict[str, list[float]] = field(default_factory=dict)
    traces: dict[str, float] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)
    suspect: list[Any] = field(default_factory=list)
    plain: bool = False
    filling: bool = False
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
