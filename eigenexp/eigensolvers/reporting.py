"""From pairs to a :class:`Spectrum`: order, certificates, statuses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates import error_bound
from eigenexp.spectrum import PairStatus, Spectrum

if TYPE_CHECKING:
    from eigenexp.eigensolvers.base import Eigensolver

__all__ = ["Pair", "build_spectrum", "eigen_indices", "measure"]


@dataclass(frozen=True)
class Pair:
    """One eigenpair's numbers.

    Attributes
    ----------
    value
        Eigenvalue.
    residual
        ‖Fv − λv‖.
    is_squared
        The value was read as ‖Jv‖².
    is_real
        The residual comes from a product of this very vector.
    gap
        Distance from the value in which no other eigenvalue lies, where known; else 0.
    """

    value: float
    residual: float
    is_squared: bool = False
    is_real: bool = True
    gap: float = 0.0


def measure(vectors: Tensor, products: Tensor, responses: Tensor | None) -> list[Pair]:
    """Return the pairs of unit columns ``(n, b)`` from their products, and responses if at hand.

    λ = ‖Jv‖² where the response is at hand: never negative and without cancellation; else ⟨v, Fv⟩.
    Then ‖Fv − λv‖, in float64.
    """
    V, W = vectors.double(), products.double()
    values = (V * W).sum(dim=0) if responses is None else responses.double().square().sum(dim=0)
    residuals = torch.linalg.vector_norm(W - values * V, dim=0)
    return [
        Pair(value, residual, is_squared=responses is not None)
        for value, residual in zip(values.tolist(), residuals.tolist(), strict=True)
    ]


def eigen_indices(solver: Eigensolver, num_top: int, num_bottom: int) -> list[int]:
    """Return the places in the whole spectrum of the pairs at hand, increasing."""
    n = solver.settings.n
    return [*range(num_top), *range(n - num_bottom, n)]


def build_spectrum(
    solver: Eigensolver,
    pairs: Sequence[Pair],
    vectors: Tensor,
    *,
    num_bottom: int,
    scale: float,
    verified: Mapping[str, bool],
    notes: Sequence[str] = (),
    method: str | None = None,
) -> Spectrum:
    """Put pairs, top first, in order and judge each.

    Parameters
    ----------
    pairs
        One an eigenvector; the last ``num_bottom`` are those of the bottom end.
    vectors
        ``(w, n)``, unit rows.
    verified
        Whether the pairs of an end are known to be the extremal ones.
    """
    settings = solver.settings
    num_top = len(pairs) - num_bottom
    limit = settings.tol * scale
    eps = torch.finfo(solver.dtype).eps
    order = sorted(range(num_top), key=lambda i: -pairs[i].value)
    order += sorted(range(num_top, len(pairs)), key=lambda i: -pairs[i].value)
    status, bounds = [], []
    for place, i in enumerate(order):
        pair, end = pairs[i], "top" if place < num_top else "bottom"
        rounding = 8 * eps * scale
        if pair.is_squared:
            # ‖Jv‖ is exact to eps·√λmax: λ to 2·eps·√(λ·λmax).
            rounding = 8 * eps * math.sqrt(max(pair.value, 0.0) * scale) + (8 * eps) ** 2 * scale
        proof = end == "bottom" and (settings.k == 1 or pair.value <= 2 * limit)
        bounds.append(
            error_bound(pair.value, pair.residual, pair.gap, bottom_proof=proof, rounding=rounding)
        )
        if pair.residual > limit:
            status.append(PairStatus.UNCONVERGED)
        elif pair.is_real and verified[end]:
            status.append(PairStatus.CONVERGED)
        else:
            status.append(PairStatus.UNVERIFIED)
    null = max(0, settings.n - (settings.rank_bound or settings.n))
    # ‖Jv‖ below its own rounding: numerically a null vector.
    zeros = [p for p in pairs[num_top:] if p.is_squared and p.value <= (64 * eps) ** 2 * scale]
    null = max(null, len(zeros))
    remarks = list(notes)
    if null and num_bottom:
        remarks.append(
            f"the bottom is a null space of F, of dimension {null} at least: changes in it are "
            "not felt at all"
        )
    index = eigen_indices(solver, num_top, num_bottom)
    return Spectrum(
        eigenvalues=torch.tensor([pairs[i].value for i in order], dtype=torch.float64),
        eigenvectors=vectors[order] if order else vectors,
        eigenindex=torch.tensor(index, dtype=torch.int64),
        residuals=torch.tensor([pairs[i].residual for i in order], dtype=torch.float64),
        error_bounds=torch.tensor(bounds, dtype=torch.float64),
        status=tuple(status),
        stop_reason=solver.stop_reason,
        scale=scale,
        tol=settings.tol,
        num_products=solver.num_products,
        num_verification_products=solver.num_verification_products,
        null_space_dimension=null,
        method=method or solver.name,
        notes=tuple(remarks),
    )
