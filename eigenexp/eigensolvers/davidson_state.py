"""The state of the generalised Davidson method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eigenexp.eigensolvers.state import State, part, vectors
from eigenexp.eigensolvers.surrogates import surrogate_from_state

__all__ = ["DavidsonState"]


@dataclass
class DavidsonState(State):
    """What Davidson knows beside its search space.

    Attributes
    ----------
    krylov
        Whether the space still is a Krylov space. Top pairs come cheapest from one, which any other
        vector would spoil.
    probes_left, probed
        Random vectors still to come, and whether there were any.
    waiting, guessed
        Vectors worth trying next, ``(n, s)``, and the places in the space of all that were guessed.
    surrogate, inner, refits
        A ≈ F, steps of the inner solve with it, and the sizes at which it is estimated again.
    pixel
        Where one pixel is multiplied, once another surrogate than the convolution is looked for.
    settled
        Whether the surrogate is chosen.
    """

    krylov: bool = True
    probes_left: int = 0
    probed: bool = False
    waiting: Any = vectors()
    guessed: list[int] = field(default_factory=list)
    surrogate: Any = part(surrogate_from_state, save=lambda made: made.state())
    inner: int = 0
    refits: list[int] = field(default_factory=list)
    pixel: int | None = None
    settled: bool = False
