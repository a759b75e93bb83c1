"""What an eigensolver is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eigenexp.errors import InputError

__all__ = ["MISS_CHANCE", "Settings", "Which"]

Which = Literal["top", "bottom", "both"]

MISS_CHANCE = 1e-3
"""Default of ``miss_chance``."""


@dataclass(frozen=True)
class Settings:
    """What was asked of a solver; never changes.

    Attributes
    ----------
    n
        Order of F: the number of picture values.
    k
        Eigenpairs wanted at each wanted end.
    which
        ``"top"``, ``"bottom"`` or ``"both"``.
    tol
        A pair may converge when ‖Fv − θv‖ ≤ tol · λmax.
    seed
        Seeds the solver's own generator; the global random state is never touched.
    max_products
        Budget of products (columns of F·V); ``None`` for no limit.
    miss_chance
        Chance at most, over both ends, that a pair beyond the ``converged`` ones was missed.
        ``None`` makes no search, and no pair is then called converged.
    relative_tol
        Go on until each eigenvalue of the bottom is known to this relative accuracy by a proved
        lower bound, or is below what the arithmetic tells from 0; ``None``: ``tol`` is enough.
    rank_bound
        Known upper bound of the rank of F (the number m of responses, where m < n): proves a
        null space of dimension n − rank_bound.
    image_shape
        ``(C, H, W)`` of the picture, where there is one; preconditioners use it.
    """

    n: int
    k: int = 1
    which: Which = "both"
    tol: float = 1e-4
    seed: int = 0
    max_products: int | None = None
    rank_bound: int | None = None
    image_shape: tuple[int, ...] | None = None
    miss_chance: float | None = MISS_CHANCE
    relative_tol: float | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n: expected at least 1 picture value, got {self.n}")
        if not 1 <= self.k <= self.n:
            raise InputError(
                f"k: expected 1 to n = {self.n} eigenpairs, got {self.k}; ask for fewer pairs or "
                "use a larger picture"
            )
        if self.which not in ("top", "bottom", "both"):
            raise InputError(f"which: expected 'top', 'bottom' or 'both', got {self.which!r}")
        if not self.tol > 0:
            raise InputError(f"tol: expected a positive number, got {self.tol}")
        if self.max_products is not None and self.max_products < 1:
            raise InputError(f"max_products: expected at least 1 or None, got {self.max_products}")
        if self.miss_chance is not None and not 0 < self.miss_chance < 1:
            raise InputError(
                f"miss_chance: expected a number between 0 and 1, or None for no search, got "
                f"{self.miss_chance}"
            )
        if self.relative_tol is not None and not 0 < self.relative_tol < 1:
            raise InputError(
                f"relative_tol: expected a number between 0 and 1, or None, got {self.relative_tol}"
            )

    @property
    def wanted(self) -> tuple[int, ...]:
        """Places of the wanted pairs in the whole spectrum, increasing (0 is the largest)."""
        top = range(self.k) if self.which != "bottom" else range(0)
        bottom = range(self.n - self.k, self.n) if self.which != "top" else range(0)
        return tuple(sorted({*top, *bottom}))
