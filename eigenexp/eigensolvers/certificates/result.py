"""From what a solver measured to a :class:`~eigenexp.spectrum.Spectrum`: the one place."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.bounds import statuses
from eigenexp.eigensolvers.settings import Settings
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["make_spectrum"]


def make_spectrum(
    settings: Settings,
    *,
    values: Tensor,
    vectors: Tensor,
    residuals: Tensor,
    index: Tensor,
    scale: float,
    floor: float,
    stop_reason: StopReason,
    num_products: int,
    num_verification_products: int,
    method: str,
    notes: tuple[str, ...] = (),
    intervals: tuple[Tensor, Tensor] | None = None,
    bounds: Tensor | None = None,
    null_space_dimension: int | None = None,
    claimed: float | None = None,
    rule: str = "frozen",
) -> Spectrum:
    """Sort pairs, bound their errors, give each its status, and say what the null space is.

    Parameters
    ----------
    settings
        What was asked.
    values, residuals, index
        ``(k,)``: eigenvalues, absolute residuals, places in the whole spectrum.
    vectors
        ``(k, n)``.
    scale
        λmax as known.
    floor
        The residual over λmax that products cannot resolve.
    intervals
        Proved bounds below and above the eigenvalue of each index; None where none is proved, and
        a pair then is known to lie near *some* eigenvalue, at a distance of at most its residual.
    bounds
        Error bounds, where the method knows them by itself.
    null_space_dimension
        Where the method knows more than the rank bound tells.
    claimed
        The chance, over all ends and attempts, that a pair was missed.
    rule
        How the certificate was made.
    """
    n, tol = settings.n, settings.tol
    order = torch.argsort(values, descending=True, stable=True)
    rounding = floor * scale
    if bounds is None:
        bounds = _bounds(values, residuals, index, n, intervals, rounding)
    bounds = bounds[order]
    values, residuals = values[order].clamp(min=0), residuals[order]
    vectors = vectors[order.to(vectors.device)].contiguous()
    proved = stop_reason is StopReason.CONVERGED
    known = n - min(n, settings.rank_bound or n)
    remarks = list(notes)
    if null_space_dimension is not None:
        known = max(known, null_space_dimension)
    elif known:
        remarks.append(
            f"F has a null space of at least {known} dimensions: the model has fewer responses "
            "than the picture has values"
        )
    elif proved and scale > 0:
        # Small is not zero: nothing here tells a null vector from an eigenvalue below rounding.
        silent = int((values + residuals <= rounding).sum())
        if silent:
            remarks.append(
                f"{silent} of the eigenvalues are below what the arithmetic resolves "
                f"(≤ {rounding:.0e}): zero, or as good as"
            )
    return Spectrum(
        eigenvalues=values,
        eigenvectors=vectors,
        eigenindex=index,
        residuals=residuals,
        error_bounds=bounds,
        status=statuses(residuals, tol * scale, verified=proved),
        stop_reason=stop_reason,
        scale=scale,
        tol=tol,
        num_products=num_products,
        num_verification_products=num_verification_products,
        null_space_dimension=known,
        method=method,
        notes=tuple(remarks),
        miss_chance=claimed,
        certificate=rule,
    )


def _bounds(
    values: Tensor,
    residuals: Tensor,
    index: Tensor,
    n: int,
    intervals: tuple[Tensor, Tensor] | None,
    rounding: float,
) -> Tensor:
    """Return a distance within which the eigenvalue lies that a pair stands for.

    That of its index where intervals are proved; otherwise some eigenvalue, at most the residual
    away (Weinstein), or θ where that is less, for the smallest pair: 0 ≤ λmin ≤ θ.
    """
    if intervals is not None:
        lower, upper = intervals
        return torch.maximum(values - lower, upper - values).clamp(min=0) + rounding
    smallest = index == n - 1
    found = torch.where(smallest, torch.minimum(residuals, values.clamp(min=0)), residuals)
    return found + rounding
