"""The search for missed pairs: the wanted ones frozen, a witness drawn, the space grown for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.certificate import GUARDING, SEARCHING
from eigenexp.eigensolvers.certificates.edges import Edges
from eigenexp.eigensolvers.certificates.frozen import Frozen, View
from eigenexp.eigensolvers.certificates.witness import (
    Trace,
    joint_chance,
    joint_level,
    largest_trace,
    suspects_beyond,
    trace_limit,
)

__all__ = ["Guard"]

PATIENCE = 150
"""Products at an end without a smaller trace, after which its witness has shown what it can."""
HASTE = 5
"""The same where the trace is what products are rounded by, and products between two surveys."""
GAIN, SAME = 0.9, 0.75
"""What a trace is to fall to, to be called smaller, and a suspect's, to look at all of them."""
ROUNDED = 12.0
"""Trace of x over the rounding of F x, at which it is nothing else; measured: 3 to 5."""
WITNESSES = 12
"""Random vectors in one attempt, at the most."""
FIRST_FINE, FIRST_COARSE = 31 / 32, 3 / 4
"""Share of an attempt's chance that the first witness may use, in float64 and float32."""
USEFUL = 0.3
"""Chance reached by a witness above which another one is of no use."""
FINELY = 1.25
"""Bound between the suspects, over the largest trace, where a witness is set aside."""
FINER = 8
"""Steps in which that is widened, where there are harder suspects between."""


class Guard(Edges):
    """A stage that shows by :mod:`.witness` that no pair beyond the wanted ones was missed."""

    # -- the witness --------------------------------------------------------------------------

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

    def _view(self) -> View | None:
        if self._seen is None:
            self._seen = self._certificate.frozen.view(self._space)
        return self._seen

    def _level(self, end: str, *, finer: bool = False) -> float:
        """Return t: the chances that the witnesses of an end reach are to be at most t, multiplied.

        Half of the chance that is left goes to the attempt, and of that nearly all to its first
        witness. Both ends may use it in full at the least edge, and share it at finer ones: see
        ``docs/certificate.md``.
        """
        certificate, chance = self._certificate, self.settings.miss_chance
        if chance is None:
            return 0.0
        first = FIRST_FINE if self.eps < 1e-10 else FIRST_COARSE
        count = certificate.witnesses
        share = first if count == 1 else (1 - first) / 2 ** (count - 1)
        edge, least = self._edge(end), self._least_edge(end)
        finer = finer or (edge < least if end == "top" else edge > least)
        if finer and self._num_top and self._num_bottom:
            share /= 2
        return joint_level(share * chance / 2**certificate.attempts, count)

    def _trace_limit(self, end: str, *, finer: bool = False) -> float:
        """C of the present witness at an end."""
        banked = self._certificate.banked.get(end, [1.0])[0]
        return trace_limit(self._level(end, finer=finer) / banked, self.settings.n)

    def _reached(self, trace: float) -> float:
        """Return the chance that an eigenvector leaves a trace of one witness so small."""
        return min(1.0, trace / trace_limit(1.0, self.settings.n))

    def _reached_chance(self) -> float:
        """Return to which chance missed pairs were excluded, of an end given up."""
        certificate, found = self._certificate, 0.0
        for end, share in certificate.traces.items():
            level = self._reached(share * self._trace_limit(end))
            level *= certificate.banked.get(end, [1.0])[0]
            found = max(found, joint_chance(level, certificate.witnesses))
        return found or 1.0

    def _hard(self) -> tuple[str, Trace]:
        """Return the suspect that the space is to grow at, and its end."""
        if self._hardest is None:
            view = self._view()
            if view is None or not self._certificate.suspect:
                raise RuntimeError("the search for missed pairs has no suspect")
            end, value, _ = self._certificate.suspect
            norms, weights = view.evidence.at(torch.tensor([value], dtype=torch.float64))
            self._hardest = end, Trace(float(norms), float(norms), value, weights[0])
        return self._hardest

    def _still_hard(self, ends: list[str]) -> bool:
        """Whether the suspect chosen last is as hard to exclude as it was, or nearly."""
        certificate = self._certificate
        if not certificate.suspect:
            return False
        end, value, norm = certificate.suspect
        inside = value < self._edge("top") if end == "top" else value > self._edge("bottom")
        waited = certificate.waits.get(end, 0)
        if end not in ends or inside or waited + 1 >= HASTE:
            return False
        trace = self._hard()[1].worst
        if trace <= max(SAME * norm, self._trace_limit(end)):
            return False
        certificate.waits[end] = waited + 1
        return True

    def _survey(self, view: View, ends: list[str]) -> None:
        """Bound the traces at the ends, take note of what is proved, and choose a suspect."""
        certificate, scale = self._certificate, self._space.scale
        ends = [end for end in ends if end not in certificate.edges]
        if certificate.filling or self._still_hard(ends):
            return
        grown = certificate.suspect[0] if certificate.suspect else None
        open_ends: list[tuple[str, Trace]] = []
        for end in ends:
            limit, edge = self._trace_limit(end), self._edge(end)
            trace = largest_trace(view.evidence, end, edge, scale, limit)
            if trace.bound <= limit:
                if certificate.witnesses == 1:
                    limit = self._trace_limit(end, finer=True)
                    edge = certificate.frozen.finest_edge(view, end, edge, scale, limit)
                certificate.edges[end] = edge
                continue
            share = trace.worst / limit
            if share < GAIN * certificate.traces.get(end, math.inf):
                certificate.traces[end], certificate.waits[end] = share, 0
            elif end == grown:
                certificate.waits[end] = certificate.waits.get(end, 0) + 1
            open_ends.append((end, trace))
        going = [(end, trace) for end, trace in open_ends if not self._stands(end, trace)]
        if open_ends and not going:
            self._bank(view, open_ends)
            return
        certificate.suspect, self._hardest = [], None
        if going:
            end, trace = max(going, key=lambda one: one[1].worst)
            certificate.suspect = [end, trace.suspect, trace.worst]

    def _stands(self, end: str, trace: Trace) -> bool:
        """Whether the trace at an end gets no smaller: its rounding, or a space too small."""
        waited = self._certificate.waits.get(end, 0)
        rounding = self.eps * self._space.scale * float(trace.weights.norm())
        return waited >= (HASTE if trace.worst <= ROUNDED * rounding else PATIENCE)

    def _fine_bound(self, view: View, end: str, edge: float, trace: Trace) -> float:
        """Bound the trace beyond an edge nearly as well as it can be, whatever the limit."""
        bound, limit = math.inf, trace.worst
        for _ in range(FINER):
            # Between the suspects there may be harder ones.
            limit *= FINELY
            bound = largest_trace(view.evidence, end, edge, self._space.scale, limit).bound
            if bound <= limit:
                break
        return bound

    def _bank(self, view: View, ends: list[tuple[str, Trace]]) -> None:
        """Keep what the witness showed and go on with a second one, independent of it.

        Before that, no more is asked for than the tolerance does; given up where that is no use.
        """
        certificate, found, gained = self._certificate, {}, False
        for end, trace in ends:
            edge = self._edge(end)
            fine = self._fine_bound(view, end, edge, trace)
            before = certificate.banked.get(end, [1.0])[0]
            found[end] = [before * self._reached(fine), edge]
            gained = gained or found[end][0] < USEFUL * before
        if not certificate.plain and (self.settings.relative_tol is None or not gained):
            certificate.plain = True
        elif not gained or certificate.witnesses >= WITNESSES:
            if self._space.capacity >= self.settings.n:
                # The space can become the whole, which needs no witness.
                certificate.filling = True
                certificate.suspect = [ends[0][0], ends[0][1].suspect, 0.0]
                self._hardest = None
                return
            certificate.given_up = True
            self._end_guard(proved=False)
            return
        else:
            certificate.banked.update(found)
            certificate.witnesses += 1
            certificate.frozen.probe = torch.zeros(0, dtype=torch.float64)
            certificate.traces, certificate.waits = {}, {}
            self._seen = None
        certificate.suspect, self._hardest = [], None

    # -- the search ---------------------------------------------------------------------------

    def _begin_guard(self) -> None:
        """Freeze the wanted vectors: g is drawn next."""
        certificate = self._certificate
        certificate.phase = GUARDING
        certificate.proved, certificate.edges = False, {}
        certificate.frozen = Frozen.of(self._space, self._places())
        certificate.attempts += 1
        certificate.following, certificate.witnesses = 0, 1
        certificate.banked, certificate.traces, certificate.waits = {}, {}, {}
        certificate.suspect, certificate.filling = [], False
        self._seen, self._hardest = None, None

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
        for _ in range(2):
            self._survey(view, ends)
            if certificate.phase != GUARDING:
                return
            if all(end in certificate.edges for end in ends):
                self._end_guard(proved=True)
                return
            if certificate.suspect or not certificate.frozen.has_witness:
                return
            # Less is asked for from now on.
            view, ends = self._view() or view, self._ends_to_search()

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

    # -- restart ------------------------------------------------------------------------------

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
        # The largest one at least: λmax, which all limits are in units of, must not be forgotten.
        top = range(min(share if "top" in ends else 1, m))
        bottom = range(max(0, m - share), m) if self._num_bottom else range(0)
        return sorted({*top, *bottom})
