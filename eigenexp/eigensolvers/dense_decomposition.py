"""All eigenpairs of F = JᵀJ from J, or F, as a matrix at hand: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fisher_eigenpairs", "jacobian_eigenpairs", "numerical_rank", "perturbation_bounds"]


def jacobian_eigenpairs(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues of F = JᵀJ, decreasing, and its eigenvectors (rows), in float64.

    Parameters
    ----------
    jacobian
        ``(m, n)``, float32 or float64.

    Returns
    -------
    values, rows
        ``(n,)``, zero from place m on where m < n, and ``(n, n)``, orthonormal.
    """
    singular, rows = _right_singular(jacobian.to(torch.float64))
    values = singular.new_zeros(jacobian.shape[1])
    values[: len(singular)] = singular.square()
    return values, rows


def perturbation_bounds(values: Tensor, doubt: float) -> Tensor:
    """Return how far eigenvalues of JᵀJ move at the most when J changes by ``doubt`` in 2-norm.

    |σᵢ(J) − σᵢ(J + ΔJ)| ≤ ‖ΔJ‖ (Weyl), so λᵢ = σᵢ² moves by at most ‖ΔJ‖ (2σᵢ + ‖ΔJ‖).
    """
    return doubt * (2 * values.clamp(min=0).sqrt() + doubt)


def _right_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values ``(min(m, n),)`` and all right singular vectors ``(n, n)``, as rows.

    Squaring J first would lose every eigenvalue below λmax·eps; its singular values
    keep them to λmax·eps². A triangular factor with the same ones is decomposed in place of a
    matrix that is not square, so the cost is that of the shorter side cubed. Where m < n, or the
    rank is short, the rows still are a whole orthonormal basis: the last ones span the null space.
    """
    m, n = matrix.shape
    if m >= n:
        _, singular, rows = torch.linalg.svd(torch.linalg.qr(matrix, "r").R)
        return singular, rows
    basis, triangle = torch.linalg.qr(matrix.T, "complete")
    _, singular, rows = torch.linalg.svd(triangle[:m].T)
    return singular, torch.cat([rows @ basis[:, :m].T, basis[:, m:].T])


def fisher_eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, decreasing, and eigenvectors (rows) of a symmetric ``matrix``.

    In float64. Eigenvalues below about λmax·eps are rounding: only J's singular values have them.

    Parameters
    ----------
    matrix
        ``(n, n)``; its symmetric part is taken.

    Returns
    -------
    values, rows
        ``(n,)`` and ``(n, n)``.
    """
    matrix = matrix.to(torch.float64)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.flip(0), vectors.T.flip(0)


def numerical_rank(values: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Return how many eigenvalues of JᵀJ are above the rounding of a J of ``shape`` and ``dtype``.

    The usual cut, σ > max(m, n)·eps·σmax: what lies below cannot be told from zero.
    """
    cut = max(shape) * torch.finfo(dtype).eps
    return int((values > cut * cut * values[0]).sum())
