"""A surrogate of F among some perturbations alone, from one of F on pictures.

Where vectors are coordinates z of changes e = B z, products are BᵀF B z. A surrogate of pictures is
fitted to the pairs (B z, (B⁺)ᵀ BᵀF B z), and B⁺ A⁻¹ (B⁺)ᵀ is the preconditioner: it is (BᵀA B)⁻¹
where B is one-to-one on pictures or A leaves its range, as a convolution leaves a band.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eigenexp.eigensolvers.corrections import refine
from eigenexp.eigensolvers.surrogates import Surrogate
from eigenexp.operators.perturbations import Coordinates

__all__ = ["Embedded", "is_embedded"]


def is_embedded(embedding: Coordinates | None) -> bool:
    """Whether a surrogate of pictures must be carried over: coordinates are no picture."""
    if embedding is None or embedding.is_picture:
        return False
    return len(embedding.picture_shape) >= 2


@dataclass(frozen=True)
class Embedded:
    """A surrogate of pictures as one of coordinates.

    Attributes
    ----------
    inner
        A ≈ F on pictures.
    embedding
        B.
    """

    inner: Surrogate
    embedding: Coordinates

    @property
    def misfit(self) -> float:
        """That of A to the pairs it was fitted to."""
        return self.inner.misfit

    @property
    def note(self) -> str:
        """What it is, for a spectrum's notes."""
        return f"{self.inner.note}, among the perturbations considered"

    def solve(self, vectors: Tensor) -> Tensor:
        """Return B⁺ A⁻¹ (B⁺)ᵀ V, ``(n′, b)``."""
        return self.embedding.coordinates(self.inner.solve(self.embedding.duals(vectors)))

    def apply(self, vectors: Tensor) -> Tensor:
        """Return BᵀA B V, ``(n′, b)``."""
        pictures = self.embedding.pictures(vectors).flatten(1).mT
        return self.embedding.adjoints(self.inner.apply(pictures))

    def correction(
        self, end: str, residual: Tensor, value: float, locked: Tensor, steps: int
    ) -> Tensor:
        """Solve the correction equation for a residual ``(n′, 1)`` roughly, ``(n′, 1)``."""
        return refine(self.apply, self.solve, end, residual, value, locked, steps)
