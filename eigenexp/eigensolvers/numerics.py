"""Pure functions every Krylov method shares: orthogonalisation, error bounds, statuses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eigenexp.spectrum import PairStatus

__all__ = ["error_bounds", "orthogonalise", "rounding_floor", "statuses"]


def orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``vector`` made orthogonal to ``basis``, and its coefficients there.

    Classical Gram-Schmidt twice, which is enough for orthogonality to rounding (Giraud et al.
    2005).

    Parameters
    ----------
    vector
        ``(n,)``.
    basis
        ``(n, j)``, orthonormal columns.

    Returns
    -------
    rest, coefficients
        ``(n,)``, not normalised, and ``(j,)``.
    """
    first = basis.mT @ vector
    rest = vector - basis @ first
    second = basis.mT @ rest
    return rest - basis @ second, first + second


def rounding_floor(dtype: torch.dtype, n: int) -> float:
    """Return the residual, over λmax, below which a product in ``dtype`` carries no information."""
    return 4.0 * float(torch.finfo(dtype).eps) * math.sqrt(math.sqrt(n))


def error_bounds(values: Tensor, residuals: Tensor, floor: float, smallest: Tensor) -> Tensor:
    """Return for each pair a distance within which some true eigenvalue lies.

    ‖r‖ always (Weinstein); θ itself, where smaller, for the smallest pair of a positive
    semidefinite F, as 0 ≤ λmin ≤ θ.

    Parameters
    ----------
    values, residuals
        ``(k,)``, absolute.
    floor
        Absolute rounding error of a product, added to each bound.
    smallest
        ``(k,)`` bool: which pair is the smallest of the whole spectrum.
    """
    bounds = torch.where(smallest, torch.minimum(residuals, values.clamp(min=0)), residuals)
    return bounds + floor


def statuses(residuals: Tensor, limit: float, verified: bool) -> tuple[PairStatus, ...]:
    """Return each pair's status from its true residual and whether extremality was verified."""
    good = PairStatus.CONVERGED if verified else PairStatus.UNVERIFIED
    return tuple(good if float(r) <= limit else PairStatus.UNCONVERGED for r in residuals)
