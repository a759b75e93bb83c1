"""How likely a pair of a pencil was missed: the frozen witness, in the Euclidean inner product.

The pencil M v = μ S v, S positive definite, 0 ≤ M ≤ S. Vectors U (n × k) with UᵀSU = I are *frozen*
before a random unit vector g is drawn. Let e, ‖e‖₂ = 1, be the top vector of the pencil on the
complement {x: UᵀSx = 0}, with μ = λ. It depends on M, S and U alone, so that

    P(|⟨g, e⟩| ≤ c) ≤ √(2n/π) · c.

For every x of the complement xᵀ(M − λS)e = 0, and (S U a)ᵀe = 0 for every a. Hence

    |⟨g, e⟩| ≤ ‖y‖₂,    y = g − (M − λS) x − S U a,

the least over a search space. Where ‖y(λ)‖ ≤ c for all λ from τ to 1, no eigenvalue of the pencil
on the complement exceeds τ, but for that chance. No factor 1/√δ enters.

With Ritz pairs MX = SXΘ + R of the complement, XᵀSX = I, x = X(λ − Θ)⁻¹q:

    y = g + (SX − R(λ − Θ)⁻¹) q − S U a,

a least squares problem of which the Gram matrix of [SX, R, SU, g] is all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from eigenexp.comparison.space import SharedSpace

__all__ = ["Exclusion", "Form", "lehmann_upper", "residual_gram", "ritz_pairs"]

COARSE = 8
MOST = 1500
NEAR = 0.95
ROUNDING = 64 * 2.0**-53
CHUNK = 2**16
"""Rows of the vectors whose inner products are added up at a time."""


@dataclass(frozen=True)
class Form:
    """A combination Σ w_i F_i + shift of the operators."""

    weights: tuple[float, ...]
    shift: float

    def matrix(self, space: SharedSpace) -> Tensor:
        """Return its projection on the space."""
        return space.matrix(self.weights, self.shift)

    def times(self, space: SharedSpace, coefficients: Tensor) -> Tensor:
        """Return it times V c, ``(n, b)`` float64."""
        return space.combined(self.weights, self.shift, coefficients)


def ritz_pairs(m: Tensor, s: Tensor, complement: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, decreasing, and S-orthonormal vectors of the projected pencil.

    Parameters
    ----------
    m, s
        ``(j, j)``, symmetric, s positive definite.
    complement
        ``(j, e)``: look within its span only.
    """
    if complement is not None:
        m, s = complement.mT @ m @ complement, complement.mT @ s @ complement
    m, s = (m + m.mT) / 2, (s + s.mT) / 2
    values, vectors = scipy.linalg.eigh(m.numpy(), s.numpy(), check_finite=False)
    found = torch.from_numpy(vectors[:, ::-1].copy())
    if complement is not None:
        found = complement @ found
    return torch.from_numpy(values[::-1].copy()), found


def residual_gram(
    space: SharedSpace, m: Form, s: Form, values: Tensor, coefficients: Tensor, delta: float
) -> Tensor:
    """Return an upper bound of RᵀS⁻¹R, R = M U − S U Θ, ``(k, k)``, given S ≥ δ.

    For any Z, RᵀS⁻¹R ≤ (R − SZ)ᵀ(R − SZ)/δ + RᵀZ + ZᵀR − ZᵀSZ; the Z of the space that makes its
    trace least costs no product. ‖R‖²/δ alone is hundreds of times too wide.
    """
    k = coefficients.shape[1]
    if not delta > 0:
        return torch.full((k, k), float("inf"), dtype=torch.float64)
    eye = torch.eye(space.size, dtype=torch.float64)
    r = m.times(space, coefficients) - s.times(space, coefficients * values)
    sv = s.times(space, eye)
    gram = (sv.mT @ sv).cpu() - delta * s.matrix(space)
    right = (sv.mT @ r).cpu() - delta * (space.basis.double().mT @ r).cpu()
    scale = gram.diagonal().clamp(min=1e-300).rsqrt()
    scaled = scale[:, None] * gram * scale
    scaled = scaled + 1e-14 * len(scale) * torch.eye(len(scale), dtype=torch.float64)
    c = scale[:, None] * torch.linalg.lstsq(scaled, scale[:, None] * right).solution
    sz, z = sv @ c.to(sv), space.basis.double() @ c.to(sv)
    rest = r - sz
    cross = r.mT @ z
    found = (rest.mT @ rest) / delta + cross + cross.mT - z.mT @ sz
    plain = (r.mT @ r) / delta
    found = ((found + found.mT) / 2).cpu()
    plain = plain.cpu()
    # What cancels leaves rounding, relative to the parts.
    size = float(z.norm() * sz.norm() + rest.square().sum() / delta)
    found = found + ROUNDING * size * torch.eye(k, dtype=torch.float64)
    return found if float(found.trace()) < float(plain.trace()) else plain


def lehmann_upper(values: Tensor, gram: Tensor, edge: float) -> Tensor:
    """Return upper bounds of the k largest eigenvalues, ``(k,)``, given that at most k exceed τ.

    Lehmann's: λ_i ≤ τ + 1/ν_i with (Θ − τ) x = ν ((Θ − τ)² + RᵀS⁻¹R) x. One vector: Temple's
    θ + ‖r‖²/(θ − τ).

    Parameters
    ----------
    values
        Ritz values, ``(k,)``, decreasing, all above τ.
    gram
        RᵀS⁻¹R or more, ``(k, k)``.
    edge
        τ.
    """
    if not bool(torch.isfinite(gram).all()) or not float(values.min()) > edge:
        return torch.full_like(values, float("inf"))
    gaps = torch.diag(values - edge)
    squares = gaps @ gaps + (gram + gram.mT) / 2
    # λ − τ are the eigenvalues of the inverse problem.
    found = scipy.linalg.eigh(squares.numpy(), gaps.numpy(), eigvals_only=True)
    return edge + torch.from_numpy(found[::-1].copy())


@dataclass(frozen=True)
class Exclusion:
    """What the search space knows of the pencil beyond frozen vectors.

    Attributes
    ----------
    values
        Θ: Ritz values on the complement, ``(m,)``, decreasing.
    vectors
        X as coefficients in V, ``(j, m)``.
    gram
        Inner products of the columns [SX, R, SU, g], ``(2m + k + 1,) * 2``.
    frozen
        k.
    probe
        Vᵀg, ``(j,)``.
    sx
        SX's own Gram matrix is ``gram[:m, :m]``.
    """

    values: Tensor
    vectors: Tensor
    gram: Tensor
    frozen: int
    probe: Tensor

    @classmethod
    def of(
        cls, space: SharedSpace, m: Form, s: Form, frozen: Tensor, probe: Tensor
    ) -> Exclusion | None:
        """Look at what is beyond ``frozen`` U ``(j, k)``; None where there is nothing."""
        j, k = frozen.shape
        if j <= k:
            return None
        small_s, small_m = s.matrix(space), m.matrix(space)
        rest = torch.linalg.qr(small_s @ frozen, mode="complete").Q[:, k:]
        values, vectors = ritz_pairs(small_m, small_s, rest)
        width = 2 * len(values) + k + 1
        gram = torch.zeros(width, width, dtype=torch.float64, device=space.basis.device)
        device = gram.device
        x, u, t, g = (a.to(device) for a in (vectors, frozen, values, probe))
        step = max(256, CHUNK // max(1, width // 64))
        for start in range(0, space.n, step):
            part = slice(start, start + step)
            sx = _rows(space, s, x, part)
            r = _rows(space, m, x, part) - sx * t
            su = _rows(space, s, u, part)
            gg = (space.basis[part].double() @ g)[:, None]
            columns = torch.cat([sx, r, su, gg], dim=1)
            gram += columns.mT @ columns
        return cls(values, vectors, gram.cpu(), k, probe)

    def at(self, suspect: float) -> tuple[float, Tensor]:
        """Return ‖y‖ at λ and z with x = X z, ``(m,)``."""
        m, k = len(self.values), self.frozen
        distance = suspect - self.values
        tiny = 1e-15
        distance = torch.where(distance.abs() < tiny, torch.full_like(distance, tiny), distance)
        inverse = 1 / distance
        g = self.gram
        xr = g[:m, m : 2 * m] * inverse
        top = g[:m, :m] - xr - xr.mT + inverse[:, None] * g[m : 2 * m, m : 2 * m] * inverse
        side = g[:m, 2 * m : 2 * m + k] - inverse[:, None] * g[m : 2 * m, 2 * m : 2 * m + k]
        normal = torch.cat(
            [
                torch.cat([top, side], dim=1),
                torch.cat([side.mT, g[2 * m : 2 * m + k, 2 * m : 2 * m + k]], dim=1),
            ]
        )
        right = torch.cat([g[:m, -1] - inverse * g[m : 2 * m, -1], g[2 * m : 2 * m + k, -1]])
        scale = normal.diagonal().clamp(min=1e-300).rsqrt()
        scaled = scale[:, None] * normal * scale
        eye = torch.eye(len(scale), dtype=torch.float64)
        factor, info = torch.linalg.cholesky_ex(scaled + 1e-14 * eye)
        if int(info):
            factor = torch.linalg.cholesky(scaled + 1e-10 * eye)
        w = -scale * torch.cholesky_solve((scale * right)[:, None], factor)[:, 0]
        square = g[-1, -1] + 2 * w @ right + w @ normal @ w
        # Each inner product is known to rounding of the sizes of its two columns: then the value
        # holds for this w, however it was found.
        sizes = g.diagonal().clamp(min=0).sqrt()
        q = w[:m].abs()
        size = sizes[-1] + (q * (sizes[:m] + inverse.abs() * sizes[m : 2 * m])).sum()
        size = size + (w[m:].abs() * sizes[2 * m : 2 * m + k]).sum()
        norm = float((square.clamp(min=0) + ROUNDING * size.square()).sqrt())
        return norm, inverse * w[:m]

    def largest(self, edge: float, limit: float, last: float = 1.0) -> tuple[float, float]:
        """Return a bound of ‖y(λ)‖ for all λ from ``edge`` to ``last``, as far as it matters.

        With x linear in 1/d between neighbours a, b, d = λ − θ₁ (see
        :func:`~eigenexp.eigensolvers.certificates.witness.largest_trace`),

            ‖y‖ ≤ max(‖y_a‖, ‖y_b‖) + (√d_b − √d_a)/(√d_b + √d_a) · ‖S(d_b x_b − d_a x_a)‖.

        Returns
        -------
        tuple
            The bound, and the suspect that is hardest to exclude.
        """
        near = float(self.values[0])
        first = max(edge - near, 1e-15)
        ratio = max(last - near, first) / first
        points = [near + first * ratio ** (i / (COARSE - 1)) for i in range(COARSE)]
        points[0], points[-1] = edge, max(last, edge)
        looked = [self.at(p) for p in points]
        m = len(self.values)
        sx = self.gram[:m, :m]
        while True:
            norms = [norm for norm, _ in looked]
            worst = max(range(len(norms)), key=norms.__getitem__)
            if norms[worst] > NEAR * limit or len(points) >= MOST:
                return max(max(norms), limit * (1 + 1e-9)), points[worst]
            wide: list[int] = []
            for i in range(len(points) - 1):
                a, b = points[i] - near, points[i + 1] - near
                share = (b**0.5 - a**0.5) / max(b**0.5 + a**0.5, 1e-300)
                moved = b * looked[i + 1][1] - a * looked[i][1]
                length = float((moved @ sx @ moved).clamp(min=0)) ** 0.5
                length += ROUNDING * float((moved.abs() * sx.diagonal().sqrt()).sum())
                if max(norms[i], norms[i + 1]) + share * length > limit:
                    wide.append(i)
            if not wide:
                return limit, points[worst]
            for i in reversed(wide):
                middle = near + ((points[i] - near) * (points[i + 1] - near)) ** 0.5
                points.insert(i + 1, middle)
                looked.insert(i + 1, self.at(middle))

    def direction(self, space: SharedSpace, m: Form, s: Form, suspect: float) -> Tensor:
        """Return the Galerkin residual g − (M − λS) x at a suspect, ``(n, 1)`` float64.

        Corrected with a preconditioner, it makes the search the method of conjugate gradients.
        """
        distance = (suspect - self.values).clamp(min=1e-14)
        x = (self.vectors @ ((self.vectors.mT @ self.probe) / distance))[:, None]
        g = space.basis.double() @ self.probe.to(space.basis.device)
        return g[:, None] + m.times(space, x) - s.times(space, x * suspect)


def _rows(space: SharedSpace, form: Form, coefficients: Tensor, part: slice) -> Tensor:
    found = form.shift * (space.basis[part].double() @ coefficients)
    for i, weight in enumerate(form.weights):
        if weight:
            found = found + weight * (space.products(i)[part].double() @ coefficients)
    return found


def span(parts: Sequence[Tensor]) -> Tensor:
    """Return coefficients side by side."""
    return torch.cat(list(parts), dim=1)
