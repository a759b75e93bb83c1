"""The last word on a pair: its residual from one product of the very vector that is returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from eigenexp.spectrum import StopReason

__all__ = ["TrueResiduals"]


class TrueResiduals:
    """Collects λ and ‖F v − λ v‖ of the pairs that stored products do not resolve.

    Attributes
    ----------
    pairs
        λ and residual of each pair measured, by its place among the wanted ones.
    due
        Places still to be measured, in the order they are told.
    failures
        Verdicts that sent the search on.
    """

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[float, float]] = {}
        self.due: list[int] = []
        self.failures = 0
        self._begun = False
        self._worst = float("inf")

    @property
    def complete(self) -> bool:
        """Whether every pair that was due is measured."""
        return self._begun and not self.due

    def begin(self, due: Sequence[int]) -> None:
        """Name the pairs to be measured."""
        self.pairs, self.due, self._begun = {}, list(due), True

    def measure(self, vectors: Tensor, products: Tensor, responses: Tensor | None) -> None:
        """Take the next pairs due ``(n, b)``: λ = ‖J v‖² where J v is at hand, which is exact."""
        for i in range(vectors.shape[1]):
            v, w = vectors[:, i].double(), products[:, i].double()
            if responses is None:
                value = float((v @ w).clamp(min=0))
            else:
                value = float(responses[:, i].double().square().sum())
            self.pairs[self.due.pop(0)] = (value, float((w - value * v).norm()))

    def verdict(
        self, residuals: Tensor, scale: float, tol: float, floor: float, *, exhausted: bool
    ) -> StopReason | None:
        """Return CONVERGED, FLOOR where going on cannot help, or None: search on.

        Parameters
        ----------
        residuals
            Of all wanted pairs, absolute.
        scale
            λmax as known so far.
        floor
            The residual over λmax that products cannot resolve.
        exhausted
            Whether the search space cannot grow any more.
        """
        worst = float(residuals.max())
        if worst <= tol * scale:
            return StopReason.CONVERGED
        self.failures += 1
        stuck = worst > 0.5 * self._worst or exhausted
        if stuck or worst <= floor * scale:
            return StopReason.FLOOR
        self._worst = worst
        return None

    def forget(self) -> None:
        """Drop the measurements: the vectors have changed."""
        self.pairs, self.due, self._begun = {}, [], False

    def reset(self) -> None:
        """Start anew, under another tolerance."""
        self.forget()
        self.failures, self._worst = 0, float("inf")

    def export(self) -> dict[str, Any]:
        """Return plain containers, for a checkpoint."""
        return {
            "pairs": [[i, *pair] for i, pair in self.pairs.items()],
            "due": list(self.due),
            "begun": self._begun,
            "failures": self.failures,
            "worst": self._worst,
        }

    def restore(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Take up what :meth:`export` returned."""
        del like
        self.pairs = {int(i): (float(value), float(r)) for i, value, r in saved["pairs"]}
        self.due, self._begun = [int(i) for i in saved["due"]], bool(saved["begun"])
        self.failures, self._worst = int(saved["failures"]), float(saved["worst"])
