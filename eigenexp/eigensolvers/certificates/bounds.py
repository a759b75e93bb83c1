"""Bounds of eigenvalues from what was proved about the complement of the wanted vectors.

In the basis [U, U⊥] F = [Θ B; Bᵀ C], with the Ritz values Θ of U and B Bᵀ = RᵀR, the Gram matrix of
their residuals. Where C ≤ τ on U⊥, F ≤ [Θ B; Bᵀ τ] (Loewner), and so are its eigenvalues, one by
one; where C ≥ μ, F ≥ [Θ B; Bᵀ μ]. To first order these are θ + s + ‖R‖ where τ = θ_k + s (Weyl),
and Temple's and Kato's ‖R‖²/gap where τ lies a gap away, whichever is smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.spectrum import PairStatus

__all__ = ["lower_bounds", "statuses", "upper_bounds"]


def upper_bounds(values: Tensor, gram: Tensor, edge: float) -> Tensor:
    """Return upper bounds of the k largest eigenvalues of F, decreasing, ``(k,)``.

    Parameters
    ----------
    values
        Ritz values of U, ``(k,)``.
    gram
        RᵀR, ``(k, k)``, in the same order.
    edge
        τ: P F P ≤ τ on the complement of U.
    """
    return _bordered(values, gram, edge).flip(0)[: len(values)]


def lower_bounds(values: Tensor, gram: Tensor, edge: float) -> Tensor:
    """Return lower bounds of the k smallest eigenvalues of F, decreasing, ``(k,)``.

    Parameters
    ----------
    values, gram
        As for :func:`upper_bounds`.
    edge
        μ: P F P ≥ μ on the complement of U.
    """
    return _bordered(values, gram, edge)[: len(values)].flip(0)


def _bordered(values: Tensor, gram: Tensor, edge: float) -> Tensor:
    """Return the eigenvalues, increasing, of [Θ B; Bᵀ edge] with B the root of ``gram``."""
    k = len(values)
    squares, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    root = vectors * squares.clamp(min=0).sqrt()
    matrix = torch.zeros(2 * k, 2 * k, dtype=torch.float64)
    matrix[:k, :k] = torch.diag(values)
    matrix[:k, k:], matrix[k:, :k] = root, root.mT
    matrix[k:, k:] = edge * torch.eye(k, dtype=torch.float64)
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrix)
    return eigenvalues


def statuses(residuals: Tensor, limit: float, verified: bool) -> tuple[PairStatus, ...]:
    """Return each pair's status from its true residual and whether extremality was proved."""
    good = PairStatus.CONVERGED if verified else PairStatus.UNVERIFIED
    return tuple(good if float(r) <= limit else PairStatus.UNCONVERGED for r in residuals)
