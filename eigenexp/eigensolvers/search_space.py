"""A search space with its products: orthonormal V, W = F V, and Ritz pairs of VᵀF V."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.numerics import check_definite, check_symmetric
from eigenexp.errors import InputError, ProductError

__all__ = ["SearchSpace"]

CHUNK = 2**22
"""Numbers rotated at a time in a restart, so that it needs no second copy of the space."""


class SearchSpace:
    """Orthonormal vectors V and their products W = F V, room for ``capacity`` of each.

    Places count Ritz values from the largest, 0, to the smallest, ``size − 1``.

    Parameters
    ----------
    n
        Length of a vector.
    capacity
        Vectors at the most.
    dtype, device
        Of vectors and products. The projected matrix is float64 on the CPU.
    eps, floor
        Relative rounding of a product, and the residual over λmax it cannot resolve.
    """

    def __init__(
        self,
        n: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        eps: float,
        floor: float,
    ) -> None:
        self.eps, self.floor = eps, floor
        self.n, self.capacity, self.size = n, capacity, 0
        # One vector a row: a vector is then contiguous, and the space a contiguous block.
        self._v = torch.empty(capacity, n, dtype=dtype, device=device)
        self._w = torch.empty(capacity, n, dtype=dtype, device=device)
        self.projected = torch.zeros(0, 0, dtype=torch.float64)
        self._ritz: tuple[Tensor, Tensor] | None = None

    @property
    def basis(self) -> Tensor:
        """V, ``(n, size)``, a view."""
        return self._v[: self.size].mT

    @property
    def products(self) -> Tensor:
        """F V, ``(n, size)``, a view."""
        return self._w[: self.size].mT

    @property
    def values(self) -> Tensor:
        """Ritz values, ``(size,)``, decreasing."""
        return self._pairs()[0]

    @property
    def scale(self) -> float:
        """The largest Ritz value, a lower bound of λmax; 0 for an empty space."""
        return float(self.values[0].clamp(min=0)) if self.size else 0.0

    def _pairs(self) -> tuple[Tensor, Tensor]:
        if self._ritz is None:
            values, vectors = torch.linalg.eigh(self.projected)
            self._ritz = values.flip(0), vectors.flip(1)
        return self._ritz

    # -- growing -------------------------------------------------------------------------------

    def fresh(self, directions: Tensor, randn: Callable[[int, int], Tensor]) -> Tensor:
        """Return ``directions``, ``(n, b)``, orthonormal and orthogonal to V.

        A direction that lies in V to rounding is replaced by a random one.
        """
        eps = torch.finfo(self._v.dtype).eps
        ready = directions.new_empty(0, self.n)
        for column in directions.unbind(1):
            vector = column
            for attempt in range(20):
                norm = float(vector.norm())
                # A last pass may leave the vector as small as rounding: it is in V then.
                if norm > 0:
                    vector = vector / norm
                    for _ in range(3):
                        before = float(vector.norm())
                        vector = self._orthogonal(vector, ready)
                        after = float(vector.norm())
                        if after < 30 * eps:
                            break
                        vector = vector / after
                        if after > 0.7 * before:  # no cancellation: orthogonal to rounding
                            break
                    else:
                        after = 1.0
                    if after >= 30 * eps:
                        break
                if attempt == 19:
                    raise ProductError(
                        "the search space cannot grow: every direction tried lies in it to rounding"
                    )
                vector = randn(self.n, 1)[:, 0].to(column)
            ready = torch.cat([ready, vector[None]])
        return ready.mT

    def _orthogonal(self, vector: Tensor, others: Tensor) -> Tensor:
        if self.size:
            v = self._v[: self.size]
            vector = torch.addmv(vector, v.mT, v @ vector, alpha=-1)
        if len(others):
            vector = vector - others.mT @ (others @ vector)
        return vector

    def grow(self, vectors: Tensor, products: Tensor) -> None:
        """Take ``vectors`` ``(n, b)``, orthonormal and orthogonal to V, with their products.

        Raises
        ------
        ProductError
            When the products cannot come from a symmetric positive semidefinite operator; the
            space is then as it was.
        """
        j, b = self.size, vectors.shape[1]
        if j + b > self.capacity:
            raise InputError(f"grow: expected room for {b} vectors, got {self.capacity - j}")
        forward = self._v[:j] @ products  # VᵀF T
        corner = (vectors.mT @ products).double().cpu()
        scale = max(self.scale, float(products.norm(dim=0).max()))
        if j:
            backward = self._w[:j] @ vectors  # (F V)ᵀT, the same for a symmetric F
            check_symmetric(forward, backward, scale, self.n, self.eps)
        check_symmetric(corner, corner.mT, scale, self.n, self.eps)
        corner = (corner + corner.mT) / 2
        grown = torch.zeros(j + b, j + b, dtype=torch.float64)
        grown[:j, :j] = self.projected
        grown[:j, j:] = forward.double().cpu()
        grown[j:, :j] = grown[:j, j:].mT
        grown[j:, j:] = corner
        values, pairs = torch.linalg.eigh(grown)
        check_definite(float(values[0]), max(float(values[-1]), 0.0), self.floor)
        self.projected = grown
        self._v[j : j + b] = vectors.mT
        self._w[j : j + b] = products.mT
        self.size = j + b
        self._ritz = values.flip(0), pairs.flip(1)

    # -- Ritz pairs ----------------------------------------------------------------------------

    def vectors(self, places: Sequence[int]) -> Tensor:
        """Return the Ritz vectors at ``places``, ``(n, len(places))``, unit norm."""
        coefficients = self._pairs()[1][:, list(places)].to(self._v)
        vectors = self.basis @ coefficients
        norms: Tensor = vectors.norm(dim=0)
        return vectors / norms

    def residuals(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return Ritz values ``(b,)`` and residual vectors W s − θ V s, ``(n, b)``."""
        values, vectors = self._pairs()
        theta, coefficients = values[list(places)], vectors[:, list(places)]
        residuals = self.products @ coefficients.to(self._w)
        residuals -= self.basis @ (coefficients * theta).to(self._v)
        return theta, residuals

    def coefficients(self, places: Sequence[int]) -> Tensor:
        """Return the Ritz vectors at ``places`` in the basis V, ``(size, len(places))``."""
        chosen: Tensor = self._pairs()[1][:, list(places)]
        return chosen.clone()

    def outside(self, coefficients: Tensor) -> Tensor:
        """Return (I − V Vᵀ) F V c, ``(n, b)``, for c ``(size, b)``: W c less its part in V."""
        image = self.products @ coefficients.to(self._w)
        image -= self.basis @ (self.projected @ coefficients).to(self._v)
        return image

    def outside_gram(self, coefficients: Tensor) -> Tensor:
        """Return the inner products of :meth:`outside`, ``(b, b)`` float64, for c ``(size, b)``."""
        b, like = coefficients.shape[1], self._v.new_empty(0, dtype=torch.float64)
        gram = like.new_zeros(b, b)
        direct, inside = coefficients.to(like), (self.projected @ coefficients).to(like)
        # In float64, or what little is outside would drown in the rounding of the difference.
        step = max(1, CHUNK // max(self.size, 1))
        for start in range(0, self.n, step):
            stretch = slice(start, start + step)
            image = self._w[: self.size, stretch].mT.double() @ direct
            image -= self._v[: self.size, stretch].mT.double() @ inside
            gram += image.mT @ image
        return gram.cpu()

    def restart(self, *parts: Tensor) -> Tensor:
        """Shrink to the span of V ``parts``, each ``(size, e)``; the first is kept to rounding.

        Returns the rotation C, ``(size, kept)``: the new V is V C.
        """
        coefficients = torch.linalg.qr(parts[0]).Q
        for extra in parts[1:]:
            rest = extra / extra.norm(dim=0).clamp(min=1e-300)
            for _ in range(2):
                rest = rest - coefficients @ (coefficients.mT @ rest)
            u, s, _ = torch.linalg.svd(rest, full_matrices=False)
            coefficients = torch.cat([coefficients, u[:, s > 1e-8]], dim=1)
        coefficients = torch.linalg.qr(coefficients).Q
        rotation = coefficients.mT.to(self._v)
        j, kept = self.size, coefficients.shape[1]
        step = max(1, CHUNK // j)
        for stored in (self._v, self._w):
            for start in range(0, self.n, step):
                stretch = slice(start, start + step)
                stored[:kept, stretch] = rotation @ stored[:j, stretch]
        projected = coefficients.mT @ self.projected @ coefficients
        self.projected = (projected + projected.mT) / 2
        self.size = kept
        self._ritz = None
        rotated: Tensor = coefficients
        return rotated

    def fill(self, vectors: Tensor, products: Tensor) -> None:
        """Take orthonormal ``vectors`` ``(n, b)`` and their products in place of what there is."""
        size = vectors.shape[1]
        if size > self.capacity:
            self._enlarge(size)
        self._v[:size], self._w[:size] = vectors.mT, products.mT
        projected = (vectors.mT.double() @ products.double()).cpu()
        self.projected = (projected + projected.mT) / 2
        self.size = size
        self._ritz = None

    def _enlarge(self, capacity: int) -> None:
        self.capacity = capacity
        self._v, self._w = (self._v.new_empty(capacity, self.n) for _ in range(2))

    # -- state ---------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Return copies of what there is, for a checkpoint."""
        return {
            "basis": self._v[: self.size].clone(),
            "products": self._w[: self.size].clone(),
            "projected": self.projected.clone(),
        }

    def restore(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Take up what :meth:`export` returned, in this space's dtype and on its device."""
        basis, products = (saved[name].to(like) for name in ("basis", "products"))
        self.size = len(basis)
        if self.size > self.capacity:
            self._enlarge(self.size)
        self._v[: self.size], self._w[: self.size] = basis, products
        self.projected = saved["projected"].double().cpu().clone()
        self._ritz = None
