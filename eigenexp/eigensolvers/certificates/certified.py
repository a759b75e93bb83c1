"""The last stage of every iterative method: residuals, the search for missed pairs, the verdict.

A method hands its vectors and their products over when it has the wanted pairs. From then on there
is a search space V with W = F V. The wanted Ritz vectors are frozen, a random g is drawn, and the
space grows until :mod:`.witness` excludes that a pair beyond them was missed. Where one is found,
the space has it: the wanted pairs are converged again, and a new attempt begins with a fresh g and
half the chance that is left.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress
from eigenexp.eigensolvers.certificates.frozen import Frozen, View
from eigenexp.eigensolvers.certificates.migration import migrated_state
from eigenexp.eigensolvers.certificates.residuals import TrueResiduals
from eigenexp.eigensolvers.certificates.result import make_spectrum
from eigenexp.eigensolvers.certificates.witness import (
    Trace,
    largest_trace,
    suspects_beyond,
    trace_limit,
)
from eigenexp.eigensolvers.search_space import SearchSpace
from eigenexp.eigensolvers.state import Part, State, numbers, part
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Certificate", "CertifiedSolver"]

KEPT = 0.4
"""Share of the vectors beyond the wanted ones that a restart keeps; 0.3 to 0.7 do alike."""
AT_ONCE = 4
"""Residuals measured in one pass over the space; a pass costs about the same for one."""
PATIENCE = 150
"""Products of a search for missed pairs without a smaller trace, after which it is given up."""
SMALL = 600
"""Length of a vector up to which the space may hold all of them: no product is ever lost."""
BASIS = 120
"""Vectors of the search space otherwise; twice as many save under 5 % of the products."""
BASIS_BYTES = 2**30
"""The space and its products shrink to fit in this much, where k allows."""
RESOLVED = 1e-3
"""A residual from stored products stands if their rounding is below this share of the limit."""
INSIDE, PRECISE = 0.1, 1 / 3
"""Share of a gap that the edge is put inside it; more where the bottom's value is to be precise."""
WORTH = 0.3
"""Share of the slack below which a bound quadratic in the residuals is worth having."""
UNRESOLVED = 3e-14
"""Eigenvalue over λmax below which float64 tells it from 0 no longer."""

MAIN, SEARCHING, GUARDING, VERIFYING = "main", "searching", "guarding", "verifying"


@dataclass
class Certificate(State):
    """What the last stage knows.

    Attributes
    ----------
    phase
        ``"main"`` while the method works by itself, then ``"searching"``, ``"guarding"`` (the
        search for missed pairs) and ``"verifying"`` (true products).
    norms
        Residual norms of the wanted pairs when last measured, ``(wanted,)``.
    frozen
        The wanted vectors and the witness of the present attempt.
    attempts, following
        Attempts begun, and products of the present one.
    least, stalled
        The smallest trace of the attempt over its limit, and products since.
    proved
        Whether the search for missed pairs has ended with its claim.
    given_up
        Whether it ended without.
    edges
        Proved edges of F′: ``top`` above all of its spectrum, ``bottom`` below.
    refine
        How much smaller than first thought the residuals at the bottom are to be.
    standing, stood
        Residuals when there last was progress, and steps since.
    rule
        How the certificate was made.
    """

    phase: str = MAIN
    norms: Tensor = numbers()
    frozen: Any = part(lambda saved, like: _restored(Frozen(), saved, like))
    attempts: int = 0
    following: int = 0
    least: float = float("inf")
    stalled: int = 0
    proved: bool = False
    given_up: bool = False
    edges: dict[str, float] = field(default_factory=dict)
    refine: float = 1.0
    standing: list[float] = field(default_factory=list)
    stood: int = 0
    truth: Any = part()
    rule: str = "frozen"


def _restored(state: State, saved: Any, like: Tensor) -> State:
    state.restore(saved, like)
    return state


class CertifiedSolver(Eigensolver):
    """A method that ends with proved pairs; see the module.

    Subclasses work by themselves while ``_certificate.phase`` is ``"main"`` (:meth:`_main_ask`,
    :meth:`_main_tell`) and then call :meth:`_take_over`. They may steer how the space grows by
    :meth:`_directions`.
    """

    def __init__(self, n: int, **settings: Any) -> None:
        super().__init__(n, **settings)
        wanted = len(self.settings.wanted)
        self._num_top = 0 if self.settings.which == "bottom" else self.settings.k
        self._num_bottom = wanted - self._num_top
        # A null space known beforehand is as wide as it is: a random vector a wanted copy.
        nullity = n - min(n, self.settings.rank_bound or n)
        self._null_copies = min(self._num_bottom, nullity)
        self._certificate = Certificate(
            norms=torch.full((wanted,), float("inf"), dtype=torch.float64),
            truth=TrueResiduals(),
        )
        # Empty, and without memory, until a method hands its vectors over.
        self._space = self._new_space(0)
        self._seen: View | None = None
        self._hardest: tuple[str, Trace] | None = None

    # -- the space -----------------------------------------------------------------------------

    def _stage_width(self) -> int:
        """Columns asked for at once."""
        return 1

    def _stage_capacity(self) -> int:
        """Vectors of the search space."""
        n, wanted = self.settings.n, len(self.settings.wanted)
        least = 3 * wanted + 3 * self._stage_width() + 16
        itemsize = torch.finfo(self.dtype).bits // 8
        usual = n if n <= SMALL else max(2 * least, BASIS)
        return min(n, max(least, min(usual, BASIS_BYTES // (2 * n * itemsize))))

    def _new_space(self, capacity: int) -> SearchSpace:
        return SearchSpace(
            self.settings.n,
            capacity,
            dtype=self.dtype,
            device=self.device,
            eps=self.eps,
            floor=self.floor,
        )

    def _take_over(self, vectors: Tensor, products: Tensor) -> None:
        """Begin the last stage with orthonormal ``vectors`` ``(n, b)`` and F times them."""
        self._space = self._new_space(self._stage_capacity())
        self._space.fill(vectors, products)
        self._certificate.phase = SEARCHING
        self._certificate.norms.fill_(float("inf"))
        self._look()
        if self._certificate.phase != VERIFYING:
            self._make_room()

    @property
    def _in_main(self) -> bool:
        return self._certificate.phase == MAIN

    # -- for subclasses ------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def _main(self) -> Part:
        """The state of the method's own work."""

    @abc.abstractmethod
    def _main_ask(self) -> Tensor: ...

    @abc.abstractmethod
    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None: ...

    @abc.abstractmethod
    def _main_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return values, residuals and eigenindex of the wanted pairs, and λmax."""

    @abc.abstractmethod
    def _main_vectors(self) -> Tensor:
        """Return the vectors of :meth:`_main_measured`, ``(k, n)``."""

    @abc.abstractmethod
    def _main_look(self) -> None:
        """Judge the method's own work anew, under another tolerance."""

    def _directions(self, end: str, residuals: Tensor, values: Tensor) -> Tensor:
        """Return how the space is to grow from residuals ``(n, b)`` of pairs at an end."""
        return residuals

    def _rotated(self) -> None:
        """Take note that the space was rotated to another basis."""

    def _own_notes(self) -> list[str]:
        return []

    # -- where pairs stand ---------------------------------------------------------------------

    def _outermost_first(self) -> list[int]:
        """Wanted pairs in the order they are worked on: top inwards, then bottom inwards."""
        wanted = len(self.settings.wanted)
        return [*range(self._num_top), *reversed(range(self._num_top, wanted))]

    def _kept_places(self, size: int) -> list[int]:
        """Places, of ``size`` Ritz values, that a restart keeps: the wanted and those beside."""
        spare = max(1, int(KEPT * (size - self._num_top - self._num_bottom)))
        both = self._num_top > 0 and self._num_bottom > 0
        spare_top = spare // 2 if both else (spare if self._num_top else 1)
        spare_bottom = spare - spare_top if both else (spare if self._num_bottom else 1)
        top = self._num_top + spare_top
        bottom = min(self._num_bottom + spare_bottom, size - top)
        return [*range(top), *range(size - bottom, size)]

    def _places(self) -> list[int]:
        """Places of the wanted pairs among the Ritz values, decreasing."""
        return [*self._end_places("top"), *self._end_places("bottom")]

    def _end_places(self, end: str) -> list[int]:
        size = self._space.size
        if end == "top":
            return list(range(min(self._num_top, size)))
        return list(range(max(size - self._num_bottom, self._num_top), size))

    @property
    def _is_whole(self) -> bool:
        return self._space.size >= self.settings.n

    # -- what is enough ------------------------------------------------------------------------

    def _allowed(self) -> float:
        """Return how far a converged value may be off: (1 + √k) · tol · λmax, and rounding."""
        share: float = 1 + len(self.settings.wanted) ** 0.5
        return (share * self.settings.tol + 2 * self.floor) * self._space.scale

    def _slack(self) -> float:
        """s: how far beyond the last wanted pair a missed one may lie.

        At least tol · λmax, rounding added, and all that the residuals R of the frozen vectors
        leave of what is allowed: values are off by at most s + ‖R‖.
        """
        least = (self.settings.tol + 2 * self.floor) * self._space.scale
        frozen: Frozen | None = self._certificate.frozen
        if frozen is None:
            return least
        spread: float = frozen.spread
        share: float = 1 + self.settings.k**0.5
        return max(least, 0.98 * share * self.settings.tol * self._space.scale - spread)

    def _limits(self) -> Tensor:
        """Return the residual each wanted pair is to reach, ``(wanted,)``."""
        truth, scale = self._certificate.truth, self._space.scale
        tol = 0.97 * self.settings.tol / (1 + truth.failures)
        # Below rounding a residual means nothing: let the true products decide.
        least = 0.25 * self.floor * scale
        limits = torch.full((len(self.settings.wanted),), tol * scale, dtype=torch.float64)
        rel, space = self.settings.relative_tol, self._space
        if rel is not None and self._num_bottom and space.size > len(limits):
            beyond = self._beyond_bottom()
            for i in range(self._num_top, len(limits)):
                value = max(float(space.values[self._places()[i]]), 0.0)
                if value <= self._unresolved():
                    continue
                gap = max(beyond - value, 0.0)
                fine = max(rel * value / 4, 0.4 * (rel * value * gap) ** 0.5)
                fine /= max(self._num_bottom, 1) ** 0.5
                limits[i] = min(float(limits[i]), fine * self._certificate.refine)
        return limits.clamp(min=least)

    def _unresolved(self) -> float:
        """Return the eigenvalue that the arithmetic cannot tell from 0."""
        return max(UNRESOLVED, 2 * self.floor if self.floor > 1e-10 else 0.0) * self._space.scale

    def _beyond_bottom(self) -> float:
        """Return the Ritz value next to the wanted ones of the bottom, inwards."""
        place = self._space.size - self._num_bottom - 1
        return float(self._space.values[max(place, self._num_top - 1, 0)])

    def _least_edge(self, end: str) -> float:
        """Return the farthest edge that proves enough: s beyond the last wanted pair."""
        frozen: Frozen = self._certificate.frozen
        if end == "top":
            return float(frozen.values[self._num_top - 1]) + self._slack()
        last = max(float(frozen.values[self._num_top]), 0.0)
        rel, slack = self.settings.relative_tol, self._slack()
        if rel is not None and last > self._unresolved():
            slack = min(slack, rel * last / 2)
        return last - slack

    def _edge(self, end: str) -> float:
        """Return the nearest eigenvalue of F′ that is to be excluded at an end.

        A little inside the gap to the Ritz values of F′, where there is one that makes bounds
        quadratic in the residuals: that costs about a twentieth of the search.
        """
        edge, frozen = self._least_edge(end), self._certificate.frozen
        if self._seen is None:
            return edge
        values = self._seen.evidence.values
        top = end == "top"
        last = float(frozen.values[self._num_top - 1 if top else self._num_top])
        gap = last - float(values[0]) if top else float(values[-1]) - last
        precise = not top and self.settings.relative_tol is not None
        inside = gap * (PRECISE if precise else INSIDE)
        square = float(frozen.gram.diagonal().sum())
        if inside > 0 and (precise or square < WORTH * inside * self._slack()):
            return last - inside if top else max(edge, last + inside)
        return edge

    def _ends_to_search(self) -> list[str]:
        """Return the ends where a pair can have been missed.

        The bottom is none where its eigenvalues lie in [0, 2 · tol · λmax]: F is positive
        semidefinite, and Ritz values bound eigenvalues of the same index from above.
        """
        ends = ["top"] if self._num_top else []
        if not self._num_bottom:
            return ends
        last = max(float(self._space.values[self._places()[self._num_top]]), 0.0)
        rel = self.settings.relative_tol is not None and last > self._unresolved()
        if rel or last > 2 * self.settings.tol * self._space.scale:
            ends.append("bottom")
        return ends

    # -- what to multiply next -----------------------------------------------------------------

    def _ask(self) -> Tensor:
        certificate = self._certificate
        if certificate.phase == MAIN:
            return self._main_ask()
        if certificate.phase == VERIFYING:
            at = certificate.truth.due[: self._stage_width()]
            return self._space.vectors([self._places()[i] for i in at])
        width = min(self._stage_width(), self.settings.n - self._space.size)
        if certificate.phase == GUARDING:
            if certificate.following == 0:
                return self._draw_witness()
            return self._space.fresh(self._guard_directions(), self._randn)
        if self._space.size < len(self.settings.wanted):
            return self._space.fresh(self._randn(self.settings.n, width), self._randn)
        end, places = self._targets()
        values, residuals = self._space.residuals(places[:width])
        return self._space.fresh(self._directions(end, residuals, values), self._randn)

    def _draw_witness(self) -> Tensor:
        """Draw g, uniform on the unit sphere, and return the part that is not in the space."""
        frozen: Frozen = self._certificate.frozen
        g = self._randn(self.settings.n, 1)
        g = g / g.norm()
        fresh = self._space.fresh(g, self._randn)
        inside = (self._space.basis.mT @ g)[:, 0].double().cpu()
        frozen.probe = torch.cat([inside, (fresh.mT @ g)[:, 0].double().cpu()])
        return fresh

    def _guard_directions(self) -> Tensor:
        end, trace = self._hard()
        view = self._view()
        if view is None:
            return self._randn(self.settings.n, 1)
        y = view.direction(self._space, trace)
        return self._directions(end, y, torch.tensor([trace.suspect], dtype=torch.float64))

    def _targets(self) -> tuple[str, list[int]]:
        """Return the end to work on and the places of its unconverged pairs, outermost first."""
        limits, norms = self._limits(), self._certificate.norms
        size, wanted = self._space.size, len(norms)
        top = [i for i in range(self._num_top) if float(norms[i]) > float(limits[i])]
        if top:
            return "top", top
        if not self._num_bottom:
            return "top", [0]
        late = [wanted - 1 - i for i in range(self._num_bottom)]
        bottom = [i for i in late if float(norms[i]) > float(limits[i])]
        return "bottom", [size - (wanted - i) for i in bottom or late[:1]]

    # -- taking products -----------------------------------------------------------------------

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        phase = self._certificate.phase
        if phase == MAIN:
            self._main_tell(block, products, responses)
            return
        self._stage_tell(block, products, responses)
        if not self.done and self._num_products >= 60 * self.settings.n + 2000:
            self._stop_reason = StopReason.STAGNATED

    def _stage_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        phase = self._certificate.phase
        width = block.shape[1]
        if phase == VERIFYING:
            self._certificate.truth.measure(block, products, responses)
            self._num_products += width
            self._num_verification_products += width
            self._verify()
            return
        self._grow(block, products)
        if phase == GUARDING:
            self._num_verification_products += width
            self._certificate.following += width
        self._judge()

    def _grow(self, block: Tensor, products: Tensor) -> None:
        self._space.grow(block, products)
        self._seen, self._hardest = None, None
        self._num_products += block.shape[1]

    def _judge(self) -> None:
        """See what the space tells after it has grown, and make room in it."""
        if self._certificate.phase == GUARDING:
            self._guard()
        if self._certificate.phase == SEARCHING:
            self._look()
        if self._certificate.phase != VERIFYING and not self.done:
            self._make_room()

    def _look(self) -> None:
        """Leave the search when every wanted residual is under its limit."""
        certificate = self._certificate
        if self._space.size < len(self.settings.wanted):
            return
        if not self._measure() and not self._is_whole:
            self._watch_progress()
            return
        if self._is_whole or self.settings.miss_chance is None or certificate.given_up:
            self._begin_verification()
            return
        ends = self._ends_to_search()
        if certificate.proved and not self._is_stale(ends):
            self._begin_verification()
            return
        if not ends:
            certificate.proved = True
            self._begin_verification()
            return
        certificate.phase = GUARDING
        certificate.proved, certificate.edges = False, {}
        certificate.frozen = Frozen.of(self._space, self._places())
        certificate.attempts += 1
        certificate.following, certificate.stalled = 0, 0
        certificate.least = float("inf")
        self._seen, self._hardest = None, None

    def _is_stale(self, ends: list[str]) -> bool:
        """Whether what was proved says too little of the pairs that there are now."""
        certificate = self._certificate
        if certificate.frozen is None:
            return bool(ends)
        if any(end not in certificate.edges for end in ends):
            return True
        lower, upper = self._intervals(self._space.values[self._places()].clamp(min=0))
        values = self._space.values[self._places()].clamp(min=0)
        off = torch.maximum(values - lower, upper - values)
        searched = [off[: self._num_top] if end == "top" else off[self._num_top :] for end in ends]
        if any(float(one.max()) > self._allowed() for one in searched):
            return True
        if "bottom" in ends and self._relative_misses(values, lower):
            certificate.refine *= 0.3
            return True
        return False

    def _relative_misses(self, values: Tensor, lower: Tensor) -> bool:
        rel = self.settings.relative_tol
        if rel is None:
            return False
        values, lower = values[self._num_top :], lower[self._num_top :]
        known = (values - lower <= rel * values) | (values <= self._unresolved())
        return not bool(known.all())

    def _measure(self) -> bool:
        """Measure residuals until one is above its limit; return whether all are below.

        Pairs that were below when last measured are measured again only when all others are.
        """
        limits, places, norms = self._limits(), self._places(), self._certificate.norms
        for doubtful in (norms > limits, torch.ones(len(places), dtype=torch.bool)):
            candidates = [i for i in self._outermost_first() if bool(doubtful[i])]
            for start in range(0, len(candidates), AT_ONCE):
                chunk = candidates[start : start + AT_ONCE]
                _, residuals = self._space.residuals([places[i] for i in chunk])
                norms[chunk] = residuals.norm(dim=0).double().cpu()
                if bool((norms[chunk] > limits[chunk]).any()):
                    return False
        return True

    def _watch_progress(self) -> None:
        """Stop where residuals and Ritz values have both stood still for long."""
        certificate, limits = self._certificate, self._limits()
        worst = certificate.norms[certificate.norms > limits]
        now = [len(worst), float(worst[0]), float(self._space.values[self._places()].sum())]
        then, slack = certificate.standing, 1e-3 * float(limits.max())
        if not then or now[0] < then[0] or now[1] < 0.99 * then[1] or abs(now[2] - then[2]) > slack:
            certificate.standing, certificate.stood = now, 0
            return
        certificate.stood += 1
        if certificate.stood >= max(200, 2 * self._space.capacity):
            floor = 10 * self.floor * self._space.scale
            at_floor = float(worst.max()) <= floor
            self._stop_reason = StopReason.FLOOR if at_floor else StopReason.STAGNATED

    # -- the search for missed pairs -----------------------------------------------------------

    def _view(self) -> View | None:
        if self._seen is None:
            self._seen = self._certificate.frozen.view(self._space)
        return self._seen

    def _trace_limit(self, ends: list[str]) -> float:
        """C of the present attempt: half the chance that is left, shared by the ends."""
        chance = self.settings.miss_chance
        if chance is None:
            return 0.0
        return trace_limit(chance / 2**self._certificate.attempts / len(ends), self.settings.n)

    def _hard(self) -> tuple[str, Trace]:
        """Return the suspect that is hardest to exclude, and its end."""
        if self._hardest is None:
            self._guard_traces()
        if self._hardest is None:
            raise RuntimeError("the search for missed pairs has no suspect")
        return self._hardest

    def _guard_traces(self) -> float:
        """Bound the traces of all suspects; return the largest over its limit."""
        ends, scale = self._ends_to_search(), self._space.scale
        limit, worst = self._trace_limit(ends or ["top"]), 0.0
        view = self._view()
        for end in ends:
            if view is None:
                return 0.0
            trace = largest_trace(view.evidence, end, self._edge(end), scale, limit)
            if self._hardest is None or trace.worst > self._hardest[1].worst:
                self._hardest = end, trace
            worst = max(worst, trace.bound / limit)
        return worst

    def _guard(self) -> None:
        """Judge the search for missed pairs after each of its products."""
        certificate, scale = self._certificate, self._space.scale
        view, ends = self._view(), self._ends_to_search()
        if view is not None and not self._is_whole:
            found = self._found_beyond(view, ends)
            if found:
                self._reopen_search()
                return
        if self._is_whole or view is None or scale == 0 or not ends:
            self._end_guard(proved=True)
            return
        share = self._guard_traces()
        if share <= 1:
            limit = self._trace_limit(ends)
            frozen: Frozen = certificate.frozen
            certificate.edges = {
                end: frozen.finest_edge(view, end, self._edge(end), scale, limit) for end in ends
            }
            self._end_guard(proved=True)
            return
        if share < 0.9 * certificate.least:
            certificate.least, certificate.stalled = share, 0
            return
        certificate.stalled += 1
        if certificate.stalled >= PATIENCE:
            certificate.given_up = True
            self._end_guard(proved=False)

    def _found_beyond(self, view: View, ends: list[str]) -> bool:
        """Whether F′ has a Ritz value beyond an edge: a pair was missed, and is in the space."""
        values = view.evidence.values
        if "top" in ends and float(values[0]) > self._least_edge("top"):
            return True
        return "bottom" in ends and float(values[-1]) < self._least_edge("bottom")

    def _reopen_search(self) -> None:
        certificate = self._certificate
        # What the search cost was no verification after all.
        self._num_verification_products -= certificate.following
        certificate.phase, certificate.frozen = SEARCHING, None
        certificate.norms.fill_(float("inf"))
        certificate.standing, certificate.stood = [], 0

    def _end_guard(self, *, proved: bool) -> None:
        certificate = self._certificate
        certificate.proved = proved
        certificate.phase = SEARCHING
        # The search may have turned vectors within a cluster: their residuals are looked at again.
        certificate.norms.fill_(float("inf"))

    # -- true products -------------------------------------------------------------------------

    def _begin_verification(self) -> None:
        """Measure by true products what the stored ones do not resolve, and end."""
        certificate, space = self._certificate, self._space
        certificate.phase = VERIFYING
        certificate.truth.forget()
        values = space.values[self._places()].clamp(min=0)
        rounding = self.floor * space.scale
        coarse = rounding > RESOLVED * self._limits()
        small = rounding > 1e-6 * values
        if self.settings.relative_tol is not None:
            small = small | (rounding > 0.01 * self.settings.relative_tol * values)
        due = [i for i in range(len(values)) if bool(coarse[i]) or bool(small[i])]
        certificate.truth.begin(due)
        if not due:
            self._verify()

    def _verify(self) -> None:
        certificate = self._certificate
        if not certificate.truth.complete:
            return
        self._stop_reason = self._verdict()
        if self._stop_reason is None:
            self._back_to_search()

    def _verdict(self) -> StopReason | None:
        _, residuals, _, scale = self._measured()
        reason: StopReason | None = self._certificate.truth.verdict(
            residuals, scale, self.settings.tol, self.floor, exhausted=self._is_whole
        )
        if reason is StopReason.CONVERGED and not self._is_proved():
            return StopReason.UNVERIFIED
        return reason

    def _is_proved(self) -> bool:
        if self.settings.miss_chance is None or self._certificate.rule != "frozen":
            return False
        return self._certificate.proved or self._is_whole

    def _back_to_search(self) -> None:
        certificate = self._certificate
        certificate.truth.forget()
        certificate.phase = SEARCHING
        certificate.norms.fill_(float("inf"))
        certificate.standing, certificate.stood = [], 0
        if self._is_whole:
            self._begin_verification()
        elif self._space.size >= len(self.settings.wanted):
            self._make_room()
            self._measure()

    def _reopen(self) -> None:
        super()._reopen()
        if self._stop_reason is not None:
            return
        certificate = self._certificate
        if certificate.phase == MAIN:
            self._main_look()
            return
        values, residuals, _, scale = self._measured()
        met = len(values) > 0 and float(residuals.max()) <= self.settings.tol * scale
        wanted_proof = self.settings.miss_chance is not None
        if certificate.phase == VERIFYING and certificate.truth.complete and met:
            if self._is_proved() and not self._is_stale(self._ends_to_search()):
                self._stop_reason = StopReason.CONVERGED
                return
            if not wanted_proof:
                self._stop_reason = StopReason.UNVERIFIED
                return
        certificate.truth.reset()
        certificate.given_up, certificate.rule = False, "frozen"
        if certificate.phase == VERIFYING:
            self._pending = None
            self._back_to_search()
            if self._certificate.phase == SEARCHING:
                self._look()

    # -- restart -------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Shrink a full space to the wanted Ritz vectors, their neighbours and what guards them."""
        space, certificate = self._space, self._certificate
        if space.size + self._stage_width() <= space.capacity or self._is_whole:
            return
        kept = space.coefficients(self._kept_places(space.size))
        frozen, view = certificate.frozen, None
        if frozen is not None and certificate.phase == GUARDING and certificate.following > 0:
            view = self._view()
        if frozen is not None and view is not None:
            columns, probe = frozen.coefficients(space.size)
            solutions = self._solutions(view)
            room = max(1, int(0.7 * space.capacity) - columns.shape[1] - solutions.shape[1] - 1)
            wanted = space.coefficients(self._places())
            beside = view.vectors[:, self._beside(view, room)]
            rotation = space.restart(columns, probe[:, None], solutions, wanted, beside)
            frozen.rotated(rotation)
        elif frozen is not None:
            columns, _ = frozen.coefficients(space.size)
            frozen.probe = torch.zeros(0, dtype=torch.float64)
            frozen.rotated(space.restart(columns, kept))
        else:
            space.restart(kept)
        self._seen, self._hardest = None, None
        self._rotated()

    def _solutions(self, view: View) -> Tensor:
        """Return x of a few suspects at each end: the space keeps what it knows of g in them."""
        columns = []
        for end in self._ends_to_search():
            points = suspects_beyond(
                end, view.evidence.values, self._edge(end), self._space.scale, 10
            )
            columns.append(view.vectors @ view.evidence.at(points)[1].mT)
        return torch.cat(columns, dim=1) if columns else view.vectors[:, :0]

    def _beside(self, view: View, room: int) -> list[int]:
        """Return the places of the Ritz vectors of F′ next to the wanted ends."""
        m, ends = len(view.evidence.values), self._ends_to_search()
        share = max(1, room // 2 // max(1, len(ends)))
        top = range(min(share, m)) if "top" in ends else range(0)
        bottom = range(max(0, m - share), m) if self._num_bottom else range(0)
        return sorted({*top, *bottom})

    # -- what is known -------------------------------------------------------------------------

    def _intervals(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return proved bounds below and above each wanted eigenvalue, infinite where none is."""
        count, certificate = len(values), self._certificate
        lower = torch.full((count,), -float("inf"), dtype=torch.float64)
        upper = torch.full((count,), float("inf"), dtype=torch.float64)
        # Ritz values bound eigenvalues of the same index: from below at the top, above at the end.
        lower[: self._num_top] = values[: self._num_top]
        upper[self._num_top :] = values[self._num_top :]
        lower[self._num_top :] = 0.0
        frozen: Frozen | None = certificate.frozen
        if frozen is not None and certificate.proved:
            if "top" in certificate.edges:
                above = frozen.upper(certificate.edges["top"])[: self._num_top]
                upper[: self._num_top] = torch.maximum(above, values[: self._num_top])
            if "bottom" in certificate.edges:
                below = frozen.lower(certificate.edges["bottom"])[self._num_top :].clamp(min=0)
                lower[self._num_top :] = torch.minimum(below, values[self._num_top :])
        return lower, upper

    def _measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return values, residuals and eigenindex of the wanted pairs, and λmax."""
        return self._main_measured() if self._in_main else self._space_measured()

    def _space_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        size, wanted = self._space.size, len(self.settings.wanted)
        if size < wanted:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), self._space.scale
        values = self._space.values[self._places()].clamp(min=0)
        residuals = self._certificate.norms.clone()
        for i, (value, residual) in self._certificate.truth.pairs.items():
            values[i], residuals[i] = value, residual
        scale = max(self._space.scale, float(values.max()))
        return values, residuals, torch.tensor(self.settings.wanted, dtype=torch.int64), scale

    def _progress(self) -> Progress:
        """Return Ritz values and residuals of the wanted pairs, true ones where told."""
        values, residuals, index, scale = self._measured()
        return Progress(
            eigenvalues=values,
            residuals=residuals,
            eigenindex=index,
            scale=scale,
            tol=self.settings.tol,
            num_products=self._num_products,
            phase=self._certificate.phase,
        )

    def _result(self) -> Spectrum:
        """Return the best pairs so far; see the class for when one is called converged."""
        values, residuals, index, scale = self._measured()
        intervals = None
        if self._in_main:
            vectors = self._main_vectors()
        else:
            places = self._places() if len(values) else []
            vectors = self._space.vectors(places).mT
            if places and not self.done:
                # Measured residuals may be old; a result is asked for rarely.
                residuals = self._space.residuals(places)[1].norm(dim=0).double().cpu()
            if places and self.done and self._is_proved():
                intervals = self._proved_intervals(values, residuals)
        return make_spectrum(
            self.settings,
            values=values,
            vectors=vectors,
            residuals=residuals,
            index=index,
            scale=scale,
            floor=self.floor,
            stop_reason=self.stop_reason,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            method=self.name,
            intervals=intervals,
            notes=tuple([*self._own_notes(), *self._search_notes()]),
            claimed=self._claimed_chance() if self._claims() else None,
            rule=self._certificate.rule if self.done else "",
        )

    def _proved_intervals(self, values: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_whole:
            # The space is everything: eigenvalues of F are Ritz values, but for rounding.
            return values - residuals, values + residuals
        return self._intervals(values)

    def _claims(self) -> bool:
        return self.stop_reason is StopReason.CONVERGED and self._certificate.rule == "frozen"

    def _claimed_chance(self) -> float:
        """Return the chance spent: p/2 + p/4 + … over the attempts; 0 where none was needed."""
        chance, attempts = self.settings.miss_chance, self._certificate.attempts
        if chance is None or self._in_main or self._is_whole or not self._certificate.edges:
            return 0.0
        return chance * (1 - 0.5**attempts)

    def _search_notes(self) -> list[str]:
        certificate = self._certificate
        if not self.done or self._in_main:
            return []
        if certificate.rule != "frozen":
            return [
                "the certificate was made by the rule of an earlier version, which could miss "
                "pairs; go on with another tol to have it made anew"
            ]
        if self.stop_reason is StopReason.CONVERGED:
            claimed = self._claimed_chance()
            if claimed == 0:
                return ["no pair beyond these was missed: that is proved without any chance"]
            return [f"the chance that a pair beyond these was missed is at most {claimed:.2g}"]
        if self.stop_reason is not StopReason.UNVERIFIED:
            return []
        if self.settings.miss_chance is None:
            return ["no search was made for missed pairs, as miss_chance=None asks"]
        reached = min(1.0, certificate.least * self.settings.miss_chance / 2**certificate.attempts)
        return [
            "a search from a random vector found no pair beyond these, but excluded one only to a "
            f"chance of about {reached:.1g}, where miss_chance asks for "
            f"{self.settings.miss_chance:.1g}"
        ]

    # -- state ---------------------------------------------------------------------------------

    def _export_state(self) -> dict[str, Any]:
        return {
            "main": self._main.export(),
            "certificate": self._certificate.export(),
            "space": self._space.export(),
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        if "certificate" not in state:
            self._import_present(state)
            return
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self._main.restore(state["main"], like)
        self._certificate.restore(state["certificate"], like)
        if not self._in_main and not self._space.capacity:
            self._space = self._new_space(self._stage_capacity())
        self._space.restore(state["space"], like)
        self._seen, self._hardest = None, None

    def _import_present(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of version 1, whose certificate followed the present wanted vectors.

        A search begun is made again by the present rule; what was finished stays as it was, and
        says by which rule.
        """
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        main, space = migrated_state(self.name, state)
        own = self._main.export()
        self._main.restore({**own, **main}, like)
        certificate = self._certificate
        if space is None:
            return
        if not self._space.capacity:
            self._space = self._new_space(self._stage_capacity())
        self._space.restore(space, like)
        finished = self._stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)
        if finished or state["phase"] != MAIN:
            certificate.phase = SEARCHING
        if finished:
            certificate.phase, certificate.rule = VERIFYING, "present"
            certificate.truth.begin([])
            pairs = state.get("truth", {}).get("pairs", [])
            certificate.truth.pairs = {i: (float(v), float(r)) for i, (v, r) in enumerate(pairs)}
            residuals = self._space.residuals(self._places())[1]
            certificate.norms = residuals.norm(dim=0).double().cpu()
        elif self._stop_reason is None:
            # What was asked for belongs to the old search.
            self._pending = None
            if self._space.size >= len(self.settings.wanted) and certificate.phase == SEARCHING:
                self._look()
