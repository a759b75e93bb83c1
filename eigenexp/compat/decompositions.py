"""Spectra in one piece: from the dense Jacobian, and from a random sketch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenexp.compat.orthogonal_iteration import RitzPairs
from eigenexp.eigensolvers import RandomizedSVD
from eigenexp.eigensolvers.dense_decomposition import jacobian_eigenpairs, perturbation_bounds
from eigenexp.eigensolvers.randomized_svd import VERIFICATION_PRODUCTS
from eigenexp.errors import ProductError
from eigenexp.operators import FisherLike
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

__all__ = [
    "Sketch",
    "assemble",
    "exact_spectrum",
    "measured_spectrum",
    "randomized_spectrum",
    "residual_status",
    "sketch_products",
]


def exact_spectrum(jacobian: Tensor, image_shape: tuple[int, ...], tol: float) -> Spectrum:
    """Return all n eigenpairs of F = JᵀJ from the singular values of J ``(m, n)``.

    By the same functions as ``method="exact"`` of the other doors, from a J at hand: it is kept.
    """
    m, n = jacobian.shape
    values, rows = jacobian_eigenpairs(jacobian)
    scale = float(values[0])
    # What J's own rounding leaves of an eigenvalue, ‖ΔJ‖ being about eps·‖J‖, and the
    # decomposition's, which runs in float64.
    bounds = perturbation_bounds(values, torch.finfo(jacobian.dtype).eps * scale**0.5)
    bounds += n**0.5 * torch.finfo(torch.float64).eps * scale
    rows, values, bounds = (tensor.to(jacobian.dtype) for tensor in (rows, values, bounds))
    return measured_spectrum(
        RitzPairs(values, rows.mT, bounds),
        torch.arange(n),
        rows.reshape(n, *image_shape),
        status=(PairStatus.CONVERGED,) * n,
        stop_reason=StopReason.CONVERGED,
        scale=scale,
        tol=tol,
        num_products=0,
        null_space_dimension=max(n - m, 0),
        method="exact",
    )


@dataclass(frozen=True)
class Sketch:
    """A spectrum from a random sketch, and how much of F the sketch misses.

    ``error`` is the mean of ‖(I − QQᵀ)Fω‖ over standard normal ω, Q the basis of the sketch.
    """

    spectrum: Spectrum
    error: float


def sketch_products(k: int, p: int, q: int) -> int:
    """Return how many products :func:`randomized_spectrum` takes at the most.

    The blocks of the sketch, one that measures its pairs, and vectors for what it misses.
    """
    return (q + 2) * (k + p) + VERIFICATION_PRODUCTS


def randomized_spectrum(
    operator: FisherLike,
    k: int,
    p: int,
    q: int,
    seed: int,
    tol: float,
) -> Sketch:
    """Return the top ``k`` pairs from ``k + p`` random vectors multiplied ``q + 1`` times by F.

    The block is made orthonormal before each product, so that no power overflows. Source: Halko,
    Martinsson and Tropp, SIAM Review 53 (2011), algorithm 4.4.
    """
    problem = operator.problem
    solver = RandomizedSVD(
        problem.n,
        k=k,
        oversampling=p,
        power_iterations=q,
        tol=tol,
        seed=seed,
        **problem.as_settings(),
    )
    while not solver.done:
        solver.tell(*operator.apply(solver.ask()))
    ritz, error = solver.ritz, solver.missed or 0.0
    if ritz is None:
        raise ProductError("randomized_svd: expected at least one product, got none")
    pairs = RitzPairs(ritz.values[:k], ritz.vectors[:, :k], ritz.residuals[:k])
    spectrum = assemble(
        [pairs],
        [torch.arange(k)],
        image_shape=problem.image_shape,
        rank_bound=problem.rank_bound,
        scale=float(ritz.values[0]),
        tol=tol,
        num_products=solver.num_products,
        method="randomized_svd",
        notes=(f"the sketch misses {error:.3g} of F on a random direction, on average",),
    )
    return Sketch(spectrum, error)


def residual_status(
    pairs: RitzPairs, index: Tensor, rank_bound: int, scale: float, tol: float
) -> tuple[PairStatus, ...]:
    """Return what residuals alone can tell: a small one never proves that a pair is extremal.

    A pair whose residual exceeds a tenth of its own eigenvalue is open too, unless that residual is
    rounding, or the eigenvalue is known to be zero (its index is not below the rank) and reads so:
    else it could as well be zero, or several times larger.
    """
    eps = torch.finfo(pairs.values.dtype).eps
    open_ = pairs.residuals > tol * scale
    vague = (pairs.residuals > 0.1 * pairs.values) & (pairs.residuals > 50 * eps * scale)
    vague &= (index.to(pairs.values.device) < rank_bound) | (pairs.values > 1e-6 * scale)
    return tuple(
        PairStatus.UNCONVERGED if bad else PairStatus.UNVERIFIED for bad in (open_ | vague).tolist()
    )


def measured_spectrum(pairs: RitzPairs, index: Tensor, pictures: Tensor, **facts: Any) -> Spectrum:
    """Return a spectrum of measured pairs: nothing but their residuals bounds their errors.

    Parameters
    ----------
    pairs
        In the order in which the spectrum is to have them.
    index
        ``(k,)``: places in the whole spectrum.
    pictures
        ``(k, *image_shape)``: their vectors.
    facts
        The fields of :class:`~eigenexp.Spectrum` that measuring does not tell.
    """
    return Spectrum(
        eigenvalues=pairs.values,
        eigenvectors=pictures,
        eigenindex=index.to(pairs.values.device),
        residuals=pairs.residuals,
        error_bounds=pairs.residuals,
        **facts,
    )


def assemble(
    ends: list[RitzPairs],
    indices: list[Tensor],
    *,
    image_shape: tuple[int, ...],
    rank_bound: int,
    scale: float,
    tol: float,
    num_products: int,
    method: str,
    notes: tuple[str, ...] = (),
) -> Spectrum:
    """Put the pairs of one or both ends into one spectrum, in decreasing order."""
    pairs = RitzPairs(
        torch.cat([end.values for end in ends]),
        torch.cat([end.vectors for end in ends], dim=1),
        torch.cat([end.residuals for end in ends]),
    )
    places = torch.cat(indices)
    if len(set(places.tolist())) == len(places):
        # Blocks that are not converged may overlap in value; the order is kept even so.
        order = pairs.values.argsort(descending=True, stable=True)
        pairs = RitzPairs(pairs.values[order], pairs.vectors[:, order], pairs.residuals[order])
    status = residual_status(pairs, places, rank_bound, scale, tol)
    done = all(s is not PairStatus.UNCONVERGED for s in status)
    return measured_spectrum(
        pairs,
        places,
        pairs.vectors.T.reshape(-1, *image_shape).contiguous(),
        status=status,
        stop_reason=StopReason.CONVERGED if done else StopReason.MAX_PRODUCTS,
        scale=scale,
        tol=tol,
        num_products=num_products,
        null_space_dimension=math.prod(image_shape) - rank_bound,
        method=method,
        notes=notes,
    )
