"""Thick-restart band Lanczos with full reorthogonalisation: both ends from one Krylov space.

The relation kept after every product is

    F V = V T + Q C,    Vᵀ V = I,  Qᵀ V = 0,  Qᵀ Q = I,

with the basis V ``(n, j)``, the projected matrix T = Vᵀ F V, the candidates Q that wait to join the
basis and their couplings C. A Ritz pair T s = θ s has the residual ‖F V s − θ V s‖ = ‖C s‖ exactly.
One candidate makes it the classical Lanczos method; a second one, random, is the search for pairs
that the first start vector cannot see, and stays where it found one (Ruhe 1979; Wu & Simon 2000).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress
from eigenexp.eigensolvers.numerics import (
    error_bounds,
    orthogonalise,
    rounding_floor,
    statuses,
)
from eigenexp.errors import InputError, ProductError
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Lanczos"]

TOP_BASIS = 40
BOTTOM_BASIS = 320
SEARCHING, PROBING, VERIFYING = "searching", "probing", "verifying"


class Lanczos(Eigensolver):
    """Thick-restart Lanczos for one end of the spectrum or both.

    Parameters
    ----------
    basis_size
        Vectors stored at the most; memory is ``basis_size · n`` numbers, raised where k needs more.
        ``None``: 40 for the top alone, where more save nothing; 320 where the bottom is wanted,
        whose crowded eigenvalues a restart loses again and again (40 cost it 4 times the products).
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. The start vector is random.

    Notes
    -----
    A pair is called converged when its residual from a true product is at most ``tol · λmax`` and
    a random vector, orthogonal to all that was searched, led to no pair beyond it. A bottom pair
    needs no search where θ ≤ 2 · tol · λmax: F is positive semidefinite and Ritz values bound
    eigenvalues of the same index from above, so its eigenvalue lies in [0, θ].
    """

    name: ClassVar[str] = "lanczos"

    def __init__(self, n: int, *, basis_size: int | None = None, **settings: Any) -> None:
        super().__init__(n, **settings)
        if basis_size is None:
            basis_size = TOP_BASIS if self.settings.which == "top" else BOTTOM_BASIS
        if basis_size < 2:
            raise InputError(f"basis_size: expected at least 2 vectors, got {basis_size}")
        wanted = self.settings.wanted
        self._num_top = 0 if self.settings.which == "bottom" else self.settings.k
        self._num_bottom = len(wanted) - self._num_top
        # A null space known beforehand is as wide as it is: one start vector a wanted copy.
        nullity = n - min(n, self.settings.rank_bound or n)
        starts = max(1, min(self._num_bottom, nullity))
        self.basis_size = min(n, max(basis_size, 2 * len(wanted) + starts + 8))
        self._basis = torch.zeros(n, self.basis_size, dtype=self.dtype, device=self.device)
        self._size = 0
        self._projected = torch.zeros(0, 0, dtype=torch.float64)
        self._candidates: list[Tensor] = []
        self._couplings = torch.zeros(0, 0, dtype=torch.float64)
        self._phase = SEARCHING
        self._probe_left = 0
        self._probe_spent = 0
        self._before_probe = torch.zeros(0, dtype=torch.float64)
        self._searched = False
        self._true: list[list[float]] = []
        self._failures = 0
        self._worst_true = float("inf")
        self._ritz_cache: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(starts):
            self._inject_random()

    @property
    def block_size(self) -> int:
        """Blocks are single vectors."""
        return 1

    # -- one step ------------------------------------------------------------------------------

    def _ask(self) -> Tensor:
        if self._phase == VERIFYING:
            return self._wanted_vectors()[:, len(self._true), None].contiguous()
        return self._candidates[0][:, None].clone()

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        w = products[:, 0]
        if self._phase == VERIFYING:
            self._verify_one(block[:, 0], w, responses)
            return
        self._expand(block[:, 0], w)
        self._num_products += 1
        if self._phase == PROBING:
            self._num_verification_products += 1
            self._continue_probe()
        else:
            self._look()
        if not self._candidates and self._phase != VERIFYING and not self.done:
            if self._size < self.settings.n:
                self._make_room()
                self._inject_random()
            else:
                self._start_verification()
        if self._phase != VERIFYING:
            self._make_room()

    def _expand(self, q: Tensor, w: Tensor) -> None:
        """Take the first candidate into the basis; its product makes the next one."""
        j = self._size
        basis = self._basis[:, : j + 1]
        known = self._couplings[0]  # C[0] = qᵀ F V, by symmetry what Vᵀ w must be
        self._basis[:, j] = q
        rest, h = orthogonalise(w, basis)
        h = h.double().cpu()
        scale = max(self._scale(), float(h.abs().max()), float(w.norm()))
        wrong = float((h[:j] - known).abs().max()) if j else 0.0
        if wrong > 1e3 * self.settings.n**0.5 * torch.finfo(self.dtype).eps * scale + 1e-300:
            self._basis[:, j] = 0
            raise ProductError(
                f"tell: expected the product of a symmetric operator, got an asymmetry of "
                f"{wrong / scale:.1e} relative; check Jᵀ against J"
            )
        projected = torch.zeros(j + 1, j + 1, dtype=torch.float64)
        projected[:j, :j] = self._projected
        projected[:, j] = h
        projected[j, :] = h
        self._projected = projected
        self._size = j + 1
        waiting = self._candidates[1:]
        couplings = torch.zeros(len(waiting), j + 1, dtype=torch.float64)
        couplings[:, :j] = self._couplings[1:]
        if waiting:
            rest, g = orthogonalise(rest, torch.stack(waiting, dim=1))
            couplings[:, j] = g.double().cpu()
        beta = float(rest.norm())
        self._candidates = waiting
        self._couplings = couplings
        floor = torch.finfo(self.dtype).eps * max(scale, float(w.norm()))
        if beta > 4 * floor and self._size + len(waiting) < self.settings.n:
            row = torch.zeros(1, j + 1, dtype=torch.float64)
            row[0, j] = beta
            # While probing, the random chain goes first; otherwise all take turns.
            fresh = rest / beta
            # Small remainders are mostly rounding: once more, on the basis in place, not a copy.
            fresh, _ = orthogonalise(fresh, self._basis[:, : self._size])
            if waiting:
                fresh, _ = orthogonalise(fresh, torch.stack(waiting, dim=1))
            fresh = fresh / fresh.norm()
            first = self._phase == PROBING
            self._candidates = [fresh, *waiting] if first else [*waiting, fresh]
            parts = [row, couplings] if first else [couplings, row]
            self._couplings = torch.cat(parts)
        self._ritz_cache = None

    def _inject_random(self, *, first: bool = False) -> None:
        """Add a random candidate orthogonal to everything there is; it has no coupling yet."""
        taken = torch.cat(
            [self._basis[:, : self._size], *[c[:, None] for c in self._candidates]], dim=1
        )
        if taken.shape[1] >= self.settings.n:
            return
        fresh = self._randn(self.settings.n)
        fresh = fresh / fresh.norm()
        for _ in range(2):
            fresh, _ = orthogonalise(fresh, taken)
            fresh = fresh / fresh.norm()
        row = torch.zeros(1, self._size, dtype=torch.float64)
        couplings = self._couplings.reshape(len(self._candidates), self._size)
        self._candidates = [fresh, *self._candidates] if first else [*self._candidates, fresh]
        self._couplings = torch.cat([row, couplings] if first else [couplings, row])

    # -- Ritz pairs ----------------------------------------------------------------------------

    def _ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values (decreasing), coefficients ``(j, j)`` and residuals ‖C s‖."""
        if self._ritz_cache is None:
            values, vectors = torch.linalg.eigh(self._projected)
            values, vectors = values.flip(0), vectors.flip(1)
            residuals = (self._couplings @ vectors).norm(dim=0) if self._candidates else None
            if residuals is None:
                residuals = torch.zeros_like(values)
            self._ritz_cache = (values, vectors, residuals)
        return self._ritz_cache

    def _scale(self) -> float:
        return float(self._ritz()[0][0].clamp(min=0)) if self._size else 0.0

    def _places(self) -> tuple[list[int], list[int]]:
        """Return where the wanted pairs stand among the Ritz values, and their eigenindex."""
        j, n = self._size, self.settings.n
        top = min(self._num_top, j)
        bottom = min(self._num_bottom, j - top)
        places = [*range(top), *range(j - bottom, j)]
        return places, [*range(top), *range(n - bottom, n)]

    def _wanted_vectors(self) -> Tensor:
        places, _ = self._places()
        coefficients = self._ritz()[1][:, places].to(self._basis)
        vectors = self._basis[:, : self._size] @ coefficients
        norms: Tensor = vectors.norm(dim=0)
        return vectors / norms

    # -- convergence ---------------------------------------------------------------------------

    def _is_complete(self) -> bool:
        return len(self._places()[0]) == len(self.settings.wanted)

    def _look(self) -> None:
        """Leave the search when every wanted estimate is under the tolerance."""
        if not self._is_complete():
            return
        places, _ = self._places()
        residuals = self._ritz()[2][places]
        target = 0.5 / (1 + self._failures) * self.settings.tol
        # Below rounding an estimate means nothing: let the true products decide.
        target = max(target, 2 * torch.finfo(self.dtype).eps)
        if float(residuals.max()) <= target * self._scale():
            if self._searched or self._needs_no_probe():
                self._start_verification()
            else:
                self._start_probe()

    def _needs_no_probe(self) -> bool:
        if self._size >= self.settings.n:
            return True
        if self._num_top:
            return False
        values = self._ritz()[0][self._places()[0]]
        return float(values.max()) <= 2 * self.settings.tol * self._scale()

    def _start_probe(self) -> None:
        self._phase = PROBING
        self._before_probe = self._ritz()[0][self._places()[0]].clone()
        values = self._before_probe
        bottom = values[self._num_top :]
        crowded = len(bottom) and float(bottom.max()) > 2 * self.settings.tol * self._scale()
        self._probe_left = min(60, max(12, self._num_products // 4)) if crowded else 10
        self._probe_spent = 0
        self._inject_random(first=True)

    def _continue_probe(self) -> None:
        self._probe_left -= 1
        self._probe_spent += 1
        values, _, residuals = self._ritz()
        places, _ = self._places()
        limit = self.settings.tol * self._scale()
        moved = float((values[places] - self._before_probe).abs().max())
        if moved > 0.5 * limit:
            self._phase = SEARCHING  # a pair was missed: go on with both chains
            self._look()
            return
        # At the top alone it is enough when the next pair is known to lie below the wanted ones.
        k = self._num_top
        clear = k < self._size and float(values[k] + residuals[k]) < float(values[k - 1])
        enough = not self._num_bottom and self._probe_spent >= 8 and clear
        if self._probe_left <= 0 or not self._candidates or enough:
            self._searched = True
            self._phase = SEARCHING
            self._look()

    def _start_verification(self) -> None:
        self._phase = VERIFYING
        self._true = []

    def _verify_one(self, v: Tensor, w: Tensor, responses: Tensor | None) -> None:
        """Measure one returned pair: λ = ‖Jv‖² where J v is at hand, and its true residual."""
        if responses is None:
            value = float((v.double() @ w.double()).clamp(min=0))
        else:
            value = float(responses[:, 0].double().square().sum())
        residual = float((w.double() - value * v.double()).norm())
        self._num_products += 1
        self._num_verification_products += 1
        self._true.append([value, residual])
        if len(self._true) < len(self.settings.wanted):
            return
        scale = max(self._scale(), max(value for value, _ in self._true))
        worst = max(residual for _, residual in self._true)
        if worst <= self.settings.tol * scale:
            self._stop_reason = StopReason.CONVERGED
            return
        self._failures += 1
        floor = rounding_floor(self.dtype, self.settings.n) * scale
        exhausted = self._size >= self.settings.n and not self._candidates
        if worst > 0.5 * self._worst_true or exhausted or worst <= floor:
            self._stop_reason = StopReason.FLOOR
            return
        self._worst_true = worst
        self._phase = SEARCHING
        if not self._candidates:
            self._make_room()
            self._inject_random()

    # -- restart -------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Shrink a full basis to the wanted Ritz vectors and their neighbours (thick restart)."""
        if self._size < self.basis_size or self._size >= self.settings.n:
            return
        j = self._size
        spare = max(1, int(0.4 * (j - self._num_top - self._num_bottom)))
        both = self._num_top > 0 and self._num_bottom > 0
        spare_top = spare // 2 if both else (spare if self._num_top else 1)
        spare_bottom = spare - spare_top if both else (spare if self._num_bottom else 1)
        top = self._num_top + spare_top
        bottom = min(self._num_bottom + spare_bottom, j - top)
        keep = [*range(top), *range(j - bottom, j)]
        values, vectors, _ = self._ritz()
        coefficients = vectors[:, keep]
        self._basis[:, : len(keep)] = self._basis[:, :j] @ coefficients.to(self._basis)
        self._basis[:, len(keep) :] = 0
        self._projected = torch.diag(values[keep])
        self._couplings = self._couplings @ coefficients
        self._size = len(keep)
        self._ritz_cache = None

    # -- what is known -------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return Ritz values and estimated (in the end true) residuals of the wanted pairs."""
        values, residuals, index, scale = self._measured()
        return Progress(
            eigenvalues=values,
            residuals=residuals,
            eigenindex=index,
            scale=scale,
            tol=self.settings.tol,
            num_products=self._num_products,
            phase=self._phase,
        )

    def _measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        if self._size == 0:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), 0.0
        places, index = self._places()
        values, _, residuals = self._ritz()
        values, residuals = values[places].clamp(min=0), residuals[places].clone()
        for i, (value, residual) in enumerate(self._true):
            values[i], residuals[i] = value, residual
        scale = max(self._scale(), float(values.max()) if len(values) else 0.0)
        return values, residuals, torch.tensor(index, dtype=torch.int64), scale

    def result(self) -> Spectrum:
        """Return the best pairs so far; see the class for when one is called converged."""
        n, tol = self.settings.n, self.settings.tol
        values, residuals, index, scale = self._measured()
        vectors = (
            self._wanted_vectors().mT
            if self._size
            else torch.zeros(0, n, dtype=self.dtype, device=self.device)
        )
        order = torch.argsort(values, descending=True, stable=True)
        values, residuals = values[order], residuals[order]
        vectors = vectors[order.to(vectors.device)].contiguous()
        floor = rounding_floor(self.dtype, n) * scale
        bounds = error_bounds(values, residuals, floor, index == n - 1)
        done = self.stop_reason is StopReason.CONVERGED
        nullity = n - min(n, self.settings.rank_bound or n)
        return Spectrum(
            eigenvalues=values,
            eigenvectors=vectors,
            eigenindex=index,
            residuals=residuals,
            error_bounds=bounds,
            status=statuses(residuals, tol * scale, verified=done),
            stop_reason=self.stop_reason,
            scale=scale,
            tol=tol,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            null_space_dimension=nullity,
            method=self.name,
        )

    # -- state ---------------------------------------------------------------------------------

    def _export_state(self) -> dict[str, Any]:
        n = self.settings.n
        waiting = self._candidates
        empty = torch.zeros(n, 0, dtype=self.dtype, device=self.device)
        return {
            "basis": self._basis[:, : self._size].clone(),
            "projected": self._projected.clone(),
            "candidates": torch.stack(waiting, dim=1) if waiting else empty,
            "couplings": self._couplings.clone(),
            "phase": self._phase,
            "probe": [self._probe_left, self._probe_spent, int(self._searched), self._failures],
            "before_probe": self._before_probe.clone(),
            "worst_true": self._worst_true,
            "true": [list(pair) for pair in self._true],
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        basis = self._own(state["basis"])
        self._size = basis.shape[1]
        if self._size > self.basis_size:
            wider = basis.new_zeros(self.settings.n, self._size)
            self._basis, self.basis_size = wider, self._size
        self._basis[:, : self._size] = basis
        self._basis[:, self._size :] = 0
        self._projected = state["projected"].double().cpu().clone()
        candidates = self._own(state["candidates"])
        self._candidates = [candidates[:, i].clone() for i in range(candidates.shape[1])]
        self._couplings = state["couplings"].double().cpu().clone()
        self._phase = str(state["phase"])
        self._probe_left, self._probe_spent, searched, self._failures = map(int, state["probe"])
        self._searched = bool(searched)
        self._before_probe = state["before_probe"].double().cpu().clone()
        self._worst_true = float(state["worst_true"])
        self._true = [[float(x) for x in pair] for pair in state["true"]]
        self._ritz_cache = None

    def _reopen(self) -> None:
        super()._reopen()
        if self._stop_reason is None and self._phase == VERIFYING:
            self._phase, self._true = SEARCHING, []
            self._searched = False
            self._failures, self._worst_true = 0, float("inf")
            self._pending = None
            if not self._candidates:
                self._inject_random()
            if not self._candidates:
                self._start_verification()
