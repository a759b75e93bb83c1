"""A surrogate of F for masked networks: the norm of each row.

Rectifiers and max pooling let a response through at some places and not at others: pixels on which
nothing depends are eigenvectors of the eigenvalue 0, and those on which little depends lie near the
bottom. For random ±1 vectors z the mean of (F z)_x² is ‖F e_x‖², so that products made anyway tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.corrections import olsen

__all__ = ["RowNorms", "fit_rows"]

SHIFT = 1e-5
"""Added to the norms, over λmax."""


@dataclass(frozen=True)
class RowNorms:
    """A = diag(‖F e_x‖) + shift.

    Attributes
    ----------
    norms
        ``(n,)``, about ‖F e_x‖.
    shift
        Added to them.
    misfit
        Share of the variance of log ‖F e_x‖ that half of the pairs do not tell of the other half.
    """

    norms: Tensor
    shift: float
    misfit: float

    def apply(self, vectors: Tensor) -> Tensor:
        """Return A V, ``(n, b)``."""
        return self.norms[:, None] * vectors

    def solve(self, vectors: Tensor) -> Tensor:
        """Return (A + shift)⁻¹ V, ``(n, b)``."""
        return vectors / (self.norms + self.shift)[:, None]

    def starts(self, random: Tensor, count: int) -> Tensor:
        """Return the pixels with the smallest rows, ``(n, count)``."""
        order = torch.sort(self.norms, stable=True).indices[:count]
        starts = torch.zeros(len(self.norms), len(order)).to(random)
        starts[order, torch.arange(len(order), device=order.device)] = 1.0
        return starts

    def correction(
        self, end: str, residual: Tensor, value: float, locked: Tensor, steps: int
    ) -> Tensor:
        """Solve (A + shift) t = r orthogonally to ``locked``: Olsen's correction."""
        return olsen(self.solve, end, residual, locked)

    def refit(self, vectors: Tensor, products: Tensor) -> RowNorms:
        """Return the same: random vectors alone tell of the rows."""
        return self

    @property
    def note(self) -> str:
        """What it is, for a spectrum's notes."""
        return f"the norms of the rows of F, misfit {self.misfit:.2g}"

    def state(self) -> dict[str, Any]:
        """Return plain containers and tensors, for a checkpoint."""
        return {
            "kind": "rows",
            "norms": self.norms.clone(),
            "shift": self.shift,
            "misfit": self.misfit,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], like: Tensor) -> RowNorms:
        """Return what :meth:`state` described, on the device and in the dtype of ``like``."""
        return cls(state["norms"].to(like), float(state["shift"]), float(state["misfit"]))


def fit_rows(vectors: Tensor, products: Tensor, scale: float) -> RowNorms:
    """Estimate the norms of the rows from pairs of random vectors.

    Parameters
    ----------
    vectors, products
        ``(n, p)``: V and F V of random vectors of unit norm.
    scale
        λmax, roughly.
    """
    squares = len(vectors) * products.square()
    norms = squares.mean(1).sqrt()
    tiny = SHIFT * scale
    halves = [(part.mean(1).sqrt() + tiny).log() for part in (squares[:, ::2], squares[:, 1::2])]
    one, other = (half - half.mean() for half in halves)
    common, whole = float(one @ other), float(one.norm() * other.norm())
    return RowNorms(norms, tiny, 1 - max(common, 0.0) / whole if whole > 0 else 1.0)
