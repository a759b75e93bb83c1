"""What solvers share that end with true residuals and a search for missed pairs."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress
from eigenexp.eigensolvers.verification import TrueResiduals
from eigenexp.eigensolvers.witness import SearchBudget, suspects
from eigenexp.spectrum import StopReason

__all__ = ["VerifiedSolver"]

KEPT = 0.4
"""Share of the vectors beyond the wanted ones that a restart keeps; 0.3 to 0.7 do alike."""


class VerifiedSolver(Eigensolver):
    """A solver whose pairs are measured by true products and searched for missed ones.

    Parameters
    ----------
    strict_verification
        Follow the search for missed pairs until it bounds the chance of a miss, also at the top of
        a picture's F.
    n, settings
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`.
    """

    _phase: str

    def __init__(self, n: int, *, strict_verification: bool, **settings: Any) -> None:
        super().__init__(n, **settings)
        wanted = len(self.settings.wanted)
        self._num_top = 0 if self.settings.which == "bottom" else self.settings.k
        self._num_bottom = wanted - self._num_top
        # A null space known beforehand is as wide as it is: a random vector a wanted copy.
        nullity = n - min(n, self.settings.rank_bound or n)
        self._null_copies = min(self._num_bottom, nullity)
        self._truth = TrueResiduals(wanted)
        # Whether a search for missed pairs ended without the bound it should have reached.
        self._doubtful = False
        is_picture = len(self.settings.image_shape or ()) > 1
        self._budget = SearchBudget(strict_verification or not is_picture, self.settings.k)

    # -- where pairs stand ---------------------------------------------------------------------

    def _outermost_first(self) -> list[int]:
        """Wanted pairs in the order they are worked on: top inwards, then bottom inwards."""
        wanted = len(self.settings.wanted)
        return [*range(self._num_top), *reversed(range(self._num_top, wanted))]

    def _guard_places(self, size: int) -> list[int]:
        """Places, of ``size`` Ritz values, of the first pair inwards of each wanted end."""
        top = {self._num_top} if self._num_top else set()
        bottom = {size - 1 - self._num_bottom} if self._num_bottom else set()
        taken = {*range(self._num_top), *range(size - self._num_bottom, size)}
        return sorted(place for place in (top | bottom) - taken if 0 <= place < size)

    def _kept_places(self, size: int) -> list[int]:
        """Places, of ``size`` Ritz values, that a restart keeps: the wanted and those beside."""
        spare = max(1, int(KEPT * (size - self._num_top - self._num_bottom)))
        both = self._num_top > 0 and self._num_bottom > 0
        spare_top = spare // 2 if both else (spare if self._num_top else 1)
        spare_bottom = spare - spare_top if both else (spare if self._num_bottom else 1)
        top = self._num_top + spare_top
        bottom = min(self._num_bottom + spare_bottom, size - top)
        return [*range(top), *range(size - bottom, size)]

    # -- the search for missed pairs -----------------------------------------------------------

    def _ends_to_search(self, values: Tensor, scale: float) -> list[str]:
        """Return the ends where a pair can have been missed, given the wanted Ritz values.

        The bottom is none where its eigenvalues lie in [0, 2 · tol · λmax].
        """
        ends = ["top"] if self._num_top else []
        if self._num_bottom and float(values[self._num_top]) > 2 * self.settings.tol * scale:
            ends.append("bottom")
        return ends

    def _suspects(self, end: str, values: Tensor, scale: float) -> list[float]:
        """Return eigenvalues a pair missed at ``end`` could have, given the wanted Ritz values."""
        last = float(values[self._num_top - 1 if end == "top" else self._num_top])
        return suspects(end, last, self.settings.tol * scale, scale)

    # -- the verdict ---------------------------------------------------------------------------

    def _judge(self, scale: float, *, exhausted: bool) -> StopReason | None:
        """Return how the true residuals end the solve, or None: search on."""
        reason = self._truth.verdict(scale, self.settings.tol, self.floor, exhausted=exhausted)
        if reason is StopReason.CONVERGED and self._doubtful:
            return StopReason.UNVERIFIED
        return reason

    def _reopen(self) -> None:
        super()._reopen()
        if self._stop_reason is not None:
            return
        if self._truth.complete:
            reason = self._verdict()
            if reason in (StopReason.CONVERGED, StopReason.UNVERIFIED):
                self._stop_reason = reason
                return
        self._truth.reset()
        self._search_on()

    @abc.abstractmethod
    def _verdict(self) -> StopReason | None:
        """Call :meth:`_judge` with what is known."""

    @abc.abstractmethod
    def _search_on(self) -> None:
        """Take the search up again, under another tolerance."""

    # -- what is known -------------------------------------------------------------------------

    @abc.abstractmethod
    def _measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return values, residuals and eigenindex of the wanted pairs, and λmax."""

    def _with_truth(self, values: Tensor, residuals: Tensor) -> None:
        """Put true values and residuals, as far as they are told, in place of estimates."""
        for i, (value, residual) in enumerate(self._truth.pairs):
            values[i], residuals[i] = value, residual

    def _progress(self) -> Progress:
        """Return Ritz values and residuals of the wanted pairs, true ones where told."""
        values, residuals, index, scale = self._measured()
        return Progress(
            eigenvalues=values,
            residuals=residuals,
            eigenindex=index,
            scale=scale,
            tol=self.settings.tol,
            num_products=self._num_products,
            phase=self._phase,
        )
