"""The wanted vectors frozen before a witness is drawn, and what the search space says of the rest.

Everything is kept as coefficients in the basis V of a :class:`~.search_space.SearchSpace`, which
grows behind them; a product is spent on new directions alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.bounds import lower_bounds, upper_bounds
from eigenexp.eigensolvers.certificates.witness import Evidence, Trace, largest_trace
from eigenexp.eigensolvers.search_space import SearchSpace
from eigenexp.eigensolvers.state import State, numbers

__all__ = ["Frozen", "View"]

FINER = 24
"""Steps by which a proved edge is moved towards the nearest Ritz value, each half the way."""


@dataclass(frozen=True)
class View:
    """F′ as a search space sees it: evidence, and the Ritz vectors of it as coefficients (j, m)."""

    evidence: Evidence
    vectors: Tensor

    def direction(self, space: SearchSpace, trace: Trace) -> Tensor:
        """Return the part of y at a suspect that is outside the space, ``(n, 1)``."""
        coefficients = (self.vectors @ trace.weights)[:, None]
        return space.outside(coefficients)


@dataclass
class Frozen(State):
    """U₀, g and what was known when g was drawn.

    Attributes
    ----------
    columns
        U₀ in the basis V, ``(j, k)``, where j is the size the space had.
    probe
        Vᵀg, ``(j + 1,)`` once the rest of g is in the space; empty before g is drawn.
    values
        Ritz values of U₀, ``(k,)``, decreasing.
    gram
        RᵀR of their residuals, ``(k, k)``.
    """

    columns: Tensor = numbers()
    probe: Tensor = numbers()
    values: Tensor = numbers()
    gram: Tensor = numbers()

    @classmethod
    def of(cls, space: SearchSpace, places: list[int]) -> Frozen:
        """Freeze the Ritz vectors at ``places``."""
        residuals = space.residuals(places)[1].double()
        return cls(
            columns=space.coefficients(places),
            values=space.values[places].clone(),
            gram=(residuals.mT @ residuals).cpu(),
        )

    @property
    def spread(self) -> float:
        """‖R‖₂ of the residuals together."""
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(self.gram)[-1])))

    def coefficients(self, size: int) -> tuple[Tensor, Tensor]:
        """Return U₀ ``(size, k)`` and g ``(size,)`` in a space that has grown to ``size``."""
        columns = torch.zeros(size, self.columns.shape[1], dtype=torch.float64)
        columns[: len(self.columns)] = self.columns
        probe = torch.zeros(size, dtype=torch.float64)
        probe[: len(self.probe)] = self.probe
        return columns, probe

    def rotated(self, rotation: Tensor) -> None:
        """Follow the space to the basis V C, given C, which must hold U₀ and P₀g."""
        columns, probe = self.coefficients(len(rotation))
        self.columns = rotation.mT @ columns
        if self.has_witness:
            self.probe = rotation.mT @ probe

    @property
    def has_witness(self) -> bool:
        """Whether g is drawn."""
        return len(self.probe) > 0

    def view(self, space: SearchSpace) -> View | None:
        """Return F′ on the part of the space beyond U₀; None where there is none."""
        size = space.size
        columns, probe = self.coefficients(size)
        k = columns.shape[1]
        if size <= k:
            return None
        rest = torch.linalg.qr(columns, mode="complete").Q[:, k:]
        small = rest.mT @ space.projected @ rest
        values, rotation = torch.linalg.eigh((small + small.mT) / 2)
        values, vectors = values.flip(0), rest @ rotation.flip(1)
        return View(Evidence(values, space.outside_gram(vectors), vectors.mT @ probe), vectors)

    def finest_edge(self, view: View, end: str, edge: float, scale: float, limit: float) -> float:
        """Return the edge nearest the Ritz values of F′ beyond which nothing was missed.

        No chance is added: all edges of an end stand on the trace of one eigenvector, the extremal
        one of F′.
        """
        values = view.evidence.values
        nearest = float(values[0] if end == "top" else values[-1])
        for _ in range(FINER):
            closer = nearest + (edge - nearest) / 2
            trace = largest_trace(view.evidence, end, closer, scale, limit, last=edge)
            if trace.bound > limit:
                break
            edge = closer
        return edge

    def upper(self, edge: float) -> Tensor:
        """Return upper bounds of the largest eigenvalues, given that F′ ≤ edge, ``(k,)``."""
        return upper_bounds(self.values, self.gram, edge)

    def lower(self, edge: float) -> Tensor:
        """Return lower bounds of the smallest eigenvalues, given that F′ ≥ edge, ``(k,)``."""
        return lower_bounds(self.values, self.gram, edge)
