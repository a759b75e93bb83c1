"""Rayleigh-Ritz: the best eigenpairs of F that a subspace holds.

Sources: B. N. Parlett, "The Symmetric Eigenvalue Problem", SIAM 1998, chapter 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RitzPairs", "ritz_pairs", "wanted_places"]


@dataclass(frozen=True)
class RitzPairs:
    """Ritz pairs of a subspace, in decreasing order, float64 on the CPU.

    Attributes
    ----------
    values
        ``(p,)``.
    coordinates
        ``(p, p)``: column i holds the i-th Ritz vector in the basis of the subspace.
    residuals
        ``(p,)``: ‖F y − θ y‖.
    outside
        ``(f, p)``: the residual vectors in the frontier; ``residuals`` are its column norms, and
        what was dropped.
    """

    values: Tensor
    coordinates: Tensor
    residuals: Tensor
    outside: Tensor

    def __len__(self) -> int:
        return len(self.values)


def ritz_pairs(inside: Tensor, outside: Tensor, dropped: Tensor) -> RitzPairs:
    """Solve the projected problem of F V = V·inside + V⊥·outside.

    Parameters
    ----------
    inside
        ``(p, p)``: Vᵀ F V, symmetric within rounding (its symmetric part is used).
    outside
        ``(f, p)``: V⊥ᵀ F V for the orthonormal V⊥ that completes F V.
    dropped
        ``(p,)``: length of what is missing in each column of F V all the same; 0 if nothing.
    """
    # H = (G + Gᵀ)/2,  H y = θ y,  F V y − θ V y = V⊥ (outside · y)
    values, vectors = torch.linalg.eigh((inside + inside.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    rest = outside @ vectors
    residuals = torch.linalg.vector_norm(rest, dim=0) + dropped @ vectors.abs()
    return RitzPairs(values, vectors, residuals, rest)


def wanted_places(num_ritz: int, k: int, which: str) -> tuple[list[int], list[int]]:
    """Return the places of the wanted Ritz pairs, top then bottom, each increasing.

    With fewer Ritz pairs than wanted, the top end takes what there is first; no pair is taken
    twice.
    """
    top = list(range(min(k, num_ritz))) if which != "bottom" else []
    free = num_ritz - len(top)
    count = min(k, free) if which != "top" else 0
    bottom = list(range(num_ritz - count, num_ritz))
    return top, bottom
