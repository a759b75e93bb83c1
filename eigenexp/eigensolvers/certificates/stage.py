"""The search space of a solve's last stage: where the wanted pairs stand, and what is enough."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver
from eigenexp.eigensolvers.certificates.certificate import MAIN, Certificate
from eigenexp.eigensolvers.certificates.frozen import View
from eigenexp.eigensolvers.certificates.residuals import TrueResiduals
from eigenexp.eigensolvers.certificates.witness import Trace
from eigenexp.eigensolvers.search_space import SearchSpace
from eigenexp.eigensolvers.state import Part

__all__ = ["BASIS_BYTES", "SMALL", "Stage"]

KEPT = 0.4
"""Share of the vectors beyond the wanted ones that a restart keeps; 0.3 to 0.7 do alike."""
SMALL = 600
"""Length of a vector up to which the space may hold all of them: no product is ever lost."""
BASIS = 120
"""Vectors of the search space otherwise; twice as many save under 5 % of the products."""
BASIS_BYTES = 2**30
"""The space and its products shrink to fit in this much, where k allows."""
UNRESOLVED = 3e-14
"""Eigenvalue over λmax below which float64 tells it from 0 no longer."""


class Stage(Eigensolver):
    """A method with a search space V, W = F V, that grows by residuals of the wanted pairs.

    Subclasses work by themselves while ``_certificate.phase`` is ``"main"`` (:meth:`_main_ask`,
    :meth:`_main_tell`). They may steer how the space grows by :meth:`_directions`.
    """

    def __init__(self, n: int, **settings: Any) -> None:
        super().__init__(n, **settings)
        wanted = len(self.settings.wanted)
        self._num_top = 0 if self.settings.which == "bottom" else self.settings.k
        self._num_bottom = wanted - self._num_top
        # A null space known beforehand is as wide as it is: a random vector a wanted copy.
        nullity = n - min(n, self.settings.rank_bound or n)
        self._null_copies = min(self._num_bottom, nullity)
        self._certificate = Certificate(
            norms=torch.full((wanted,), float("inf"), dtype=torch.float64),
            truth=TrueResiduals(),
        )
        # Empty, and without memory, until a method hands its vectors over.
        self._space = self._new_space(0)
        self._seen: View | None = None
        self._hardest: tuple[str, Trace] | None = None

    # -- the space ----------------------------------------------------------------------------

    def _stage_width(self) -> int:
        """Columns asked for at once."""
        return 1

    def _stage_capacity(self) -> int:
        """Vectors of the search space."""
        n, wanted = self.settings.n, len(self.settings.wanted)
        least = 3 * wanted + 3 * self._stage_width() + 16
        itemsize = torch.finfo(self.dtype).bits // 8
        usual = n if n <= SMALL else max(2 * least, BASIS)
        return min(n, max(least, min(usual, BASIS_BYTES // (2 * n * itemsize))))

    def _new_space(self, capacity: int) -> SearchSpace:
        return SearchSpace(
            self.settings.n,
            capacity,
            dtype=self.dtype,
            device=self.device,
            eps=self.eps,
            floor=self.floor,
        )

    def _grow(self, block: Tensor, products: Tensor) -> None:
        self._space.grow(block, products)
        self._seen, self._hardest = None, None
        self._num_products += block.shape[1]

    @property
    def _in_main(self) -> bool:
        return self._certificate.phase == MAIN

    # -- for subclasses -----------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def _main(self) -> Part:
        """The state of the method's own work."""

    @abc.abstractmethod
    def _main_ask(self) -> Tensor: ...

    @abc.abstractmethod
    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None: ...

    @abc.abstractmethod
    def _main_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return values, residuals and eigenindex of the wanted pairs, and λmax."""

    @abc.abstractmethod
    def _main_vectors(self) -> Tensor:
        """Return the vectors of :meth:`_main_measured`, ``(k, n)``."""

    @abc.abstractmethod
    def _main_look(self) -> None:
        """Judge the method's own work anew, under another tolerance."""

    def _directions(self, end: str, residuals: Tensor, values: Tensor) -> Tensor:
        """Return how the space is to grow from residuals ``(n, b)`` of pairs at an end."""
        return residuals

    def _rotated(self) -> None:
        """Take note that the space was rotated to another basis."""

    def _own_notes(self) -> list[str]:
        return []

    # -- where pairs stand --------------------------------------------------------------------

    def _outermost_first(self) -> list[int]:
        """Wanted pairs in the order they are worked on: top inwards, then bottom inwards."""
        wanted = len(self.settings.wanted)
        return [*range(self._num_top), *reversed(range(self._num_top, wanted))]

    def _kept_places(self, size: int) -> list[int]:
        """Places, of ``size`` Ritz values, that a restart keeps: the wanted and those beside."""
        spare = max(1, int(KEPT * (size - self._num_top - self._num_bottom)))
        both = self._num_top > 0 and self._num_bottom > 0
        spare_top = spare // 2 if both else (spare if self._num_top else 1)
        spare_bottom = spare - spare_top if both else (spare if self._num_bottom else 1)
        top = self._num_top + spare_top
        bottom = min(self._num_bottom + spare_bottom, size - top)
        return [*range(top), *range(size - bottom, size)]

    def _places(self) -> list[int]:
        """Places of the wanted pairs among the Ritz values, decreasing."""
        return [*self._end_places("top"), *self._end_places("bottom")]

    def _end_places(self, end: str) -> list[int]:
        size = self._space.size
        if end == "top":
            return list(range(min(self._num_top, size)))
        return list(range(max(size - self._num_bottom, self._num_top), size))

    @property
    def _is_whole(self) -> bool:
        return self._space.size >= self.settings.n

    # -- what is enough -----------------------------------------------------------------------

    def _limits(self) -> Tensor:
        """Return the residual each wanted pair is to reach, ``(wanted,)``."""
        truth, scale = self._certificate.truth, self._space.scale
        tol = 0.97 * self.settings.tol / (1 + truth.failures)
        # Below rounding a residual means nothing: let the true products decide.
        least = 0.25 * self.floor * scale
        limits = torch.full((len(self.settings.wanted),), tol * scale, dtype=torch.float64)
        rel, space = self._relative_tol, self._space
        if rel is not None and self._num_bottom and space.size > len(limits):
            beyond = self._beyond_bottom()
            for i in range(self._num_top, len(limits)):
                value = max(float(space.values[self._places()[i]]), 0.0)
                if value <= self._unresolved():
                    continue
                gap = max(beyond - value, 0.0)
                fine = max(rel * value / 4, 0.4 * (rel * value * gap) ** 0.5)
                fine /= max(self._num_bottom, 1) ** 0.5
                limits[i] = min(float(limits[i]), fine * self._certificate.refine)
        return limits.clamp(min=least)

    @property
    def _relative_tol(self) -> float | None:
        """What was asked, unless the arithmetic turned out not to resolve it."""
        return None if self._certificate.plain else self.settings.relative_tol

    def _unresolved(self) -> float:
        """Return the eigenvalue that the arithmetic cannot tell from 0."""
        return max(UNRESOLVED, 2 * self.floor if self.floor > 1e-10 else 0.0) * self._space.scale

    def _beyond_bottom(self) -> float:
        """Return the Ritz value next to the wanted ones of the bottom, inwards."""
        place = self._space.size - self._num_bottom - 1
        return float(self._space.values[max(place, self._num_top - 1, 0)])

    # -- what is known ------------------------------------------------------------------------

    def _measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return values, residuals and eigenindex of the wanted pairs, and λmax."""
        return self._main_measured() if self._in_main else self._space_measured()

    def _space_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        size, wanted = self._space.size, len(self.settings.wanted)
        if size < wanted:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), self._space.scale
        values = self._space.values[self._places()].clamp(min=0)
        residuals = self._certificate.norms.clone()
        for i, (value, residual) in self._certificate.truth.pairs.items():
            values[i], residuals[i] = value, residual
        scale = max(self._space.scale, float(values.max()))
        return values, residuals, torch.tensor(self.settings.wanted, dtype=torch.int64), scale
