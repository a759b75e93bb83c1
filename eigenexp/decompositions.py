"""Spectra in one piece: from the dense Jacobian, and from a random sketch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenexp.operators import FisherOperator
from eigenexp.orthogonal_iteration import RitzPairs
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

__all__ = ["Sketch", "assemble", "exact_spectrum", "randomized_spectrum", "residual_status"]


def exact_spectrum(jacobian: Tensor, image_shape: tuple[int, ...], tol: float) -> Spectrum:
    """Return all n eigenpairs of F = JᵀJ from the singular values of J ``(m, n)``.

    Squaring J first would lose every eigenvalue below λmax·eps; its singular values keep them to
    λmax·eps². The decomposition runs in float64.
    """
    m, n = jacobian.shape
    singular, rows = _right_singular(jacobian.to(torch.float64))
    values = torch.zeros(n, dtype=torch.float64, device=jacobian.device)
    values[: len(singular)] = singular.square()
    scale = float(values[0])
    # What J's own rounding leaves of an eigenvalue: ‖ΔJ‖ is about eps·‖J‖.
    eps = torch.finfo(jacobian.dtype).eps
    doubt = eps * scale**0.5
    bounds = doubt * (2 * values.sqrt() + doubt)
    return Spectrum(
        eigenvalues=values.to(jacobian.dtype),
        eigenvectors=rows.to(jacobian.dtype).reshape(n, *image_shape),
        eigenindex=torch.arange(n, device=jacobian.device),
        residuals=bounds.to(jacobian.dtype),
        error_bounds=bounds.to(jacobian.dtype),
        status=(PairStatus.CONVERGED,) * n,
        stop_reason=StopReason.CONVERGED,
        scale=scale,
        tol=tol,
        num_products=0,
        null_space_dimension=max(n - m, 0),
        method="exact",
    )


def _right_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values ``(min(m, n),)`` and all right singular vectors ``(n, n)``, as rows.

    A triangular factor with the same ones is decomposed in place of a matrix that is not square.
    """
    m, n = matrix.shape
    if m >= n:
        _, singular, rows = torch.linalg.svd(torch.linalg.qr(matrix, "r").R)
        return singular, rows
    basis, triangle = torch.linalg.qr(matrix.T, "complete")
    _, singular, rows = torch.linalg.svd(triangle[:m].T)
    return singular, torch.cat([rows @ basis[:, :m].T, basis[:, m:].T])


@dataclass(frozen=True)
class Sketch:
    """A spectrum from a random sketch, and how much of F the sketch misses.

    ``error`` is the mean of ‖(I − QQᵀ)Fω‖ over standard normal ω, Q the basis of the sketch.
    """

    spectrum: Spectrum
    error: float


def randomized_spectrum(
    operator: FisherOperator, k: int, p: int, q: int, seed: int, tol: float
) -> Sketch:
    """Return the top ``k`` pairs from ``k + p`` random vectors multiplied ``q + 1`` times by F.

    The block is made orthonormal before each product, so that no power overflows. Source: Halko,
    Martinsson and Tropp, SIAM Review 53 (2011), algorithm 4.4.
    """
    n = operator.shape[0]
    width = min(k + p, n)
    generator = torch.Generator().manual_seed(seed)

    def noise(columns: int) -> Tensor:
        drawn = torch.randn(n, columns, generator=generator, dtype=torch.float64)
        return drawn.to(device=operator.device, dtype=operator.dtype)

    basis = torch.linalg.qr(noise(width), "reduced").Q
    for _ in range(q + 1):
        basis = torch.linalg.qr(operator.apply(basis)[0], "reduced").Q
    pairs, _ = RitzPairs.of(basis, *operator.apply(basis))
    probes = 10
    missed = operator @ noise(probes)
    missed = missed - basis @ (basis.T @ missed)
    error = float(torch.linalg.vector_norm(missed, dim=0).mean())
    pairs = RitzPairs(pairs.values[:k], pairs.vectors[:, :k], pairs.residuals[:k])
    spectrum = assemble(
        [pairs],
        [torch.arange(k)],
        image_shape=operator.image_shape,
        rank_bound=operator.rank_bound,
        scale=float(pairs.values[0]),
        tol=tol,
        num_products=width * (q + 2) + probes,
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
    return Spectrum(
        eigenvalues=pairs.values,
        eigenvectors=pairs.vectors.T.reshape(-1, *image_shape).contiguous(),
        eigenindex=places.to(pairs.values.device),
        residuals=pairs.residuals,
        error_bounds=pairs.residuals,
        status=status,
        stop_reason=StopReason.CONVERGED if done else StopReason.MAX_PRODUCTS,
        scale=scale,
        tol=tol,
        num_products=num_products,
        null_space_dimension=math.prod(image_shape) - rank_bound,
        method=method,
        notes=notes,
    )
