"""From what a solver measured to a :class:`~eigenexp.spectrum.Spectrum`."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Settings
from eigenexp.eigensolvers.numerics import error_bounds, statuses
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["make_spectrum", "miss_notes"]


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
    guards: Tensor | None = None,
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
    guards
        ``(g, 2)``: values and residuals of pairs next to the wanted ones, which bound the gaps.
    """
    n, tol = settings.n, settings.tol
    order = torch.argsort(values, descending=True, stable=True)
    values, residuals = values[order].clamp(min=0), residuals[order]
    vectors = vectors[order.to(vectors.device)].contiguous()
    done = stop_reason is StopReason.CONVERGED
    floor = floor * scale
    bounds = error_bounds(
        values, residuals, floor, smallest=index == n - 1, guards=guards if done else None
    )
    known = n - min(n, settings.rank_bound or n)
    # Orthogonal vectors with ‖F v‖ at rounding: as many eigenvalues are zero to rounding.
    silent = int((values + residuals <= floor).sum()) if done and scale > 0 else 0
    remarks = list(notes)
    if known:
        remarks.append(
            f"F has a null space of at least {known} dimensions: the model has fewer responses "
            "than the picture has values"
        )
    elif silent:
        remarks.append(
            f"{silent} of the pairs lie in the null space of F to rounding; its dimension is at "
            f"least {silent}"
        )
    return Spectrum(
        eigenvalues=values,
        eigenvectors=vectors,
        eigenindex=index,
        residuals=residuals,
        error_bounds=bounds,
        status=statuses(residuals, tol * scale, verified=done),
        stop_reason=stop_reason,
        scale=scale,
        tol=tol,
        num_products=num_products,
        num_verification_products=num_verification_products,
        null_space_dimension=max(known, silent),
        method=method,
        notes=tuple(remarks),
    )


def miss_notes(chances: list[float], done: bool) -> tuple[str, ...]:
    """Say how likely it is that a pair beyond the wanted ones was missed.

    Parameters
    ----------
    chances
        The bound of each end that was searched; see :mod:`.witness`.
    done
        Whether the solver has stopped.
    """
    if not done or not chances:
        return ()
    total = sum(chances)
    if total >= 1:
        return (
            "a search from a fresh random vector found no pair beyond these, but was too short to "
            "bound the chance that one was missed; strict_verification=True goes on until it does",
        )
    return (f"the chance that a pair beyond these was missed is at most {total:.2g}",)
