"""One search space for several operators: orthonormal V with the products F_i V of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.numerics import check_symmetric
from eigenexp.errors import ProductError

__all__ = ["SharedSpace"]

CHUNK = 2**22
"""Numbers rotated at a time in a restart."""
GROWTH = 64
"""Vectors that room is made for at a time."""


class SharedSpace:
    """V ``(n, size)``, orthonormal, and W_i = F_i V of N operators.

    Parameters
    ----------
    n, count
        Length of a vector, and N.
    dtype, device
        Of vectors and products; projected matrices are float64 on the CPU.
    eps
        Relative rounding of a product.
    """

    def __init__(
        self, n: int, count: int, *, dtype: torch.dtype, device: torch.device, eps: float
    ) -> None:
        self.n, self.count, self.size, self.eps = n, count, 0, eps
        # One vector a row; room grows with what is needed.
        self._v = torch.empty(0, n, dtype=dtype, device=device)
        self._w = torch.empty(count, 0, n, dtype=dtype, device=device)
        self.projected = torch.zeros(count, 0, 0, dtype=torch.float64)

    @property
    def basis(self) -> Tensor:
        """V, ``(n, size)``, a view."""
        return self._v[: self.size].mT

    def products(self, i: int) -> Tensor:
        """F_i V, ``(n, size)``, a view."""
        return self._w[i, : self.size].mT

    def vectors(self, coefficients: Tensor) -> Tensor:
        """Return V c, ``(n, b)``, for c ``(size, b)`` in float64."""
        return self.basis @ coefficients.to(self._v)

    def combined(self, weights: Sequence[float], shift: float, coefficients: Tensor) -> Tensor:
        """Return (Σ w_i F_i + shift) V c, ``(n, b)``, in float64."""
        c = coefficients.to(device=self._v.device)
        out = shift * (self.basis.double() @ c)
        for i, weight in enumerate(weights):
            if weight:
                out = out + weight * (self.products(i).double() @ c)
        return out

    def matrix(self, weights: Sequence[float], shift: float) -> Tensor:
        """Return Vᵀ(Σ w_i F_i + shift)V, ``(size, size)``, float64."""
        summed = torch.einsum(
            "i,ijk->jk", torch.tensor(weights, dtype=torch.float64), self.projected
        )
        return summed + shift * torch.eye(self.size, dtype=torch.float64)

    # -- growing -------------------------------------------------------------------------------

    def fresh(self, directions: Tensor, randn: Callable[[int, int], Tensor]) -> Tensor:
        """Return ``directions`` ``(n, b)``, orthonormal and orthogonal to V.

        A direction that lies in V to rounding is replaced by a random one.
        """
        eps = torch.finfo(self._v.dtype).eps
        ready = directions.new_empty(0, self.n)
        for column in directions.to(self._v).unbind(1):
            vector, done = column, False
            for _ in range(20):
                norm = float(vector.norm())
                if norm > 0 and bool(torch.isfinite(vector).all()):
                    vector, done = vector / norm, True
                    for _ in range(3):
                        vector = self._orthogonal(vector, ready)
                        after = float(vector.norm())
                        if after < 30 * eps:
                            done = False
                            break
                        vector = vector / after
                        if after > 0.7:
                            break
                if done:
                    break
                vector = randn(self.n, 1)[:, 0].to(column)
            if not done:
                raise ProductError(
                    "the search space cannot grow: every direction tried lies in it to rounding"
                )
            ready = torch.cat([ready, vector[None]])
        return ready.mT

    def _orthogonal(self, vector: Tensor, others: Tensor) -> Tensor:
        if self.size:
            v = self._v[: self.size]
            vector = vector - v.mT @ (v @ vector)
        if len(others):
            vector = vector - others.mT @ (others @ vector)
        return vector

    def grow(self, vectors: Tensor, products: Sequence[Tensor]) -> None:
        """Take ``vectors`` ``(n, b)``, orthonormal and orthogonal to V, and F_i times them.

        Raises
        ------
        ProductError
            When products cannot come from symmetric operators; the space is then as it was.
        """
        j, b = self.size, vectors.shape[1]
        grown = torch.zeros(self.count, j + b, j + b, dtype=torch.float64)
        for i, image in enumerate(products):
            forward = self._v[:j] @ image
            corner = (vectors.mT @ image).double().cpu()
            scale = max(float(self._w[i, :j].norm(dim=1).max()) if j else 0.0, float(image.norm()))
            if scale > 0:
                check_symmetric(corner, corner.mT, scale, self.n, self.eps)
                if j:
                    backward = self._w[i, :j] @ vectors
                    check_symmetric(forward, backward, scale, self.n, self.eps)
            grown[i, :j, :j] = self.projected[i]
            grown[i, :j, j:] = forward.double().cpu()
            grown[i, j:, :j] = grown[i, :j, j:].mT
            grown[i, j:, j:] = (corner + corner.mT) / 2
        if j + b > len(self._v):
            self._enlarge(max(j + b, len(self._v) + GROWTH))
        self._v[j : j + b] = vectors.mT
        for i, image in enumerate(products):
            self._w[i, j : j + b] = image.mT
        self.projected, self.size = grown, j + b

    def _enlarge(self, capacity: int) -> None:
        v, w = self._v, self._w
        self._v = v.new_empty(capacity, self.n)
        self._w = w.new_empty(self.count, capacity, self.n)
        self._v[: self.size], self._w[:, : self.size] = v[: self.size], w[:, : self.size]

    def restart(self, coefficients: Tensor) -> Tensor:
        """Shrink to the span of V c, c ``(size, e)``; return the rotation Q with V ← V Q."""
        norms = coefficients.norm(dim=0).clamp(min=1e-300)
        u, s, _ = torch.linalg.svd(coefficients / norms, full_matrices=False)
        rotation = torch.linalg.qr(u[:, s > 1e-10]).Q
        turned = rotation.mT.to(self._v)
        j, kept = self.size, rotation.shape[1]
        step = max(1, CHUNK // j)
        for stored in (self._v, *self._w.unbind(0)):
            for start in range(0, self.n, step):
                part = slice(start, start + step)
                stored[:kept, part] = turned @ stored[:j, part]
        projected = rotation.mT @ self.projected @ rotation
        self.projected, self.size = (projected + projected.mT) / 2, kept
        found: Tensor = rotation
        return found

    # -- state ---------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Return copies of what there is, for a checkpoint."""
        return {
            "basis": self._v[: self.size].clone(),
            "products": self._w[:, : self.size].clone(),
            "projected": self.projected.clone(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up what :meth:`export` returned."""
        basis, products = saved["basis"], saved["products"]
        self.size = 0
        self._enlarge(max(len(basis), GROWTH))
        self.size = len(basis)
        self._v[: self.size], self._w[:, : self.size] = basis.to(self._v), products.to(self._w)
        self.projected = saved["projected"].double().cpu().clone()
