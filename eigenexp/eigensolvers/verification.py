"""The last word on a pair: its residual from one product of the very vector that is returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eigenexp.spectrum import StopReason

__all__ = ["TrueResiduals"]


class TrueResiduals:
    """Collects λ and ‖F v − λ v‖ of each wanted pair and judges them together.

    Parameters
    ----------
    wanted
        Pairs to be measured, in the order they are told.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.pairs: list[tuple[float, float]] = []
        self.failures = 0
        self._worst = float("inf")

    @property
    def told(self) -> int:
        """Pairs measured so far."""
        return len(self.pairs)

    @property
    def complete(self) -> bool:
        """Whether every wanted pair is measured."""
        return self.told >= self.wanted

    def measure(self, vectors: Tensor, products: Tensor, responses: Tensor | None) -> None:
        """Take pairs ``(n, b)``: λ = ‖J v‖² where J v is at hand, which has no cancellation."""
        for i in range(vectors.shape[1]):
            v, w = vectors[:, i].double(), products[:, i].double()
            if responses is None:
                value = float((v @ w).clamp(min=0))
            else:
                value = float(responses[:, i].double().square().sum())
            self.pairs.append((value, float((w - value * v).norm())))

    def verdict(
        self, scale: float, tol: float, floor: float, *, exhausted: bool
    ) -> StopReason | None:
        """Return CONVERGED, FLOOR where going on cannot help, or None: search on.

        Parameters
        ----------
        scale
            λmax as known so far.
        floor
            The residual over λmax that products cannot resolve.
        exhausted
            Whether the search space cannot grow any more.
        """
        scale = max(scale, *(value for value, _ in self.pairs))
        worst = max(residual for _, residual in self.pairs)
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
        self.pairs = []

    def reset(self) -> None:
        """Start anew, under another tolerance."""
        self.pairs, self.failures, self._worst = [], 0, float("inf")

    def state(self) -> dict[str, Any]:
        """Return plain containers, for a checkpoint."""
        return {
            "pairs": [list(pair) for pair in self.pairs],
            "failures": self.failures,
            "worst": self._worst,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.pairs = [(float(value), float(residual)) for value, residual in state["pairs"]]
        self.failures, self._worst = int(state["failures"]), float(state["worst"])
