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

from eigenexp.eigensolvers.numerics import check_definite, check_symmetric
from eigenexp.eigensolvers.reporting import make_spectrum, miss_notes
from eigenexp.eigensolvers.verified import VerifiedSolver
from eigenexp.eigensolvers.witness import (
    CHANCE,
    LIMIT,
    chance_of_miss,
    draw_probe,
    galerkin_weights,
)
from eigenexp.errors import InputError
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Lanczos"]

TOP_BASIS = 40
BOTTOM_BASIS = 320
PROBE_ROOM = 20
"""Room that a search for missed pairs is given in the basis before it begins."""
CHUNK = 2**22
"""Numbers rotated at a time in a restart, so that it needs no second copy of the basis."""

SEARCHING, PROBING, VERIFYING = "searching", "probing", "verifying"


class Lanczos(VerifiedSolver):
    """Thick-restart Lanczos for one end of the spectrum or both.

    Parameters
    ----------
    basis_size
        Vectors stored at the most; memory is ``basis_size · n`` numbers, raised where k needs more.
        ``None``: 40 for the top alone, where more save nothing; 320 where the bottom is wanted,
        whose crowded eigenvalues a restart loses again and again (40 cost it 4 times the products);
        60 more for a strict verification.
    strict_verification
        Follow the search for missed pairs until it bounds the chance of a miss by 5 %, also at the
        top of a picture's F, where 15 products of verification are enough otherwise.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. The start vector is random.

    Notes
    -----
    A pair is called converged when its residual from a true product is at most ``tol · λmax`` and
    the search from a fresh random vector found no pair beyond; :mod:`.witness` bounds the chance
    that one was missed, and the spectrum's notes say it. The bottom needs no search where
    θ ≤ 2 · tol · λmax: F is positive semidefinite and Ritz values bound eigenvalues of the same
    index from above, so its eigenvalue lies in [0, θ].
    """

    name: ClassVar[str] = "lanczos"

    def __init__(
        self,
        n: int,
        *,
        basis_size: int | None = None,
        strict_verification: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(n, strict_verification=strict_verification, **settings)
        if basis_size is None:
            basis_size = TOP_BASIS if self.settings.which == "top" else BOTTOM_BASIS
            # A search that is not cut short must fit behind the pairs that were found.
            basis_size += LIMIT if self._budget.strict else 0
        if basis_size < 2:
            raise InputError(f"basis_size: expected at least 2 vectors, got {basis_size}")
        starts = max(1, self._null_copies)
        self.basis_size = min(n, max(basis_size, 2 * len(self.settings.wanted) + starts + 8))
        # One vector a row: a vector is contiguous, and so is the part of the basis in use.
        self._rows = torch.empty(self.basis_size, n, dtype=self.dtype, device=self.device)
        self._size = 0
        self._projected = torch.zeros(0, 0, dtype=torch.float64)
        self._candidates: list[Tensor] = []
        self._couplings = torch.zeros(0, 0, dtype=torch.float64)
        self._phase = SEARCHING
        self._probe_spent = 0
        self._witness = torch.zeros(0, dtype=torch.float64)
        self._witness_rest = 0.0
        self._chance: float | None = None
        self._before_probe = torch.zeros(0, dtype=torch.float64)
        self._searched = False
        self._known_scale = 0.0
        self._ritz_cache: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(starts):
            self._inject_random()

    @property
    def block_size(self) -> int:
        """Blocks are single vectors."""
        return 1

    @property
    def stored_vectors(self) -> int:
        """The basis."""
        return self.basis_size

    # -- one step ------------------------------------------------------------------------------

    def _ask(self) -> Tensor:
        if self._phase == VERIFYING:
            place = self._places()[0][self._truth.told]
            return self._ritz_vectors([place])
        return self._candidates[0][:, None].clone()

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        if self._phase == VERIFYING:
            self._verify(block, products, responses)
            return
        self._expand(block[:, 0], products[:, 0])
        self._num_products += 1
        if self._phase == PROBING:
            self._num_verification_products += 1
            self._continue_probe()
        elif self._size % self._interval() == 0 or not self._candidates:
            self._look()
        if not self._candidates and self._phase != VERIFYING and not self.done:
            if self._size < self.settings.n:
                self._make_room()
                self._inject_random()
            else:
                self._start_verification()
        if self._phase != VERIFYING:
            self._make_room()

    def _interval(self) -> int:
        """Return the steps between two solutions of the projected problem, of size³ work each."""
        return 1 if self._size <= 64 else 2 if self._size <= 160 else 4

    def _expand(self, q: Tensor, w: Tensor) -> None:
        """Take the first candidate into the basis; its product makes the next one."""
        j = self._size
        known = self._couplings[0]  # C[0] = qᵀ F V, by symmetry what Vᵀ w must be
        length = float(w.norm())
        scale = self._known_scale = max(self._known_scale, length)  # ‖F q‖ ≤ λmax
        alpha = q @ w
        rest = w - alpha * q
        if j:
            # In the classical method a single coupling is not 0, and this costs O(n).
            some = torch.nonzero(known).flatten()
            rest = rest - self._rows[some].mT @ known[some].to(w)
            drift = self._rows[:j] @ rest
            check_symmetric(drift, torch.zeros_like(drift), scale, self.settings.n, self.eps)
            rest = torch.addmv(rest, self._rows[:j].mT, drift, alpha=-1)
        self._rows[j] = q
        self._size = j + 1
        projected = torch.zeros(j + 1, j + 1, dtype=torch.float64)
        projected[:j, :j] = self._projected
        projected[:j, j] = known
        projected[j, :j] = known
        projected[j, j] = float(alpha)
        self._projected = projected
        waiting = self._candidates[1:]
        couplings = torch.zeros(len(waiting), j + 1, dtype=torch.float64)
        couplings[:, :j] = self._couplings[1:]
        if waiting:
            others = torch.stack(waiting)
            g = others @ rest
            rest = rest - others.mT @ g
            couplings[:, j] = g.double().cpu()
        self._candidates, self._couplings = waiting, couplings
        fresh, beta = self._clean(rest)
        floor = self.eps * scale
        if fresh is not None and beta > 4 * floor and self._size + len(waiting) < self.settings.n:
            row = torch.zeros(1, j + 1, dtype=torch.float64)
            row[0, j] = beta
            # While probing, the random chain goes first; otherwise all take turns.
            first = self._phase == PROBING
            self._candidates = [fresh, *waiting] if first else [*waiting, fresh]
            parts = [row, couplings] if first else [couplings, row]
            self._couplings = torch.cat(parts)
        self._ritz_cache = None

    def _clean(self, rest: Tensor) -> tuple[Tensor | None, float]:
        """Return ``rest`` of unit norm, orthogonal to all there is to rounding, and its norm.

        One pass of Gram-Schmidt is enough where it changes little; small remainders, mostly
        rounding, need more (Daniel, Gragg, Kaufman & Stewart 1976).
        """
        beta = before = float(rest.norm())
        if beta == 0:
            return None, 0.0
        others = torch.stack(self._candidates) if self._candidates else rest.new_empty(0, len(rest))
        rest = rest / before
        for turn in range(4):
            h = self._rows[: self._size] @ rest
            rest = torch.addmv(rest, self._rows[: self._size].mT, h, alpha=-1)
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

    def _inject_random(self) -> None:
        """Add a random candidate, last, where there is room for one."""
        if self._size + len(self._candidates) >= self.settings.n:
            return
        fresh = None
        while fresh is None:
            fresh, _ = self._clean(self._randn(self.settings.n))
        self._inject(fresh, first=False)

    def _inject(self, fresh: Tensor, *, first: bool) -> None:
        """Add a candidate that is orthogonal to everything there is; it has no coupling yet."""
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
            largest = max(float(values[0]), 0.0)
            check_definite(float(values[-1]), largest, self.floor)
            self._known_scale = max(self._known_scale, largest)
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

    def _ritz_vectors(self, places: list[int]) -> Tensor:
        coefficients = self._ritz()[1][:, places].to(self._rows)
        vectors = self._rows[: self._size].mT @ coefficients
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
        target = 0.97 / (1 + self._truth.failures) * self.settings.tol
        # Below rounding an estimate means nothing: let the true products decide.
        target = max(target, 2 * self.eps)
        if float(residuals.max()) <= target * self._scale():
            if self._searched or self._needs_no_probe():
                self._start_verification()
            else:
                self._start_probe()
        else:
            # Next comes the candidate that carries most of the first unconverged pair's residual.
            first = next(
                i for i in self._outermost_first() if float(residuals[i]) > target * self._scale()
            )
            self._choose_candidate(self._couplings @ self._ritz()[1][:, places[first]])

    def _choose_candidate(self, shares: Tensor) -> None:
        """Put the candidate with the largest share of a residual first."""
        if len(self._candidates) < 2:
            return
        best = int(shares.abs().argmax())
        order = [best, *(i for i in range(len(self._candidates)) if i != best)]
        self._candidates = [self._candidates[i] for i in order]
        self._couplings = self._couplings[order]

    def _needs_no_probe(self) -> bool:
        values = self._ritz()[0][self._places()[0]]
        return self._size >= self.settings.n or not self._ends_to_search(values, self._scale())

    def _start_probe(self) -> None:
        """Draw g and search from what of it is not in the basis."""
        self._shrink_below(self.basis_size - (LIMIT if self._budget.strict else PROBE_ROOM))
        self._phase, self._probe_spent, self._chance = PROBING, 0, None
        self._before_probe = self._ritz()[0][self._places()[0]].clone()
        found = self._ritz_vectors(self._places()[0])
        g = draw_probe(
            self._randn(self.settings.n),
            self._randn(found.shape[1], 3),
            found,
            self.settings.image_shape,
        )
        self._witness = (self._rows[: self._size] @ g).double().cpu()
        fresh = None
        if self._size + len(self._candidates) < self.settings.n:
            fresh, _ = self._clean(g)
        if fresh is not None:
            self._witness_rest = float(fresh @ g)
            self._inject(fresh, first=True)

    def _continue_probe(self) -> None:
        if self._probe_spent == 0:
            rest = torch.tensor([self._witness_rest], dtype=torch.float64)
            self._witness = torch.cat([self._witness, rest])
        self._probe_spent += 1
        full = self._size >= self.basis_size
        # Products are worth more than time: not where they cost no more than the problem solved.
        due = self._size <= 160 or self._size % self._interval() == 0
        if not due and self._candidates and not full:
            return
        values = self._ritz()[0]
        places, _ = self._places()
        moved = float((values[places] - self._before_probe).abs().max())
        if moved > self.settings.tol * self._scale():
            self._phase = SEARCHING  # a pair was missed: go on with both chains
            # What its search cost was no verification after all.
            self._num_verification_products -= self._probe_spent
            self._look()
            return
        chance, shares = self._trace(places)
        ends = self._ends_to_search(values[places], self._scale())
        end = ends[-1] if ends else "top"
        spent = self._budget.spent(end, self._probe_spent, self._num_products)
        if chance <= CHANCE or spent or full or not self._candidates:
            self._chance = chance
            self._doubtful = chance > CHANCE and not self._budget.short(end)
            self._searched = True
            self._phase = SEARCHING
            self._look()
        else:
            self._choose_candidate(shares)

    def _trace(self, places: list[int]) -> tuple[float, Tensor]:
        """Return the chance of a miss, and y of the suspect hardest to exclude by candidates.

        y = Q C s, so ‖y‖ = ‖C s‖: the bound costs no pass over the basis.
        """
        if self._scale() == 0:  # F g = 0 for a random g
            return 0.0, torch.zeros(len(self._candidates), dtype=torch.float64)
        values, vectors, _ = self._ritz()
        coordinates = vectors[: len(self._witness)].mT @ self._witness
        total, worst, shares = 0.0, -1.0, torch.zeros(len(self._candidates), dtype=torch.float64)
        wanted, scale = values[places], self._scale()
        for end in self._ends_to_search(wanted, scale):
            norms = []
            for suspect in self._suspects(end, wanted, scale):
                weights = galerkin_weights(values, coordinates, places, suspect)
                y = self._couplings @ (vectors @ weights)
                norms.append(float(y.norm()))
                if norms[-1] > worst:
                    worst, shares = norms[-1], y
            total += chance_of_miss(norms, self.settings.n)
        return min(total, 1.0), shares

    def _start_verification(self) -> None:
        self._phase = VERIFYING
        self._truth.forget()

    def _verify(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        self._truth.measure(block, products, responses)
        self._num_products += 1
        self._num_verification_products += 1
        if not self._truth.complete:
            return
        self._stop_reason = self._verdict()
        if self._stop_reason is None:
            self._phase = SEARCHING
            self._truth.forget()
            if not self._candidates:
                self._make_room()
                self._inject_random()

    def _verdict(self) -> StopReason | None:
        exhausted = self._size >= self.settings.n and not self._candidates
        return self._judge(self._scale(), exhausted=exhausted)

    # -- restart -------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Shrink a full basis."""
        self._shrink_below(self.basis_size)

    def _shrink_below(self, size: int) -> None:
        """Shrink to the wanted Ritz vectors and their neighbours (thick restart)."""
        if self._size < size or self._size >= self.settings.n:
            return
        j = self._size
        keep = self._kept_places(j)
        if len(keep) >= j:
            return
        values, vectors, _ = self._ritz()
        coefficients = vectors[:, keep]
        rotation = coefficients.mT.to(self._rows)
        step = max(1, CHUNK // j)
        for start in range(0, self.settings.n, step):
            part = slice(start, start + step)
            self._rows[: len(keep), part] = rotation @ self._rows[:j, part]
        self._projected = torch.diag(values[keep])
        self._couplings = self._couplings @ coefficients
        self._size = len(keep)
        self._ritz_cache = None

    # -- what is known -------------------------------------------------------------------------

    def _measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        if self._size == 0:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), 0.0
        places, index = self._places()
        values, _, residuals = self._ritz()
        values, residuals = values[places].clamp(min=0), residuals[places].clone()
        self._with_truth(values, residuals)
        scale = max(self._scale(), float(values.max()) if len(values) else 0.0)
        return values, residuals, torch.tensor(index, dtype=torch.int64), scale

    def _result(self) -> Spectrum:
        """Return the best pairs so far; see the class for when one is called converged."""
        values, residuals, index, scale = self._measured()
        places = self._places()[0]
        guards = None
        if self._size:
            theta, _, estimates = self._ritz()
            chosen = self._guard_places(self._size)
            guards = torch.stack([theta[chosen], estimates[chosen]], dim=1)
        empty = torch.zeros(0, self.settings.n, dtype=self.dtype, device=self.device)
        return make_spectrum(
            self.settings,
            values=values,
            vectors=self._ritz_vectors(places).mT if self._size else empty,
            residuals=residuals,
            index=index,
            scale=scale,
            floor=self.floor,
            stop_reason=self.stop_reason,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            method=self.name,
            guards=guards,
            notes=miss_notes([] if self._chance is None else [self._chance], self.done),
        )

    # -- state ---------------------------------------------------------------------------------

    def _export_state(self) -> dict[str, Any]:
        n = self.settings.n
        waiting = self._candidates
        empty = torch.zeros(0, n, dtype=self.dtype, device=self.device)
        return {
            "basis": self._rows[: self._size].clone(),
            "projected": self._projected.clone(),
            "candidates": torch.stack(waiting) if waiting else empty,
            "couplings": self._couplings.clone(),
            "phase": self._phase,
            "probe": [
                self._probe_spent,
                int(self._searched),
                int(self._doubtful),
            ],
            "witness": self._witness.clone(),
            "witness_rest": self._witness_rest,
            "chance": self._chance,
            "before_probe": self._before_probe.clone(),
            "truth": self._truth.state(),
            "scale": self._known_scale,
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        basis = self._own(state["basis"])
        self._size = len(basis)
        if self._size > self.basis_size:
            self._rows, self.basis_size = torch.empty_like(basis), self._size
        self._rows[: self._size] = basis
        self._projected = state["projected"].double().cpu().clone()
        self._candidates = list(self._own(state["candidates"]).unbind(0))
        self._couplings = state["couplings"].double().cpu().clone()
        self._phase = str(state["phase"])
        self._probe_spent, searched, doubtful = map(int, state["probe"])
        self._doubtful = bool(doubtful)
        self._witness = state["witness"].double().cpu().clone()
        self._witness_rest = float(state["witness_rest"])
        self._chance = None if state["chance"] is None else float(state["chance"])
        self._searched = bool(searched)
        self._before_probe = state["before_probe"].double().cpu().clone()
        self._truth.load(state["truth"])
        self._known_scale = float(state["scale"])
        self._ritz_cache = None

    def _search_on(self) -> None:
        self._searched = False
        if self._phase == VERIFYING:
            self._phase = SEARCHING
            self._pending = None
            if not self._candidates:
                self._inject_random()
            if not self._candidates:
                self._start_verification()
