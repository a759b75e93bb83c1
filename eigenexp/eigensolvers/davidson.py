"""Generalised Davidson with a preconditioner fitted on the way: both ends, strong at the bottom.

The search space V ``(n, j)`` is kept with its products W = F V. A Ritz pair V s, θ has the residual
r = W s − θ V s; V grows by r itself towards the top, which makes a Krylov space, and by A⁻¹ r
towards the bottom, where A ≈ F is the surrogate of ``modulated_convolution`` (Davidson 1975;
Morgan & Scott 1986; Stathopoulos & Saad 1998). The Krylov space comes first, then the start
vectors. Only where these do not have the bottom pairs do a few random vectors follow; A is
estimated from them, and they bring every copy of a repeated eigenvalue into the space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.modulated_convolution import ModulatedConvolution, fit_surrogate
from eigenexp.eigensolvers.reporting import make_spectrum, miss_notes
from eigenexp.eigensolvers.search_space import SearchSpace
from eigenexp.eigensolvers.verified import VerifiedSolver
from eigenexp.eigensolvers.witness import (
    CHANCE,
    chance_of_miss,
    draw_probe,
    galerkin_weights,
)
from eigenexp.errors import InputError
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Davidson"]

LEAD_IN = 5
"""Size of the Krylov space from which λmax is taken where only the bottom is wanted."""
PROBES = 6
"""Random vectors: the fewest from which the surrogate is as good as from 16."""
FITTED = 24
"""Vectors, the last ones, that the surrogate is estimated from at the most."""
LARGE = 2**14
"""Length of a vector beyond which a step of the inner solve may cost as much as a product."""
BASIS = 120
"""Default of ``basis_size``; twice as many save under 5 % of the products at the bottom."""
BASIS_BYTES = 2**30
"""The default basis and its products shrink to fit in this much."""
REFITS = (16, 32, 64)
"""Sizes of the search space at which the surrogate is estimated again."""
CLOSE = 0.015
"""Misfit below which the correction equation is solved with A − θ instead of A."""
USABLE = 0.05
"""Misfit below which the bottom eigenvectors of A are worth a product each."""
INNER = 4
"""Steps of that inner solve; each costs one A⁻¹, no product."""

AT_ONCE = 4
"""Residuals measured in one pass over the space; a pass costs about the same for one."""

SEARCHING, GUARDING, VERIFYING = "searching", "guarding", "verifying"


class Davidson(VerifiedSolver):
    """Generalised Davidson for one end of the spectrum or both.

    Parameters
    ----------
    basis_size
        Vectors of the search space at the most; as many products are stored beside them, so memory
        is ``2 · basis_size · n`` numbers. ``None``: 120, or what 1 GiB holds, and more where k
        needs it.
    block_size
        Columns a product is asked for at once: the corrections of that many pairs. 1 needs the
        fewest products; more pay where a product of several columns is cheap.
    preconditioner
        ``"surrogate"``: estimated from the products, see :mod:`.modulated_convolution`;
        ``"none"``: corrections are the residuals.
    strict_verification
        Follow the search for missed pairs until it bounds the chance of a miss by 5 %, also at the
        top of a picture's F, where 15 products of verification are enough otherwise.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. ``start`` is tried first where the
        bottom is wanted.

    Notes
    -----
    A pair is called converged when its residual from a true product is at most ``tol · λmax`` and
    the search from a fresh random vector found no pair beyond; :mod:`.witness` bounds the chance
    that one was missed, and the spectrum's notes say it. The bottom needs no search where
    θ ≤ 2 · tol · λmax: F is positive semidefinite and Ritz values bound eigenvalues of the same
    index from above, so its eigenvalue lies in [0, θ].
    """

    name: ClassVar[str] = "davidson"

    def __init__(
        self,
        n: int,
        *,
        basis_size: int | None = None,
        block_size: int = 1,
        preconditioner: str = "surrogate",
        strict_verification: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(n, strict_verification=strict_verification, **settings)
        if preconditioner not in ("surrogate", "none"):
            raise InputError(
                f"preconditioner: expected 'surrogate' or 'none', got {preconditioner!r}"
            )
        if block_size < 1:
            raise InputError(f"block_size: expected at least 1 column, got {block_size}")
        wanted = len(self.settings.wanted)
        self._block_size = min(block_size, n)
        self.preconditioner = preconditioner
        probes = max(PROBES if self._num_bottom else 2, self._null_copies + 1)
        least = 3 * wanted + probes + 3 * self._block_size + 8
        if basis_size is None:
            itemsize = torch.finfo(self.dtype).bits // 8
            basis_size = max(2 * least, min(BASIS, BASIS_BYTES // (2 * n * itemsize)))
        elif basis_size < 2:
            raise InputError(f"basis_size: expected at least 2 vectors, got {basis_size}")
        self.basis_size = min(n, max(basis_size, least))
        self._space = SearchSpace(
            n, self.basis_size, dtype=self.dtype, device=self.device, eps=self.eps, floor=self.floor
        )
        # Top pairs come cheapest from one Krylov space, which any other vector would spoil.
        self._krylov = True
        self._num_probes, self._probes_left = probes, 0
        self._probed = False
        # Vectors worth trying next, and the places in the space of all that were guessed.
        self._waiting = torch.zeros(n, 0, dtype=self.dtype, device=self.device)
        self._guessed: list[int] = []
        self._surrogate: ModulatedConvolution | None = None
        self._inner = 0
        # For a long vector an estimate costs as much as many products, in time and memory.
        self._refits = [size for size in REFITS if size < self.basis_size and n <= LARGE]
        self._phase = SEARCHING
        self._norms = torch.full((wanted,), float("inf"), dtype=torch.float64)
        self._guard_spent = 0
        self._guard_ends: list[str] = []
        self._settled = torch.zeros(0, dtype=torch.float64)
        self._standing: list[float] = []
        self._stood = 0
        self._witness = torch.zeros(0, dtype=torch.float64)
        self._chances: list[float] = []
        self._guarded = False
        # y of the witness is needed when its product is judged and when the next one is asked for.
        self._traced: tuple[float, Tensor, float] | None = None

    @property
    def block_size(self) -> int:
        """Columns asked for at once."""
        return self._block_size

    @property
    def stored_vectors(self) -> int:
        """The search space and its products."""
        return 2 * self.basis_size

    # -- what to multiply next -----------------------------------------------------------------

    def _ask(self) -> Tensor:
        if self._phase == VERIFYING:
            told = self._truth.told
            return self._space.vectors(self._places()[told : told + self._block_size])
        n, free = self.settings.n, self.settings.n - self._space.size
        width = min(self._block_size, free)
        if self._space.size == 0:
            return self._space.fresh(self._randn(n, width), self._randn)
        if self._waiting.shape[1] > 0:
            return self._space.fresh(self._waiting[:, :width], self._randn)
        if self._probes_left > 0:
            return self._space.fresh(self._randn(n, min(width, self._probes_left)), self._randn)
        if self._phase == GUARDING and self._guard_spent == 0:
            return self._draw_witness()
        return self._space.fresh(self._corrections(width), self._randn)

    def _draw_witness(self) -> Tensor:
        """Draw g and return the part of it that is not in the space."""
        found = self._space.vectors(self._places())
        noise = self._randn(self.settings.n)
        weights = self._randn(found.shape[1], 3)
        g = draw_probe(noise, weights, found, self.settings.image_shape)[:, None]
        fresh = self._space.fresh(g, self._randn)
        inside = (self._space.basis.mT @ g)[:, 0].double().cpu()
        self._witness = torch.cat([inside, (fresh.mT @ g)[:, 0].double().cpu()])
        return fresh

    def _corrections(self, width: int) -> Tensor:
        """Directions for the first pairs that have not converged, at the end that is next."""
        if self._phase == GUARDING:
            end, (suspect, residuals, _) = self._guard_ends[0], self._trace()
            values = torch.tensor([suspect], dtype=torch.float64)
        else:
            end, places = self._targets()
            values, residuals = self._space.residuals(places[:width])
        if self.preconditioner == "none" or self._krylov:
            return residuals
        if end == "bottom":
            self._refit()
        surrogate = self._surrogate
        if surrogate is None:
            return residuals
        if not self._inner:
            return surrogate.solve(residuals) if end == "bottom" else residuals
        locked = self._space.vectors(self._end_places(end))
        steps = self._inner if end == "bottom" else 2 * self._inner
        return torch.cat(
            [
                surrogate.correction(end, residuals[:, i, None], float(values[i]), locked, steps)
                for i in range(residuals.shape[1])
            ],
            dim=1,
        )

    def _line_up(self, vectors: Tensor | None) -> None:
        """Put vectors worth trying next, ``(n, s)``."""
        if vectors is None:
            return
        size = self._space.size
        self._waiting = vectors[:, : max(self.settings.n - size, 0)]
        self._guessed += range(size, size + self._waiting.shape[1])

    def _guess(self) -> None:
        """Estimate the surrogate from the random vectors, and line up what it has at the bottom."""
        if self.preconditioner == "none":
            return
        self._refit()
        if self._surrogate is not None and self._surrogate.misfit < USABLE:
            random, count = self._randn(self.settings.n, 1), self._num_bottom
            self._line_up(self._surrogate.extreme("bottom", random, count, 30 + 4 * count))

    def _refit(self) -> None:
        size = self._space.size
        outgrown = bool(self._refits) and size >= self._refits[0]
        if self._surrogate is not None and not outgrown:
            return
        while self._refits and size >= self._refits[0]:
            self._refits.pop(0)
        # Vectors that were guessed tell little of how F treats all others.
        guessed = set(self._guessed)
        last = self._num_probes if self._surrogate is None else FITTED
        typical = [i for i in range(size) if i not in guessed][-last:]
        v, w = self._space.basis[:, typical], self._space.products[:, typical]
        shape = self.settings.image_shape or (self.settings.n,)
        fitted = fit_surrogate(v, w, shape, self._surrogate)
        if self._surrogate is None and fitted is not None:
            steps = INNER if self.settings.n <= LARGE else INNER // 2
            self._inner = steps if fitted.misfit < CLOSE else 0
        self._surrogate = fitted or self._surrogate

    # -- taking products -----------------------------------------------------------------------

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        width = block.shape[1]
        if self._phase == VERIFYING:
            self._verify(block, products, responses)
            self._num_products += width
            self._num_verification_products += width
            return
        self._space.grow(block, products)
        self._traced = None
        self._num_products += width
        if self._krylov:
            self._krylov = not self._lead_in_is_over()
            if not self._krylov and self._num_bottom:
                self._line_up(self.start)
        elif self._waiting.shape[1] > 0:
            self._waiting = self._waiting[:, width:].contiguous()
        elif self._probes_left > 0:
            self._probes_left = max(0, self._probes_left - width)
            if self._probes_left == 0:
                self._guess()
        elif self._phase == GUARDING:
            self._num_verification_products += width
            self._guard_spent += width
        unready = self._krylov or self._probes_left > 0 or self._waiting.shape[1] > 0
        if unready and self._space.size < self.settings.n:
            self._make_room()
            return
        if self._phase == GUARDING:
            self._guard()
        if self._phase == SEARCHING:
            self._look()
        if self._phase != VERIFYING:
            self._make_room()

    def _look(self) -> None:
        """Leave the search when every wanted residual is under the tolerance."""
        if self._space.size < len(self.settings.wanted):
            return
        if not self._measure():
            if not self._probed and self._targets()[0] == "bottom":
                # Neither the Krylov space nor the start vectors were enough.
                self._probed, self._probes_left = True, self._num_probes
                self._make_room()
                return
            self._watch_progress()
            return
        if self._space.size >= self.settings.n:
            self._phase = VERIFYING
            return
        if self._guarded and not self._has_moved():
            self._phase = VERIFYING
            return
        self._chances, self._doubtful, self._guarded = [], False, False
        self._settled = self._space.values[self._places()].clone()
        self._guard_ends = self._ends_to_search(self._settled, self._space.scale)
        self._guard_next()

    def _measure(self) -> bool:
        """Measure residuals until one is above the limit; return whether all are below.

        Pairs that were below when last measured are measured again only when all others are.
        """
        limit, places = self._limit(), self._places()
        for doubtful in (self._norms > limit, torch.ones(len(places), dtype=torch.bool)):
            candidates = [i for i in self._outermost_first() if bool(doubtful[i])]
            for start in range(0, len(candidates), AT_ONCE):
                chunk = candidates[start : start + AT_ONCE]
                _, residuals = self._space.residuals([places[i] for i in chunk])
                self._norms[chunk] = residuals.norm(dim=0).double().cpu()
                if float(self._norms[chunk].max()) > limit:
                    return False
        return True

    def _lead_in_is_over(self) -> bool:
        """Whether the Krylov space has the top pairs; for the bottom alone, λmax roughly."""
        size, wanted = self._space.size, len(self.settings.wanted)
        if size >= self.settings.n:
            return True
        if not self._num_top:
            return size >= LEAD_IN
        if size < wanted:
            return False
        _, residuals = self._space.residuals(self._places())
        self._norms = residuals.norm(dim=0).double().cpu()
        return float(self._norms[: self._num_top].max()) <= self._limit()

    def _limit(self) -> float:
        tol = 0.97 * self.settings.tol / (1 + self._truth.failures)
        # Below rounding a residual means nothing: let the true products decide.
        return max(tol, 0.25 * self.floor) * self._space.scale

    def _targets(self) -> tuple[str, list[int]]:
        """Return the end to work on and the places of its unconverged pairs, outermost first."""
        limit, size, wanted = self._limit(), self._space.size, len(self.settings.wanted)
        if self._krylov and not self._num_top:
            return "top", [0]
        top = [i for i in range(self._num_top) if float(self._norms[i]) > limit]
        if top:
            return "top", top
        bottom = [i for i in range(self._num_bottom) if float(self._norms[wanted - 1 - i]) > limit]
        if not self._num_bottom:
            return "top", [0]
        return "bottom", [size - 1 - i for i in bottom or [0]]

    def _places(self) -> list[int]:
        """Places of the wanted pairs among the Ritz values, decreasing."""
        return [*self._end_places("top"), *self._end_places("bottom")]

    def _end_places(self, end: str) -> list[int]:
        size = self._space.size
        if end == "top":
            return list(range(min(self._num_top, size)))
        return list(range(max(size - self._num_bottom, self._num_top), size))

    def _watch_progress(self) -> None:
        """Stop where residuals and Ritz values have both stood still for long."""
        worst = self._norms[self._norms > self._limit()]
        now = [len(worst), float(worst[0]), float(self._space.values[self._places()].sum())]
        then, slack = self._standing, 1e-3 * self._limit()
        if not then or now[0] < then[0] or now[1] < 0.99 * then[1] or abs(now[2] - then[2]) > slack:
            self._standing, self._stood = now, 0
            return
        self._stood += 1
        if self._stood >= max(200, 2 * self.basis_size):
            floor = 10 * self.floor * self._space.scale
            at_floor = float(worst.max()) <= floor
            self._stop_reason = StopReason.FLOOR if at_floor else StopReason.STAGNATED

    # -- the search for missed pairs -----------------------------------------------------------

    def _guard_next(self) -> None:
        """Search the next end for missed pairs, or go on to the true products."""
        self._guard_spent = 0
        if self._guard_ends:
            self._phase = GUARDING
            return
        # The search may have turned vectors within a cluster: their residuals are looked at again.
        self._guarded = True
        self._norms.fill_(float("inf"))
        self._phase = VERIFYING if self._measure() else SEARCHING

    def _has_moved(self) -> bool:
        """Whether a wanted pair is another than when the search for missed ones began."""
        moved = float((self._space.values[self._places()] - self._settled).abs().max())
        return moved > self.settings.tol * self._space.scale

    def _guard(self) -> None:
        """Judge the search for missed pairs after each of its products."""
        if self._has_moved():
            self._phase = SEARCHING  # a pair was missed: it is in the space now
            self._norms.fill_(float("inf"))
            # What its search cost was no verification after all.
            self._num_verification_products -= self._guard_spent
            return
        if self._space.size >= self.settings.n:
            self._guard_ends = []
            self._guard_next()
            return
        *_, chance = self._trace()
        end = self._guard_ends[0]
        spent = self._budget.spent(end, self._guard_spent, self._num_products)
        if chance <= CHANCE or spent:
            short = self._budget.short(end)
            self._doubtful = self._doubtful or (chance > CHANCE and not short)
            self._chances.append(chance)
            self._guard_ends.pop(0)
            self._guard_next()

    def _trace(self) -> tuple[float, Tensor, float]:
        """Return the suspect hardest to exclude, its y ``(n, 1)``, and the chance of a miss."""
        if self._traced is not None:
            return self._traced
        space, end = self._space, self._guard_ends[0]
        if space.scale == 0:  # F g = 0 for a random g
            return 0.0, self._witness.new_zeros(space.n, 1).to(space.basis), 0.0
        values = space.values[self._places()]
        possible = self._suspects(end, values, space.scale)
        probe = space.coordinates(self._witness)
        weights = torch.stack(
            [galerkin_weights(space.values, probe, self._places(), x) for x in possible], dim=1
        )
        y = space.combine_residuals(weights)
        norms = y.norm(dim=0).tolist()
        worst = norms.index(max(norms))
        chance = chance_of_miss(norms, self.settings.n)
        self._traced = possible[worst], y[:, worst : worst + 1], chance
        return self._traced

    def _verify(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        self._truth.measure(block, products, responses)
        if not self._truth.complete:
            return
        self._stop_reason = self._verdict()
        if self._stop_reason is None:
            self._back_to_search()

    def _verdict(self) -> StopReason | None:
        exhausted = self._space.size >= self.settings.n
        return self._judge(self._space.scale, exhausted=exhausted)

    def _back_to_search(self) -> None:
        self._truth.forget()
        self._phase = SEARCHING
        self._norms.fill_(float("inf"))
        self._standing, self._stood = [], 0
        if self._space.size >= self.settings.n:
            self._phase = VERIFYING
        elif self._space.size >= len(self.settings.wanted):
            self._make_room()
            self._measure()

    # -- restart -------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Shrink a full space to the wanted Ritz vectors, their neighbours and the last ones."""
        space = self._space
        if space.size + self._block_size <= self.basis_size or space.size >= self.settings.n:
            return
        kept = self._kept_places(space.size)
        if self._phase == GUARDING and self._guard_spent > 0:
            # g itself stays in the space, or its trace could not be followed.
            full = torch.zeros(space.size, 1, dtype=torch.float64)
            full[: len(self._witness), 0] = self._witness
            rotation = space.restart(kept, full)
            self._witness = (rotation.mT @ full)[:, 0]
            self._traced = None
        else:
            space.restart(kept)
        self._refits, self._guessed = [], []

    # -- what is known -------------------------------------------------------------------------

    def _measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        size, wanted = self._space.size, len(self.settings.wanted)
        if size < wanted:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), self._space.scale
        values = self._space.values[self._places()].clamp(min=0)
        residuals = self._norms.clone()
        self._with_truth(values, residuals)
        scale = max(self._space.scale, float(values.max()))
        return values, residuals, torch.tensor(self.settings.wanted, dtype=torch.int64), scale

    def _result(self) -> Spectrum:
        """Return the best pairs so far; see the class for when one is called converged."""
        values, residuals, index, scale = self._measured()
        places = self._places() if len(values) else []
        guards = None
        if places and not self.done:
            # Measured residuals may be old; a result is asked for rarely.
            _, fresh = self._space.residuals(places)
            residuals = fresh.norm(dim=0).double().cpu()
        if places and self.done:
            theta, fresh = self._space.residuals(self._guard_places(self._space.size))
            guards = torch.stack([theta, fresh.norm(dim=0).double().cpu()], dim=1)
        return make_spectrum(
            self.settings,
            values=values,
            vectors=self._space.vectors(places).mT,
            residuals=residuals,
            index=index,
            scale=scale,
            floor=self.floor,
            stop_reason=self.stop_reason,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            method=self.name,
            notes=self._notes(),
            guards=guards,
        )

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._surrogate is not None:
            notes.append(
                f"preconditioned by a modulated convolution in the {self._surrogate.basis} basis, "
                f"misfit {self._surrogate.misfit:.2g}"
            )
        return (*notes, *miss_notes(self._chances, self.done))

    # -- state ---------------------------------------------------------------------------------

    def _export_state(self) -> dict[str, Any]:
        return {
            "space": self._space.state(),
            "surrogate": None if self._surrogate is None else self._surrogate.state(),
            "inner": self._inner,
            "refits": list(self._refits),
            "probes_left": self._probes_left,
            "krylov": self._krylov,
            "waiting": self._waiting.clone(),
            "guessed": list(self._guessed),
            "probed": self._probed,
            "phase": self._phase,
            "norms": self._norms.clone(),
            "guard_spent": self._guard_spent,
            "guard_ends": list(self._guard_ends),
            "settled": self._settled.clone(),
            "truth": self._truth.state(),
            "standing": list(self._standing),
            "stood": self._stood,
            "witness": self._witness.clone(),
            "chances": list(self._chances),
            "doubts": [int(self._doubtful), int(self._guarded)],
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        self._space.load(state["space"])
        self.basis_size = max(self.basis_size, self._space.capacity)
        saved = state["surrogate"]
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self._surrogate = None if saved is None else ModulatedConvolution.from_state(saved, like)
        self._inner = int(state["inner"])
        self._refits = [int(size) for size in state["refits"]]
        self._probes_left, self._waiting = int(state["probes_left"]), self._own(state["waiting"])
        self._krylov = bool(state["krylov"])
        self._guessed = [int(place) for place in state["guessed"]]
        self._probed = bool(state["probed"])
        self._phase = str(state["phase"])
        self._norms = state["norms"].double().cpu().clone()
        self._guard_spent = int(state["guard_spent"])
        self._guard_ends = [str(end) for end in state["guard_ends"]]
        self._settled = state["settled"].double().cpu().clone()
        self._truth.load(state["truth"])
        self._standing = [float(x) for x in state["standing"]]
        self._stood = int(state["stood"])
        self._witness = state["witness"].double().cpu().clone()
        self._chances = [float(chance) for chance in state["chances"]]
        self._doubtful, self._guarded = (bool(x) for x in state["doubts"])
        self._traced = None

    def _search_on(self) -> None:
        self._guarded = False
        self._pending = None
        self._back_to_search()
