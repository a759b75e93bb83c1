"""All eigenpairs of F = JᵀJ from J, or F, as a matrix at hand: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fisher_eigenpairs", "jacobian_eigenpairs", "numerical_rank", "perturbation_bounds"]


def jacobian_eigenpairs(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues of F = JᵀJ, decreasing, and its eigenvectors (rows), in float64.

    In float64, squaring J would lose every eigenvalue below λmax·eps; its singular values keep them
    to λmax·eps². A float32 J is itself known to eps32 only, and eps32² = 1.4e-14 is above float64's
    eps: its square in float64 loses nothing, and is decomposed in half the time. Where no row of J
    holds more than one value (pixel by pixel models, the identity), F is diagonal as it is.

    Parameters
    ----------
    jacobian
        ``(m, n)``, float32 or float64: the precision its values are known to.

    Returns
    -------
    values, rows
        ``(n,)``, zero from place m on where m < n, and ``(n, n)``, orthonormal.
    """
    matrix = jacobian.to(torch.float64)
    if int((matrix != 0).sum(1).max()) <= 1:
        values, order = matrix.square().sum(0).sort(descending=True, stable=True)
        return values, torch.eye(len(values), dtype=matrix.dtype, device=matrix.device)[order]
    found, rows = _right_eigenpairs(matrix, squared=jacobian.dtype == torch.float32)
    values = found.new_zeros(jacobian.shape[1])
    values[: len(found)] = found
    return values, rows


def perturbation_bounds(values: Tensor, doubt: float) -> Tensor:
    """Return how far eigenvalues of JᵀJ move at the most when J changes by ``doubt`` in 2-norm.

    |σᵢ(J) − σᵢ(J + ΔJ)| ≤ ‖ΔJ‖ (Weyl), so λᵢ = σᵢ² moves by at most ‖ΔJ‖ (2σᵢ + ‖ΔJ‖).
    """
    return doubt * (2 * values.clamp(min=0).sqrt() + doubt)


def _right_eigenpairs(matrix: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues ``(min(m, n),)`` of MᵀM and its eigenvectors ``(n, n)``, as rows.

    A triangular factor with the same ones is decomposed in place of a matrix that is not square,
    so the cost is that of the shorter side cubed. Where m < n, or the rank is short, the rows still
    are a whole orthonormal basis: the last ones span the null space.
    """
    m, n = matrix.shape
    if m < n:
        basis, triangle = torch.linalg.qr(matrix.T, "complete")
        values, rows = _right_eigenpairs(triangle[:m].T, squared)
        return values, torch.cat([rows @ basis[:, :m].T, basis[:, m:].T])
    if squared:
        values, rows = fisher_eigenpairs(matrix.T @ matrix)
        return values.clamp(min=0), rows
    square = matrix if m == n else torch.linalg.qr(matrix, "r").R
    _, singular, rows = torch.linalg.svd(square)
    return singular.square(), rows


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
