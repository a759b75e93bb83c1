"""How far an eigensolver is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a solver is; cheap to make after every ``tell``.

    ``eigenvalues`` (Ritz values, decreasing), ``residuals`` (absolute, estimated where no true
    product is at hand) and ``eigenindex`` have one entry a wanted pair known so far. Before the
    first estimate the tensors are empty and ``worst`` is infinite.
    """

    eigenvalues: Tensor
    residuals: Tensor
    eigenindex: Tensor
    scale: float
    tol: float
    num_products: int
    phase: str

    @property
    def worst(self) -> float:
        """Largest ‖Fv − θv‖ / λmax over the wanted pairs."""
        if len(self.residuals) == 0:
            return float("inf")
        largest = float(self.residuals.max())
        if self.scale > 0:
            return largest / self.scale
        return 0.0 if largest == 0 else float("inf")  # F = 0: every vector is an eigenvector
