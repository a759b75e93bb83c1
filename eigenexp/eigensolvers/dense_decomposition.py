"""All eigenpairs of F = JᵀJ from J, or F, as a matrix at hand: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fisher_eigenpairs", "numerical_rank", "right_singular"]


def right_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values and all right singular vectors of ``matrix``, decreasing.

    In float64. Squaring J first would lose every eigenvalue below λmax·eps; its singular values
    keep them to λmax·eps². A triangular factor with the same ones is decomposed in place of a
    matrix that is not square, so the cost is that of the shorter side cubed. Where m < n, or the
    rank is short, the rows still are a whole orthonormal basis: the last ones span the null space.

    Parameters
    ----------
    matrix
        ``(m, n)``, float32 or float64.

    Returns
    -------
    singular, rows
        ``(min(m, n),)`` and ``(n, n)``: row i belongs to singular value i, the rest to zero.
    """
    matrix = matrix.to(torch.float64)
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


def numerical_rank(singular: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Return how many singular values are above the rounding of a matrix of ``dtype``.

    The usual cut, max(m, n)·eps·σmax: what lies below cannot be told from zero.
    """
    if len(singular) == 0:
        return 0
    cut = max(shape) * torch.finfo(dtype).eps * float(singular[0])
    return int((singular > cut).sum())
