"""What a pencil solver is asked for, what it knows, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eigenexp.comparison.correcting import Surrogates
from eigenexp.eigensolvers.settings import MISS_CHANCE
from eigenexp.eigensolvers.state import State, numbers, part
from eigenexp.errors import InputError
from eigenexp.spectrum import PairStatus

__all__ = ["SIDES", "SPARE", "PencilPairs", "PencilSettings", "PencilState", "Side"]

SIDES = ("first", "second")
SPARE = 4
"""Vectors frozen beyond the wanted ones at the most, to reach over a cluster."""


@dataclass(frozen=True)
class PencilSettings:
    """What was asked of a pencil solver; never changes.

    Attributes
    ----------
    n
        Picture values.
    k
        Pairs wanted on each side.
    which
        ``"both"`` tops, or that of the ``"first"`` or ``"second"`` operator relative to the sum.
    delta
        δ of S = F_A + F_B + δ, in units of the scaled F.
    floor
        Added to each F as well: with ``floor = delta / 2`` both are F + floor, S is their sum,
        and the two sides are the two ends of one pencil.
    tol
        A pair may converge when ‖F_A v − μSv‖ ≤ tol · ‖v‖_S.
    value_tol
        Go on until each μ is known to this by a proved bound; None: ``tol`` is enough.
    ratio_tol
        As ``value_tol``, for ln(μ/(1 − μ)).
    scales
        What F_A and F_B are divided by; None: λmax of each, found on the way.
    seed
        Of the solver's own generator.
    max_products
        Budget, columns times two; None for no limit.
    miss_chance
        Chance at most that a pair beyond the ``converged`` ones was missed, both sides and the
        scales' bounds together.
    basis_size
        Vectors of the search space at the most; None: what 1 GiB holds.
    alike
        Whether one operator may be a multiple of the other; refused otherwise.
    """

    n: int
    k: int = 1
    which: str = "both"
    delta: float = 1e-3
    floor: float = 0.0
    tol: float = 1e-5
    value_tol: float | None = None
    ratio_tol: float | None = None
    scales: tuple[float, float] | None = None
    seed: int = 0
    max_products: int | None = None
    miss_chance: float | None = MISS_CHANCE
    basis_size: int | None = None
    alike: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n: expected at least 1 picture value, got {self.n}")
        if not 1 <= self.k <= self.n:
            raise InputError(f"k: expected 1 to n = {self.n} pairs, got {self.k}")
        if self.which not in ("both", *SIDES):
            raise InputError(f"which: expected 'both', 'first' or 'second', got {self.which!r}")
        if not 0 <= self.delta < float("inf"):
            raise InputError(f"delta: expected a number from 0, got {self.delta}")
        if not 0 <= self.floor <= self.delta / 2:
            raise InputError(f"floor: expected 0 to delta / 2, got {self.floor}")
        for name in ("tol", "value_tol", "ratio_tol"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}: expected a positive number, got {value}")
        if self.scales is not None and not all(0 < s < float("inf") for s in self.scales):
            raise InputError(f"scales: expected two positive numbers, got {self.scales}")
        if self.miss_chance is not None and not 0 < self.miss_chance < 1:
            raise InputError(
                f"miss_chance: expected a number between 0 and 1, or None, got {self.miss_chance}"
            )
        if self.basis_size is not None and self.basis_size < 8 * (self.k + SPARE):
            raise InputError(
                f"basis_size: expected at least {8 * (self.k + SPARE)}, got {self.basis_size}"
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """0 for the first operator on top, 1 for the second."""
        return (0, 1) if self.which == "both" else (SIDES.index(self.which),)


@dataclass(frozen=True, eq=False)
class PencilPairs:
    """One side of a pencil: pairs (μ, v) in decreasing order with their certificates.

    ``mu (k,)``; ``vectors (n, k)`` of unit 2-norm; ``residuals (k,)``: ‖F v − μSv‖ / ‖v‖_S;
    ``error_bounds (k,)``: of μ, infinite where nothing is proved; ``status``, one a pair.
    """

    mu: Tensor
    vectors: Tensor
    residuals: Tensor
    error_bounds: Tensor
    status: tuple[PairStatus, ...]


@dataclass
class Side(State):
    """What is frozen and proved on one side.

    Attributes
    ----------
    frozen
        U as coefficients in V, ``(j, k′)``; empty before anything is frozen.
    edge
        τ: at most k′ eigenvalues exceed it; infinite where nothing is proved.
    finest
        Whether the edge was moved as near as g allows.
    """

    frozen: Tensor = numbers()
    edge: float = float("inf")


@dataclass
class PencilState(State):
    """What the solver knows beside its space.

    Attributes
    ----------
    scales
        What each F is divided by; empty before it is known.
    surrogates, refits
        A ≈ F, and the sizes of the space at which they are fitted again.
    probes
        Places of the random vectors in the space.
    waiting
        Start vectors still to be tried.
    first
        Vᵀg₀ of the first random vector, which bounds the scales.
    sides
        See :class:`Side`.
    probe
        Vᵀg of the present attempt; empty before there is one.
    attempts, restarts
        Attempts begun, and restarts of the space.
    target
        Residuals to reach now, smaller than ``tol`` where a bound must be.
    suspect
        Side and λ that the space grows at.
    proved, given_up
        Whether the search has ended with its claim, or without.
    """

    scales: list[float] = field(default_factory=list)
    surrogates: Any = part(Surrogates.restored)
    refits: list[int] = field(default_factory=list)
    probes: list[int] = field(default_factory=list)
    started: bool = False
    first: Tensor = numbers()
    sides: list[Any] = part(
        lambda saved, like: [_restored(one, like) for one in saved["each"]],
        lambda sides: {"each": [side.export() for side in sides]},
    )
    probe: Tensor = numbers()
    attempts: int = 0
    restarts: int = 0
    target: float = 1.0
    suspect: list[float] = field(default_factory=list)
    proved: bool = False
    given_up: bool = False


def _restored(saved: Any, like: Tensor) -> Side:
    side = Side()
    side.restore(saved, like)
    return side
