"""A Krylov factorisation of F: expand, inject, shrink, Ritz pairs. When, the solver decides.

The relation kept after every product is

    F V = V T + Q C,    Vᵀ V = I,  Qᵀ V = 0,  Qᵀ Q = I,

with the basis V ``(n, j)``, the projected matrix T = Vᵀ F V, the candidates Q that wait to join the
basis and their couplings C. A Ritz pair T s = θ s has the residual ‖F V s − θ V s‖ = ‖C s‖ exactly.
One candidate makes it the classical Lanczos method (Ruhe 1979; Wu & Simon 2000).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.numerics import check_definite, check_symmetric

__all__ = ["KrylovFactorisation"]

CHUNK = 2**22
"""Numbers rotated at a time in a restart, so that it needs no second copy of the basis."""


class KrylovFactorisation:
    """F V = V T + Q C, with room for ``capacity`` vectors.

    Parameters
    ----------
    n
        Length of a vector.
    capacity
        Vectors of the basis at the most.
    dtype, device
        Of the vectors; T and C are float64 on the CPU.
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
        self.n, self.capacity, self.eps, self.floor = n, capacity, eps, floor
        # One vector a row: a vector is contiguous, and so is the part of the basis in use.
        self._rows = torch.empty(capacity, n, dtype=dtype, device=device)
        self.size = 0
        self.projected = torch.zeros(0, 0, dtype=torch.float64)
        self.candidates: list[Tensor] = []
        self.couplings = torch.zeros(0, 0, dtype=torch.float64)
        self.largest = 0.0
        self._ritz: tuple[Tensor, Tensor, Tensor] | None = None

    # -- growing -------------------------------------------------------------------------------

    def expand(self, q: Tensor, w: Tensor) -> None:
        """Take the first candidate ``q`` and w = F q into the basis; w makes the next candidate."""
        j = self.size
        known = self.couplings[0]  # C[0] = qᵀ F V, by symmetry what Vᵀ w must be
        length = float(w.norm())
        scale = self.largest = max(self.largest, length)  # ‖F q‖ ≤ λmax
        alpha = q @ w
        rest = w - alpha * q
        if j:
            # In the classical method a single coupling is not 0, and this costs O(n).
            some = torch.nonzero(known).flatten()
            rest = rest - self._rows[some].mT @ known[some].to(w)
            drift = self._rows[:j] @ rest
            check_symmetric(drift, torch.zeros_like(drift), scale, self.n, self.eps)
            rest = torch.addmv(rest, self._rows[:j].mT, drift, alpha=-1)
        self._rows[j] = q
        self.size = j + 1
        projected = torch.zeros(j + 1, j + 1, dtype=torch.float64)
        projected[:j, :j] = self.projected
        projected[:j, j] = known
        projected[j, :j] = known
        projected[j, j] = float(alpha)
        self.projected = projected
        waiting = self.candidates[1:]
        couplings = torch.zeros(len(waiting), j + 1, dtype=torch.float64)
        couplings[:, :j] = self.couplings[1:]
        if waiting:
            others = torch.stack(waiting)
            g = others @ rest
            rest = rest - others.mT @ g
            couplings[:, j] = g.double().cpu()
        self.candidates, self.couplings = waiting, couplings
        fresh, beta = self.cleaned(rest)
        floor = self.eps * scale
        if fresh is not None and beta > 4 * floor and self.size + len(waiting) < self.n:
            row = torch.zeros(1, j + 1, dtype=torch.float64)
            row[0, j] = beta
            self.candidates = [*waiting, fresh]
            self.couplings = torch.cat([couplings, row])
        self._ritz = None

    def cleaned(self, rest: Tensor) -> tuple[Tensor | None, float]:
        """Return ``rest`` of unit norm, orthogonal to all there is to rounding, and its norm.

        One pass of Gram-Schmidt is enough where it changes little; small remainders, mostly
        rounding, need more (Daniel, Gragg, Kaufman & Stewart 1976).
        """
        beta = before = float(rest.norm())
        if beta == 0:
            return None, 0.0
        others = torch.stack(self.candidates) if self.candidates else rest.new_empty(0, len(rest))
        rest = rest / before
        for turn in range(4):
            h = self._rows[: self.size] @ rest
            rest = torch.addmv(rest, self._rows[: self.size].mT, h, alpha=-1)
            if len(others):
                rest = rest - others.mT @ (others @ rest)
            norm = float(rest.norm())
            if norm == 0:
                return None, 0.0
            if turn == 0:
                beta *= norm
            rest = rest / norm
            if float(h.norm()) < 0.1 and norm > 0.7:
                break
        return rest, beta

    def inject(self, fresh: Tensor) -> None:
        """Add a candidate, last, that is orthogonal to everything there is; it has no coupling."""
        row = torch.zeros(1, self.size, dtype=torch.float64)
        couplings = self.couplings.reshape(len(self.candidates), self.size)
        self.candidates = [*self.candidates, fresh]
        self.couplings = torch.cat([couplings, row])

    def prefer(self, shares: Tensor) -> None:
        """Put the candidate with the largest share of a residual first."""
        if len(self.candidates) < 2:
            return
        best = int(shares.abs().argmax())
        order = [best, *(i for i in range(len(self.candidates)) if i != best)]
        self.candidates = [self.candidates[i] for i in order]
        self.couplings = self.couplings[order]

    # -- Ritz pairs ----------------------------------------------------------------------------

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values (decreasing), coefficients ``(j, j)`` and residuals ‖C s‖."""
        if self._ritz is None:
            values, vectors = torch.linalg.eigh(self.projected)
            values, vectors = values.flip(0), vectors.flip(1)
            residuals = torch.zeros_like(values)
            if self.candidates:
                residuals = (self.couplings @ vectors).norm(dim=0)
            largest = max(float(values[0]), 0.0)
            check_definite(float(values[-1]), largest, self.floor)
            self.largest = max(self.largest, largest)
            self._ritz = (values, vectors, residuals)
        return self._ritz

    @property
    def scale(self) -> float:
        """The largest Ritz value, a lower bound of λmax; 0 for an empty basis."""
        return float(self.ritz()[0][0].clamp(min=0)) if self.size else 0.0

    def vectors(self, places: list[int]) -> Tensor:
        """Return the Ritz vectors at ``places``, ``(n, len(places))``, unit norm."""
        coefficients = self.ritz()[1][:, places].to(self._rows)
        vectors = self._rows[: self.size].mT @ coefficients
        norms: Tensor = vectors.norm(dim=0)
        return vectors / norms

    def shrink(self, keep: list[int]) -> None:
        """Keep the Ritz vectors at ``keep`` alone (thick restart); the relation still holds."""
        j = self.size
        values, vectors, _ = self.ritz()
        coefficients = vectors[:, keep]
        rotation = coefficients.mT.to(self._rows)
        step = max(1, CHUNK // j)
        for start in range(0, self.n, step):
            stretch = slice(start, start + step)
            self._rows[: len(keep), stretch] = rotation @ self._rows[:j, stretch]
        self.projected = torch.diag(values[keep])
        self.couplings = self.couplings @ coefficients
        self.size = len(keep)
        self._ritz = None

    def basis_and_products(self) -> tuple[Tensor, Tensor]:
        """Return V and F V = V T + Q C, ``(n, size)`` each; costs no product."""
        basis = self._rows[: self.size].mT
        products = basis @ self.projected.to(basis)
        if self.candidates:
            products += torch.stack(self.candidates).mT @ self.couplings.to(basis)
        return basis, products

    def release(self) -> None:
        """Give the memory back: another space has taken the vectors over."""
        self._rows = self._rows.new_empty(0, self.n)
        self.size, self.candidates = 0, []
        self.projected = torch.zeros(0, 0, dtype=torch.float64)
        self.couplings = torch.zeros(0, 0, dtype=torch.float64)
        self._ritz = None

    # -- state ---------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Return copies of what there is, for a checkpoint."""
        empty = self._rows.new_zeros(0, self.n)
        return {
            "basis": self._rows[: self.size].clone(),
            "projected": self.projected.clone(),
            "candidates": torch.stack(self.candidates) if self.candidates else empty,
            "couplings": self.couplings.clone(),
            "largest": self.largest,
        }

    def restore(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Take up what :meth:`export` returned."""
        basis = saved["basis"].to(like, copy=True)
        self.size = len(basis)
        if self.size > len(self._rows):
            self._rows, self.capacity = torch.empty_like(basis), max(self.capacity, self.size)
        self._rows[: self.size] = basis
        self.projected = saved["projected"].double().cpu().clone()
        self.candidates = list(saved["candidates"].to(like, copy=True).unbind(0))
        self.couplings = saved["couplings"].double().cpu().clone()
        self.largest = float(saved["largest"])
        self._ritz = None
