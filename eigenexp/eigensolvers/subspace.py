"""The course of a subspace solve: search, verification, final check.

*Search* enlarges a :class:`SearchSpace` until every wanted Ritz pair has a small residual.
*Verification* spends products until the chance that a pair was missed is small
(:mod:`eigenexp.eigensolvers.certificates`), or its budget is gone: the pairs are then called
unverified. The *final check* multiplies every wanted Ritz vector with F once more, so that what is
reported, ‖Fv − λv‖ and λ = ‖Jv‖², comes from real products of the very vectors returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress
from eigenexp.eigensolvers.certificates import (
    copy_points,
    gap_points,
    miss_probability,
    missed_mass,
    separations,
)
from eigenexp.eigensolvers.rayleigh_ritz import RitzPairs, wanted_places
from eigenexp.eigensolvers.reporting import Pair, build_spectrum, eigen_indices, measure
from eigenexp.eigensolvers.search_space import SearchSpace
from eigenexp.eigensolvers.witness import Chain
from eigenexp.errors import CheckpointError, InputError
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["SubspaceSolver"]

# Chance of a missed pair below which a result is called verified.
MISS_CHANCE = 1e-3
# An eigenvalue may be off by this many tol · λmax before it counts as wrong.
ALLOWED = 2.0
# Estimated residuals aim a little below tol: the true ones are a little larger.
_MARGIN = 0.97
_FLOOR = 64.0
_MAX_CHECKS = 3
_PHASES = {"search": "search", "verification": "verification", "check": "final check"}
_PATIENCE = 60  # basis sizes of products without any progress


class SubspaceSolver(Eigensolver):
    """Base of the methods that search in a :class:`SearchSpace`.

    Subclasses implement :meth:`_next_rows`: put new rows into the frontier if they want to, and
    name the frontier rows to be multiplied.

    Parameters
    ----------
    basis_size
        Most vectors stored (n numbers each). More of them save products at the bottom, where
        restarts hurt, and cost memory and arithmetic. Never less than the wanted pairs need.
    verification_products
        Most products spent to bound the chance that a pair was missed; by default as many as the
        search took, and at least 30. When they are spent in vain, nothing was found, but the pairs
        are called unverified. The final check is not limited.
    """

    def __init__(
        self,
        n: int,
        *,
        basis_size: int | None = None,
        verification_products: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(n, **settings)
        wanted = len(self.settings.wanted)
        least = min(n, 2 * wanted + 6)
        if basis_size is None:
            basis_size = max(self._default_basis_size(), least)
        if basis_size < least:
            raise InputError(
                f"basis_size: expected at least {least} for {wanted} wanted pairs, "
                f"got {basis_size}; leave it out or raise it"
            )
        if verification_products is not None and verification_products < 0:
            raise InputError(
                f"verification_products: expected 0 or more, got {verification_products}"
            )
        self.basis_size = min(basis_size, n)
        self.verification_products = verification_products
        self._space = SearchSpace(n, self.basis_size, self.dtype, self.device)
        self._chain: Chain | None = None
        self._phase = "search"
        self._simple = {"top": False, "bottom": False}
        self._copies = {"top": False, "bottom": False}
        self._verification_used = 0
        self._is_verified = {"top": False, "bottom": False}
        self._checked: list[Pair] = []
        self._num_checks = 0
        self._best = math.inf
        self._best_at = 0
        self._spread = -math.inf
        self._notes: list[str] = []

    def _default_basis_size(self) -> int:
        return 40

    @property
    def block_size(self) -> int:
        """Largest number of columns ``ask`` ever returns."""
        return 1

    # -- the wanted pairs ----------------------------------------------------------------------

    @property
    def _ends(self) -> tuple[str, ...]:
        which = self.settings.which
        return ("top", "bottom") if which == "both" else (which,)

    def _places(self, num_ritz: int) -> dict[str, list[int]]:
        top, bottom = wanted_places(num_ritz, self.settings.k, self.settings.which)
        return {"top": top, "bottom": bottom}

    def _wanted(self, num_ritz: int) -> list[int]:
        places = self._places(num_ritz)
        return [*places["top"], *places["bottom"]]

    @property
    def _scale(self) -> float:
        ritz = self._space.ritz()
        return max(float(ritz.values[0]), 0.0) if len(ritz) else 0.0

    @property
    def _limit(self) -> float:
        return self.settings.tol * self._scale

    def _target(self) -> float:
        # Below the rounding floor an estimate means nothing: let the final check decide.
        eps = self._space.eps
        return max(_MARGIN * self.settings.tol - 2 * eps, 2 * eps) * self._scale

    def _unconverged(self, ritz: RitzPairs) -> list[int]:
        """Return the places of wanted Ritz pairs whose estimated residual is above the target."""
        target = self._target()
        return [i for i in self._wanted(len(ritz)) if float(ritz.residuals[i]) > target]

    # -- ask -----------------------------------------------------------------------------------

    def _ask(self) -> Tensor:
        width = self.block_size
        if self.settings.max_products is not None:
            width = min(width, self.settings.max_products - self._num_products)
        space = self._space
        if self._phase == "check":
            first = len(self._checked)
            return space.rows[first : min(first + width, self._num_wanted)].T.clone()
        verifying = self._phase == "verification"
        chosen = self._next_witness() if verifying else self._next_rows(width)
        return space.bring_forward(chosen[:width])

    @property
    def _num_wanted(self) -> int:
        return len(self.settings.wanted)

    def _next_rows(self, width: int) -> list[int]:
        raise NotImplementedError

    def _heaviest_row(self) -> int:
        """Return the frontier row that weighs most in the residuals still too large."""
        ritz = self._space.ritz()
        late = self._unconverged(ritz) or self._wanted(len(ritz))
        weight = torch.linalg.vector_norm(ritz.outside[:, late], dim=1)
        return self._space.num_imaged + int(weight.argmax())

    def _inject(self) -> list[int]:
        """Put a random vector into the frontier and return its place."""
        space = self._space
        if space.room < 2:
            self._restart()
        for _ in range(5):
            if space.add(self._randn(space.n)):
                return [space.size - 1]
        raise RuntimeError("a random vector lies in the search space: it is complete")

    def _restart(self, keep: int | None = None) -> None:
        """Thick restart: keep the Ritz vectors nearest to both wanted ends."""
        space = self._space
        ritz = space.ritz()
        p = len(ritz)
        if keep is None:
            keep = max(self._num_wanted + 2, space.capacity // 2)
        keep = min(keep, p)
        places = self._places(p)
        late = {end: any(i in self._unconverged(ritz) for i in places[end]) for end in places}
        share = {end: len(places[end]) for end in places}
        spare = max(0, keep - sum(share.values()))
        open_ends = [end for end in self._ends if late[end]] or list(self._ends)
        for end in self._ends:
            share[end] += spare // len(open_ends) if end in open_ends else min(2, spare // 4)
        bottom = min(share["bottom"], p)
        top = min(share["top"], p - bottom)
        self._rotate([*range(top), *range(p - bottom, p)])

    def _rotate(self, places: Sequence[int]) -> None:
        chain, space = self._chain, self._space
        if chain is not None and chain.covers == "simple":
            self._chain = chain.filtered(space.ritz(), places)
        else:
            self._chain = None
        space.rotate(places)

    # -- tell ----------------------------------------------------------------------------------

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        count = block.shape[1]
        if self._phase == "check":
            self._take_check(block, products, responses)
        else:
            before = self._space.num_frontier
            self._space.image(products, responses)
            if self._chain is not None and self._space.num_frontier < before:
                self._chain.exhausted = True
                if self._chain.covers == "simple":
                    # An invariant subspace: z has no part in any eigenvector outside.
                    self._simple = dict.fromkeys(self._simple, True)
        self._num_products += count
        if self._phase != "search":
            self._num_verification_products += count
        if self._phase == "verification":
            self._verification_used += count
        self._decide()

    def _take_check(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        for i, pair in enumerate(measure(block, products, responses)):
            self._space.image_again(len(self._checked), products[:, i])
            self._checked.append(pair)

    # -- the course ----------------------------------------------------------------------------

    def _decide(self) -> None:
        """Choose the phase of the next block, or stop."""
        if self._phase == "check":
            if len(self._checked) == self._num_wanted:
                self._conclude()
            return
        space = self._space
        p = space.num_imaged
        if self._phase == "search" and not self._is_due(p):
            return
        ritz = space.ritz()
        if p < self._num_wanted or self._unconverged(ritz):
            self._phase = "search"
            if self._chain is not None and self._chain.covers != "simple":
                self._chain = None  # it found a pair: search on with it
            self._watch_progress(ritz)
            return
        for end in self._ends:
            self._is_verified[end] = self._is_proven(end, ritz)
        proven = all(self._is_verified[end] for end in self._ends)
        if proven or self._verification_used >= self._verification_budget():
            self._begin_check()
        else:
            self._phase = "verification"

    def _is_due(self, p: int) -> bool:
        """Whether the projected problem is worth solving now: it costs p³."""
        return p % max(1, p // 40) == 0 or self._space.num_frontier == 0 or self._space.is_complete

    def _verification_budget(self) -> int:
        if self.verification_products is not None:
            return self.verification_products
        searched = self._num_products - self._num_verification_products
        return max(30, searched)

    def _begin_check(self) -> None:
        p = len(self._space.ritz())
        wanted = self._wanted(p)
        rest = [i for i in range(p) if i not in set(wanted)]
        self._rotate([*wanted, *rest])
        self._checked = []
        self._phase = "check"

    def _conclude(self) -> None:
        """Stop after a final check, or search on where it failed."""
        limit = self._limit
        late = max(pair.residual for pair in self._checked)
        if late <= limit:
            verified = all(self._is_verified[end] for end in self._ends)
            self._stop_reason = StopReason.CONVERGED if verified else StopReason.UNVERIFIED
            return
        self._num_checks += 1
        floor = late <= _FLOOR * self._space.eps * self._scale
        # The true images replaced the drifted ones: the estimates are true now, too.
        if self._num_checks >= _MAX_CHECKS or not self._unconverged(self._space.ritz()):
            self._stop_reason = StopReason.FLOOR if floor else StopReason.STAGNATED
            return
        self._phase = "search"
        self._checked = []

    def _watch_progress(self, ritz: RitzPairs) -> None:
        """Stop when neither residuals nor Ritz values have moved for very long."""
        wanted = self._wanted(len(ritz))
        if len(ritz) < self._num_wanted:
            return
        # The sum falls while any of them does; one pair may wait long for another.
        worst = float(ritz.residuals[wanted].clamp_min(self._target()).log().sum())
        spread = float(ritz.values[self._places(len(ritz))["top"]].sum()) - float(
            ritz.values[self._places(len(ritz))["bottom"]].sum()
        )
        moved = spread > self._spread + 16 * self._space.eps * self._scale
        if worst < self._best - 1e-3 or moved or not math.isfinite(self._best):
            self._best, self._spread = min(worst, self._best), max(spread, self._spread)
            self._best_at = self._num_products
        elif self._num_products - self._best_at > _PATIENCE * self.basis_size:
            late = float(ritz.residuals[wanted].max())
            floor = late <= _FLOOR * self._space.eps * self._scale
            self._stop_reason = StopReason.FLOOR if floor else StopReason.STAGNATED

    # -- verification --------------------------------------------------------------------------

    def _is_proven(self, end: str, ritz: RitzPairs) -> bool:
        """Whether no pair was missed at this end, but for a chance of ``MISS_CHANCE``."""
        found = ritz.values[self._places(len(ritz))[end]]
        allowed = ALLOWED * self._limit
        if len(found) == 0 or self._space.is_complete:
            return True
        if end == "bottom" and float(found.max()) <= allowed:
            return True  # 0 ≤ λ ≤ θ for each index
        found = found if end == "top" else found.flip(0)
        self._read_chain(end, found, allowed)
        harmless = len(copy_points(found, allowed, end)) == 0
        return self._simple[end] and (self._copies[end] or harmless)

    def _read_chain(self, end: str, found: Tensor, allowed: float) -> None:
        chain = self._chain
        witness = None if chain is None else chain.witness(self._space)
        if chain is None or witness is None:
            return
        gaps, copies = gap_points(found, allowed, end), copy_points(found, allowed, end)
        points = {"simple": gaps, "copies": copies, "all": torch.cat([gaps, copies])}[chain.covers]
        if len(points):
            mass = float(missed_mass(witness, points).max())
            if miss_probability(mass, chain.dimension, len(found)) > MISS_CHANCE:
                return
        if chain.covers == "simple":
            self._simple[end] = True
            return
        # A chain that found a wanted pair itself is no witness against one more copy of it.
        extreme = float(witness.nodes[-1] if end == "top" else -witness.nodes[0])
        edge = float(found[-1] if end == "top" else -found[-1])
        if extreme <= edge + allowed:
            self._copies[end] = True
            self._simple[end] |= chain.covers == "all"

    def _next_witness(self) -> list[int]:
        """Return the frontier row that extends the witness; start one where there is none."""
        space = self._space
        needed = all(self._simple[e] for e in self._ends if not self._is_verified[e])
        useful = ("copies", "all") if needed else ("simple", "all")
        chain = self._chain
        if chain is not None and not chain.exhausted and chain.covers in useful:
            if space.room < 1 and chain.covers == "simple":
                self._restart()
            if space.room >= 1:
                return [space.size - 1]
        return self._start_chain("copies" if needed else "all")

    def _start_chain(self, covers: str) -> list[int]:
        """Put a fresh random vector into the frontier, made orthogonal to what is known.

        For ``"copies"`` that is the whole space, for ``"all"`` only the converged pairs: F
        compressed to their complement has all other eigenvalues of F and no others.
        """
        space = self._space
        left = max(1, self._verification_budget() - self._verification_used)
        ritz = space.ritz()
        p = len(ritz)
        if covers == "all":
            wanted = set(self._wanted(p))
            sharp = [i for i in range(p) if float(ritz.residuals[i]) <= self._limit or i in wanted]
            most = max(len(wanted), space.capacity - min(left, space.capacity // 2) - 2)
            extra = [i for i in sharp if i not in wanted][: max(0, most - len(wanted))]
            self._rotate(sorted(wanted | set(extra)))
            space.forget_frontier()
        elif space.room < min(left, space.capacity // 2) + 2:
            self._restart(space.capacity - space.num_frontier - min(left, space.capacity // 2) - 2)
        chosen = self._inject()
        self._chain = Chain(
            first=space.num_imaged, dimension=space.n - space.size + 1, covers=covers
        )
        return chosen

    # -- reading -------------------------------------------------------------------------------

    def _current(self) -> tuple[list[Pair], int]:
        """Return the wanted pairs as known now, top first, and how many belong to the bottom."""
        ritz = self._space.ritz()
        places = self._places(len(ritz))
        if self._phase == "check":
            places = self._places(self._num_wanted)
            pairs = list(self._checked)
            p, q = self._space.num_imaged, self._space.size
            for i in range(len(pairs), self._num_wanted):
                column = self._space.coefficients[p:q, i]
                value = float(self._space.coefficients[i, i])
                pairs.append(self._estimated(value, float(torch.linalg.vector_norm(column))))
        else:
            chosen = [*places["top"], *places["bottom"]]
            pairs = [
                self._estimated(float(ritz.values[i]), float(ritz.residuals[i])) for i in chosen
            ]
        if self._space.is_complete:
            # All eigenvalues are at hand, so every gap is known.
            gaps = separations(ritz.values, ritz.residuals)
            chosen = self._wanted(len(ritz))
            pairs = [
                replace(pair, gap=float(gaps[i]) - self._space.noise)
                for pair, i in zip(pairs, chosen, strict=True)
            ]
        return pairs, len(places["bottom"])

    def _estimated(self, value: float, residual: float) -> Pair:
        floor = 4 * self._space.eps * self._scale
        return Pair(max(value, 0.0), max(residual, floor), is_real=False)

    def progress(self) -> Progress:
        """Return Ritz values and residuals of the wanted pairs; costs no product."""
        pairs, bottom = self._current() if self._space.num_imaged else ([], 0)
        return Progress(
            eigenvalues=torch.tensor([p.value for p in pairs], dtype=torch.float64),
            residuals=torch.tensor([p.residual for p in pairs], dtype=torch.float64),
            eigenindex=torch.tensor(eigen_indices(self, len(pairs) - bottom, bottom)),
            scale=self._scale,
            tol=self.settings.tol,
            num_products=self._num_products,
            phase="done" if self.done else _PHASES[self._phase],
        )

    def result(self) -> Spectrum:
        """Return the best pairs so far with their certificates; valid at any time."""
        pairs, bottom = self._current()
        if self._phase == "check":
            vectors = self._space.rows[: len(pairs)].clone()
        elif pairs:
            vectors = self._space.vectors(self._wanted(self._space.num_imaged))
        else:
            vectors = self._space.rows[:0].clone()
        return build_spectrum(
            self,
            pairs,
            vectors,
            num_bottom=bottom,
            scale=self._scale,
            verified=self._is_verified,
            notes=self._notes,
        )

    # -- state ---------------------------------------------------------------------------------

    def _export_state(self) -> dict[str, Any]:
        return {
            "space": self._space.export(),
            "chain": None if self._chain is None else self._chain.export(),
            "phase": self._phase,
            "simple": dict(self._simple),
            "copies": dict(self._copies),
            "is_verified": dict(self._is_verified),
            "verification_used": self._verification_used,
            "checked": [asdict(pair) for pair in self._checked],
            "num_checks": self._num_checks,
            "best": self._best,
            "best_at": self._best_at,
            "spread": self._spread,
            "notes": list(self._notes),
            "basis_size": self.basis_size,
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        if state["basis_size"] != self.basis_size:
            raise CheckpointError(
                f"state: expected basis_size = {self.basis_size}, got {state['basis_size']}; "
                "resume with the settings of the saved run"
            )
        self._space.restore(state["space"])
        chain = state["chain"]
        self._chain = None if chain is None else Chain.restored(chain)
        self._phase = str(state["phase"])
        self._simple = dict(state["simple"])
        self._copies = dict(state["copies"])
        self._is_verified = dict(state["is_verified"])
        self._verification_used = int(state["verification_used"])
        self._checked = [Pair(**pair) for pair in state["checked"]]
        self._num_checks = int(state["num_checks"])
        self._best = float(state["best"])
        self._best_at = int(state["best_at"])
        self._spread = float(state["spread"])
        self._notes = [str(note) for note in state["notes"]]

    def _reopen(self, saved: Mapping[str, Any]) -> None:
        super()._reopen(saved)
        if self._stop_reason is not None:
            return
        if self.settings.tol < float(saved["tol"]):
            # What was proven allowed larger errors.
            self._simple = dict.fromkeys(self._simple, False)
            self._copies = dict.fromkeys(self._copies, False)
            self._is_verified = dict.fromkeys(self._is_verified, False)
            self._verification_used = 0
        self._num_checks, self._best, self._spread = 0, math.inf, -math.inf
        self._best_at = self._num_products
        if self._phase == "check" and len(self._checked) == self._num_wanted:
            late = max(pair.residual for pair in self._checked)
            if late <= self._limit and all(self._is_verified[end] for end in self._ends):
                self._stop_reason = StopReason.CONVERGED
                return
            self._phase, self._checked = "search", []
