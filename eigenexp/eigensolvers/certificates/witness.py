"""How likely a pair beyond the wanted ones was missed: a sound bound from one random vector.

The wanted Ritz vectors U₀ are *frozen* before a random unit vector g is drawn. With
P₀ = I − U₀U₀ᵀ and F′ = P₀ F P₀, a unit eigenvector e of F′ in the range of P₀ with the eigenvalue λ
depends on F and U₀ alone, so ⟨g, e⟩ is a coordinate of a random direction whatever e is, and

    P(|⟨g, e⟩| ≤ c) ≤ √(2n/π) · c.

For any x in the range of P₀, ⟨g, e⟩ = ⟨P₀g − (λ − F′) x, e⟩, hence |⟨g, e⟩| ≤ ‖y(λ)‖ with
y(λ) = P₀g − (λ − F′) x, the least over a search space S that holds P₀g. Where ‖y(λ)‖ ≤ c for *all*
λ beyond an edge, F′ has no eigenvalue there, but for that chance. ``docs/certificate.md`` proves
what follows for F, over restarts and several attempts.

With Ritz pairs F′X = XΘ + R of S, P₀g = X a and x = X z,

    ‖y‖² = ‖a − (λ − Θ) z‖² + ‖R z‖²,

so that the least squares problem needs the small matrix RᵀR alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Evidence",
    "Trace",
    "joint_chance",
    "joint_level",
    "largest_trace",
    "suspects_beyond",
    "trace_limit",
]

COARSE = 12
"""Suspects looked at first, geometrically spaced between the edge and far away."""
FAR = 1e7
"""Largest suspect, over λmax; beyond it ‖F′P₀g‖/λ bounds the trace."""
NEAR = 0.95
"""Share of the limit a suspect's own trace may have, so that the intervals between can pass."""
MOST = 1500
"""Suspects looked at, at the most, to bound the supremum between them."""
ROUNDING = 64 * 2.0**-53
"""Relative rounding of an inner product of two residuals, in float64."""
BATCH = 2**22
"""Numbers in one batch of small matrices."""


def trace_limit(chance: float, n: int) -> float:
    """Return c: a missed eigenvector leaves a trace of at most c with at most this ``chance``."""
    return chance / math.sqrt(2 * n / math.pi)


def joint_chance(level: float, count: int) -> float:
    """Return a bound of P(Q₁ ⋯ Q_w ≤ t) for independent Qᵢ with P(Qᵢ ≤ q) ≤ q each.

    That of w uniform numbers, t · Σ_{j<w} ln(1/t)ʲ / j!: a product of w of them is at most t where
    a sum of w exponential numbers is at least ln(1/t).

    Parameters
    ----------
    level
        t, in (0, 1].
    count
        w.
    """
    if level >= 1:
        return 1.0
    term = total = 1.0
    for j in range(1, count):
        term *= -math.log(level) / j
        total += term
    return level * total


def joint_level(chance: float, count: int) -> float:
    """Return the largest t of which :func:`joint_chance` is at most ``chance``."""
    if count == 1:
        return chance
    low, high = math.log(chance) - 200.0, math.log(chance)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if joint_chance(math.exp(middle), count) <= chance else (low, middle)
        )
    return math.exp(low)


@dataclass(frozen=True)
class Trace:
    """The largest trace an eigenvector of F′ beyond an edge can have left.

    ``bound`` holds for all λ beyond the edge; ``suspect`` is the λ looked at that is hardest to
    exclude, ``worst`` its ‖y‖, and ``weights`` (m,) the x of it in Ritz vectors of S.
    """

    bound: float
    worst: float
    suspect: float
    weights: Tensor


@dataclass(frozen=True)
class Evidence:
    """What the search space S knows of F′.

    Attributes
    ----------
    values
        Ritz values of F′ on S, ``(m,)``, decreasing.
    gram
        RᵀR of their residuals, ``(m, m)``.
    probe
        a: the coordinates of P₀g in the Ritz vectors, ``(m,)``.
    """

    values: Tensor
    gram: Tensor
    probe: Tensor

    def at(self, suspects: Tensor) -> tuple[Tensor, Tensor]:
        """Return ‖y‖ ``(p,)`` and the least squares solutions z ``(p, m)`` for each suspect."""
        m, count = len(self.values), len(suspects)
        norms, weights = [], []
        step = max(1, BATCH // max(1, m * m))
        for start in range(0, count, step):
            distance = suspects[start : start + step, None] - self.values
            # A Ritz value at λ itself: nothing can be concluded, and the norm says so.
            tiny = 1e-15 * float(self.values.abs().max()) + 1e-300
            distance = torch.where(distance.abs() < tiny, torch.full_like(distance, tiny), distance)
            inverse = 1 / distance
            scaled = inverse[:, :, None] * self.gram * inverse[:, None, :]
            matrix = scaled + torch.eye(m, dtype=scaled.dtype)
            q = _solved(matrix, self.probe.expand(len(distance), m)[..., None])[..., 0]
            outside = (q * (scaled @ q[..., None])[..., 0]).sum(1).clamp(min=0)
            # Entries of RᵀR are known to ‖r_i‖ ‖r_j‖ of rounding, and so is zᵀRᵀRz. From a − q
            # itself, not from what q should solve: then any q gives a bound, however it was found.
            sizes = (q.abs() * inverse.abs() * self.gram.diagonal().clamp(min=0).sqrt()).sum(1)
            square = (self.probe - q).square().sum(1) + outside + ROUNDING * sizes.square()
            norms.append(square.sqrt())
            weights.append(inverse * q)
        return torch.cat(norms), torch.cat(weights)

    def far(self) -> float:
        """Return ‖F′P₀g‖: the trace left by λ is at most this over λ."""
        inside = (self.values * self.probe).square().sum()
        return math.sqrt(max(0.0, float(inside + self.probe @ self.gram @ self.probe)))


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return M⁻¹ b for matrices that are positive definite, but for rounding."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info == 0).all()):
        solution: Tensor = torch.cholesky_solve(right, factor)
        return solution
    general: Tensor = torch.linalg.solve(matrix, right)
    return general


def suspects_beyond(end: str, values: Tensor, edge: float, scale: float, count: int) -> Tensor:
    """Return λ from ``edge`` to beyond λmax, or down to 0, geometric in their distance to F′.

    Parameters
    ----------
    end
        ``"top"`` or ``"bottom"``.
    values
        Ritz values of F′, decreasing.
    edge
        The nearest suspect.
    scale
        λmax.
    """
    ends = {"top": (float(values[0]), FAR * scale), "bottom": (float(values[-1]), 0.0)}
    nearest, last = ends[end]
    near, far = abs(edge - nearest), abs(last - nearest)
    if end == "bottom" and edge <= 0:
        return torch.tensor([0.0], dtype=torch.float64)
    near = max(near, 1e-15 * scale)
    steps = torch.linspace(0, 1, count, dtype=torch.float64)
    distances = near * (max(far, near) / near) ** steps
    points = nearest + distances if end == "top" else nearest - distances
    points[0], points[-1] = edge, last
    return points


def largest_trace(
    evidence: Evidence,
    end: str,
    edge: float,
    scale: float,
    limit: float,
    last: float | None = None,
) -> Trace:
    """Bound ‖y(λ)‖ for all λ beyond ``edge``, as far as it matters for ``limit``.

    Let σ be the Ritz value next to the edge, d = |λ − σ|, and a, b two neighbours among the
    suspects. With x = α x_a + β x_b, α + β = 1, linear in 1/d,

        ‖y(λ)‖ ≤ max(‖y_a‖, ‖y_b‖) + (√d_b − √d_a) / (√d_b + √d_a) · ‖d_b z_b − d_a z_a‖,

    for all λ between. Intervals are halved until that is at most ``limit``, or a suspect alone
    comes too near it.

    Parameters
    ----------
    last
        The farthest suspect, where it is not beyond λmax or 0.
    """
    values = evidence.values
    nearest, sign = (values[0], 1.0) if end == "top" else (values[-1], -1.0)
    if last is None:
        points = suspects_beyond(end, values, edge, scale, COARSE)
    else:
        points = torch.tensor([edge, last], dtype=torch.float64)
    norms, weights = evidence.at(points)
    while True:
        worst = int(norms.argmax())
        distances = (points - nearest).abs()
        roots, scaled = distances.sqrt(), distances[:, None] * weights
        shares = (roots[1:] - roots[:-1]).abs() / (roots[1:] + roots[:-1]).clamp(min=1e-300)
        bounds = torch.maximum(norms[:-1], norms[1:])
        bounds = bounds + shares * (scaled[1:] - scaled[:-1]).norm(dim=1)
        wide = torch.nonzero(bounds > limit).flatten()
        if not len(wide) or float(norms[worst]) > NEAR * limit or len(points) >= MOST:
            break
        middle = nearest + sign * (distances[wide] * distances[wide + 1]).sqrt()
        more, their = evidence.at(middle)
        points, norms = torch.cat([points, middle]), torch.cat([norms, more])
        weights = torch.cat([weights, their])
        order = points.argsort(descending=end == "bottom")
        points, norms, weights = points[order], norms[order], weights[order]
    bound = float(bounds.max()) if len(bounds) else float(norms[worst])
    if end == "top" and last is None:
        bound = max(bound, evidence.far() / (FAR * scale))
    bound = max(bound, float(norms[worst]))
    return Trace(bound, float(norms[worst]), float(points[worst]), weights[worst])
