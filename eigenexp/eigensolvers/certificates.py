"""What is proven about a pair: error bounds, and the chance that a pair was missed.

A small residual proves that *some* eigenvalue is near, never which one. Three proofs close that
gap here:

* At the bottom, 0 ≤ λ ≤ θ for each index: F = JᵀJ has no negative eigenvalue, and Ritz values lie
  above the eigenvalues of their index (Cauchy). A Ritz value below the allowed error is proven.
* A space that is all of Rⁿ has missed nothing.
* Otherwise a random start is a witness. In a Krylov space from a random unit vector z, an
  eigenvalue μ that left no trace can carry at most the mass 1/Σᵢ pᵢ(μ)² of z (the Christoffel
  function: pᵢ are the orthonormal polynomials of the Krylov space), while a random z has so
  little on any one eigenvector only with a small chance. It costs no product at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Witness",
    "copy_points",
    "error_bound",
    "gap_points",
    "miss_probability",
    "missed_mass",
    "separations",
]


@dataclass(frozen=True)
class Witness:
    """The spectral measure of a random start vector, as far as a Krylov space knows it.

    Attributes
    ----------
    nodes
        ``(m,)`` Ritz values.
    weights
        ``(m,)`` squared coordinates of the (filtered) start vector on the Ritz vectors; sum 1.
    log_last
        log ‖χ(F) u‖ for the monic polynomial χ whose roots are the nodes; −inf when the Krylov
        space is exhausted.
    purged
        ``(r,)`` Ritz values dropped in restarts: u = q(F) z / ‖q(F) z‖ with these roots.
    log_norm
        log ‖q(F) z‖.
    """

    nodes: Tensor
    weights: Tensor
    log_last: float
    purged: Tensor
    log_norm: float


def missed_mass(witness: Witness, points: Tensor) -> Tensor:
    """Return log of the largest mass z can carry at each of ``points`` ``(g,)``.

    With Lagrange polynomials ℓᵢ at the Ritz values θᵢ of weights ωᵢ, the Christoffel function of
    the Krylov space of u is

        1 / mass_u(μ) = Σᵢ ℓᵢ(μ)² / ωᵢ + (χ(μ) / ‖χ(F)u‖)²,

    and a restart, u = q(F)z/‖q(F)z‖, scales it: mass_z(μ) = mass_u(μ) · ‖q(F)z‖² / q(μ)².
    Sources: N. I. Akhiezer, "The classical moment problem", 1965, section 2.5; G. H. Golub and
    G. Meurant, "Matrices, Moments and Quadrature", Princeton 2010, chapter 6.
    """
    tiny = torch.finfo(torch.float64).tiny
    nodes, weights = witness.nodes, witness.weights.clamp_min(tiny)
    apart = (points[:, None] - nodes[None, :]).abs().clamp_min(tiny).log()  # (g, m)
    between = (nodes[:, None] - nodes[None, :]).abs().clamp_min(tiny).log().fill_diagonal_(0.0)
    # log|ℓᵢ(μ)| = Σ_{l≠i} log|μ − θ_l| − log|θᵢ − θ_l|
    chi = apart.sum(dim=1)
    lagrange = chi[:, None] - apart - between.sum(dim=1)[None, :]
    terms = 2 * lagrange - weights.log()[None, :]
    if witness.log_last == -math.inf:
        return torch.full_like(points, -math.inf)
    terms = torch.cat([terms, 2 * (chi - witness.log_last)[:, None]], dim=1)
    filtered = torch.zeros_like(points)
    if len(witness.purged):
        gain = (points[:, None] - witness.purged[None, :]).abs().clamp_min(tiny).log().sum(dim=1)
        filtered = 2 * (gain - witness.log_norm)
    return -torch.logsumexp(terms, dim=1) - filtered


def gap_points(found: Tensor, allowed: float, end: str, count: int = 7) -> Tensor:
    """Return the places away from found eigenvalues where a missed one would make one wrong.

    Parameters
    ----------
    found
        ``(k,)`` wanted values at one end, from the extreme inwards.
    allowed
        Error allowed in an eigenvalue. What lies closer to a found one is a copy of it, see
        :func:`copy_points`; what lies less than this beyond the last does no harm.
    end
        ``"top"`` or ``"bottom"``.
    count
        Points in each gap.
    """
    sign = 1.0 if end == "top" else -1.0
    outward = sign * found  # decreasing
    points = [outward[:1] + allowed]
    limit = float(outward[-1]) + allowed
    for i in range(len(outward) - 1):
        low, high = float(outward[i + 1]) + allowed, float(outward[i]) - allowed
        low = max(low, limit)
        if low < high:
            points.append(torch.linspace(low, high, count, dtype=torch.float64))
    return sign * torch.cat(points)


def copy_points(found: Tensor, allowed: float, end: str) -> Tensor:
    """Return the places near found eigenvalues where one more copy would make one wrong.

    Parameters and their meaning as for :func:`gap_points`. Empty when no copy does harm: one of
    the last wanted value, or of any within ``allowed`` of it.
    """
    sign = 1.0 if end == "top" else -1.0
    outward = sign * found
    limit = outward[-1] + allowed
    near = outward[outward > limit]
    return sign * torch.cat([torch.maximum(near - allowed, limit), near + allowed])


def miss_probability(log_mass: float, dimension: int, count: int = 1) -> float:
    """Return a bound of the chance that a random start has at most this mass on an eigenvector.

    For z uniform on the sphere of ``dimension``, eᵀz has a density of at most √(d / 2π), so
    P((eᵀz)² ≤ w) ≤ √(2 d w / π). ``count`` eigenvectors at once multiply it. Compare J. Kuczyński
    and H. Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms
    with a random start", SIAM J. Matrix Anal. Appl. 13, 1992: the same argument before the solve.
    """
    if log_mass == -math.inf:
        return 0.0
    logarithm = math.log(count) + 0.5 * (math.log(2 * max(dimension, 1) / math.pi) + log_mass)
    return math.exp(min(logarithm, 0.0))


def separations(values: Tensor, residuals: Tensor) -> Tensor:
    """Return for each of the decreasing Ritz ``values`` a distance to all others' eigenvalues.

    ``(p,)``; a neighbour counts at the near end of its residual interval. Not positive where the
    intervals overlap.
    """
    gaps = torch.full_like(values, math.inf)
    if len(values) > 1:
        step = values[:-1] - values[1:]
        gaps[:-1] = torch.minimum(gaps[:-1], step - residuals[1:])
        gaps[1:] = torch.minimum(gaps[1:], step - residuals[:-1])
    return gaps


def error_bound(
    value: float, residual: float, gap: float, *, bottom_proof: bool, rounding: float
) -> float:
    """Return a bound of |λ − θ| for a Rayleigh quotient θ = ``value``.

    The least of: ‖r‖ (some eigenvalue lies so near); ‖r‖² / gap (Kato-Temple, where no other
    eigenvalue lies within ``gap`` of θ: T. Kato, "On the upper and lower bounds of eigenvalues",
    J. Phys. Soc. Japan 4, 1949); θ itself at the bottom, where 0 ≤ λ ≤ θ. ``rounding`` is added:
    no bound is better than the arithmetic.
    """
    bound = residual
    if gap > 0 and math.isfinite(gap):
        bound = min(bound, residual * residual / gap)
    if bottom_proof:
        bound = min(bound, max(value, 0.0))
    return bound + rounding
