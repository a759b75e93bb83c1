"""Orthonormal rows: the Gram-Schmidt steps every method here uses.

Vectors are rows ``(q, n)``, so that one vector is contiguous in memory. Classical Gram-Schmidt,
repeated where cancellation demands it, is as orthogonal as Householder's and is two matrix
products ("twice is enough": L. Giraud, J. Langou, M. Rozložník, J. van den Eshof, "Rounding error
analysis of the classical Gram-Schmidt orthogonalization process", Numer. Math. 101, 2005).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["orthonormal_columns", "project_out", "split_off"]

# A pass that leaves more than this share of a vector is the last (the Daniel-Gragg-Kaufman-Stewart
# criterion): below 1/√2, errors of the basis' own orthogonality could grow from row to row.
_CANCELLATION = 0.7
_MAX_PASSES = 4


def project_out(vectors: Tensor, basis: Tensor) -> Tensor:
    """Subtract from ``vectors`` ``(b, n)``, in place, their part in the rows of ``basis``.

    Returns
    -------
    Tensor
        ``(b, q)``: the coefficients V Bᵀ that were subtracted.
    """
    coefficients = vectors @ basis.T
    # v ← v − (v Bᵀ) B
    vectors.addmm_(coefficients, basis, alpha=-1.0)
    return coefficients


def split_off(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, float]:
    """Split ``vector`` ``(n,)`` into its part in ``basis`` and a rest orthogonal to it.

    Parameters
    ----------
    vector
        ``(n,)``; overwritten by the rest, which is not normalised.
    basis
        ``(q, n)``, orthonormal rows.

    Returns
    -------
    rest, coefficients, norm
        The rest ``(n,)``, the coefficients ``(q,)`` in float64 on the CPU, and the norm of the
        rest. A norm of exactly 0 says the rest is rounding noise alone.
    """
    total = torch.zeros(len(basis), dtype=torch.float64)
    row = vector[None]
    norm = float(torch.linalg.vector_norm(vector))
    first = norm
    eps = torch.finfo(vector.dtype).eps
    for _ in range(_MAX_PASSES):
        if len(basis) == 0 or norm == 0.0:
            break
        total += project_out(row, basis)[0].double().cpu()
        before, norm = norm, float(torch.linalg.vector_norm(vector))
        if norm > _CANCELLATION * before:
            break
        if norm <= eps * first:
            norm = 0.0
    return vector, total, norm


def orthonormal_columns(block: Tensor) -> Tensor:
    """Return an orthonormal basis ``(n, b)`` of the columns of ``block`` (b ≤ n).

    Columns of very different length, or dependent ones, are allowed: the result is orthonormal
    all the same (Householder QR), its span then holds arbitrary directions in their place.
    """
    q: Tensor = torch.linalg.qr(block)[0]
    return q
