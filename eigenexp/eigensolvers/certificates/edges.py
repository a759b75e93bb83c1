"""How far beyond the wanted pairs a missed one may lie, and the bounds that follow."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.frozen import Frozen
from eigenexp.eigensolvers.certificates.stage import Stage

__all__ = ["Edges"]

INSIDE, PRECISE = 0.1, 1 / 3
"""Share of a gap that the edge is put inside it; more where the bottom's value is to be precise."""
WORTH = 0.3
"""Share of the slack below which a bound quadratic in the residuals is worth having."""


class Edges(Stage):
    """A stage that knows which eigenvalues beyond the wanted ones are to be excluded.

    An *edge* is the nearest of them at one end. From edges that are proved follow bounds of the
    wanted eigenvalues (:meth:`_intervals`).
    """

    # -- what is to be shown ------------------------------------------------------------------

    def _allowed(self) -> float:
        """Return how far a converged value may be off: (1 + √k) · tol · λmax, and rounding."""
        return (self._tol_allowed + 2 * self.floor) * self._space.scale

    @property
    def _tol_allowed(self) -> float:
        tol: float = (1 + self.settings.k**0.5) * self.settings.tol
        return tol

    def _slack(self) -> float:
        """s: how far beyond the last wanted pair a missed one may lie.

        At least tol · λmax, rounding added, and all that the residuals R of the frozen vectors
        leave of what is allowed: values are off by at most s + ‖R‖.
        """
        least = (self.settings.tol + 2 * self.floor) * self._space.scale
        frozen: Frozen | None = self._certificate.frozen
        if frozen is None:
            return least
        return max(least, 0.98 * self._tol_allowed * self._space.scale - frozen.spread)

    def _least_edge(self, end: str) -> float:
        """Return the farthest edge that proves enough: s beyond the last wanted pair."""
        frozen: Frozen = self._certificate.frozen
        if end == "top":
            return float(frozen.values[self._num_top - 1]) + self._slack()
        last = max(float(frozen.values[self._num_top]), 0.0)
        rel, slack = self._relative_tol, self._slack()
        if rel is not None and last > self._unresolved():
            slack = min(slack, rel * last / 2)
        return last - slack

    def _edge(self, end: str) -> float:
        """Return the nearest eigenvalue of F′ that is to be excluded at an end.

        What was shown by former witnesses of the attempt was shown beyond their edge alone.
        """
        edge, banked = self._own_edge(end), self._certificate.banked.get(end)
        if banked is None:
            return edge
        return max(edge, banked[1]) if end == "top" else min(edge, banked[1])

    def _own_edge(self, end: str) -> float:
        """Return the edge as the present witness sees it.

        A little inside the gap to the Ritz values of F′, where there is one that makes bounds
        quadratic in the residuals: that costs about a twentieth of the search.
        """
        edge, frozen = self._least_edge(end), self._certificate.frozen
        top = end == "top"
        if self._seen is None or self._certificate.plain:
            return edge
        values = self._seen.evidence.values
        last = float(frozen.values[self._num_top - 1 if top else self._num_top])
        gap = last - float(values[0]) if top else float(values[-1]) - last
        precise = not top and self._relative_tol is not None
        inside = gap * (PRECISE if precise else INSIDE)
        square = float(frozen.gram.diagonal().sum())
        if inside > 0 and (precise or square < WORTH * inside * self._slack()):
            return last - inside if top else max(edge, last + inside)
        return edge

    def _ends_to_search(self) -> list[str]:
        """Return the ends where a pair can have been missed.

        The bottom is none where its eigenvalues lie in [0, 2 · tol · λmax]: F is positive
        semidefinite, and Ritz values bound eigenvalues of the same index from above.
        """
        ends = ["top"] if self._num_top else []
        if not self._num_bottom:
            return ends
        last = max(float(self._space.values[self._places()[self._num_top]]), 0.0)
        rel = self._relative_tol is not None and last > self._unresolved()
        if rel or last > 2 * self.settings.tol * self._space.scale:
            ends.append("bottom")
        return ends

    # -- what is proved -----------------------------------------------------------------------

    def _intervals(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return proved bounds below and above each wanted eigenvalue, infinite where none is."""
        count, certificate = len(values), self._certificate
        lower = torch.full((count,), -float("inf"), dtype=torch.float64)
        upper = torch.full((count,), float("inf"), dtype=torch.float64)
        # Ritz values bound eigenvalues of the same index: from below at the top, above at the end.
        lower[: self._num_top] = values[: self._num_top]
        upper[self._num_top :] = values[self._num_top :]
        lower[self._num_top :] = 0.0
        frozen: Frozen | None = certificate.frozen
        if frozen is not None and certificate.proved:
            if "top" in certificate.edges:
                above = frozen.upper(certificate.edges["top"])[: self._num_top]
                upper[: self._num_top] = torch.maximum(above, values[: self._num_top])
            if "bottom" in certificate.edges:
                below = frozen.lower(certificate.edges["bottom"])[self._num_top :].clamp(min=0)
                lower[self._num_top :] = torch.minimum(below, values[self._num_top :])
        return lower, upper

    def _is_stale(self, ends: list[str]) -> bool:
        """Whether what was proved says too little of the pairs that there are now."""
        certificate = self._certificate
        if certificate.frozen is None:
            return bool(ends)
        if any(end not in certificate.edges for end in ends):
            return True
        values = self._space.values[self._places()].clamp(min=0)
        lower, upper = self._intervals(values)
        off = torch.maximum(values - lower, upper - values)
        searched = [off[: self._num_top] if end == "top" else off[self._num_top :] for end in ends]
        if any(float(one.max()) > self._allowed() for one in searched):
            return True
        if "bottom" in ends and self._relative_misses(values, lower):
            certificate.refine *= 0.3
            return True
        return False

    def _relative_misses(self, values: Tensor, lower: Tensor) -> bool:
        rel = self._relative_tol
        if rel is None:
            return False
        values, lower = values[self._num_top :], lower[self._num_top :]
        known = (values - lower <= rel * values) | (values <= self._unresolved())
        return not bool(known.all())
