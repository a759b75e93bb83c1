"""The last stage of every iterative method: residuals, the search for missed pairs, the verdict.

A method hands its vectors and their products over when it has the wanted pairs. From then on there
is a search space V with W = F V. The wanted Ritz vectors are frozen, a random g is drawn, and the
space grows until :mod:`.witness` excludes that a pair beyond them was missed. Where one is found,
the space has it: the wanted pairs are converged again, and a new attempt begins with a fresh g and
half the chance that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.certificate import GUARDING, MAIN, SEARCHING, VERIFYING
from eigenexp.eigensolvers.certificates.migration import migrated_state
from eigenexp.eigensolvers.certificates.reported import Reported
from eigenexp.spectrum import StopReason

__all__ = ["CertifiedSolver"]

AT_ONCE = 4
"""Residuals measured in one pass over the space; a pass costs about the same for one."""
RESOLVED = 1e-3
"""A residual from stored products stands if their rounding is below this share of the limit."""


class CertifiedSolver(Reported):
    """A method that ends with proved pairs; see the module.

    Subclasses work by themselves while ``_certificate.phase`` is ``"main"`` (:meth:`_main_ask`,
    :meth:`_main_tell`) and then call :meth:`_take_over`.
    """

    def _take_over(self, vectors: Tensor, products: Tensor) -> None:
        """Begin the last stage with orthonormal ``vectors`` ``(n, b)`` and F times them."""
        self._space = self._new_space(self._stage_capacity())
        self._space.fill(vectors, products)
        self._certificate.phase = SEARCHING
        self._certificate.norms.fill_(float("inf"))
        self._look()
        if self._certificate.phase != VERIFYING:
            self._make_room()

    # -- what to multiply next ----------------------------------------------------------------

    def _ask(self) -> Tensor:
        certificate = self._certificate
        if certificate.phase == MAIN:
            return self._main_ask()
        if certificate.phase == VERIFYING:
            at = certificate.truth.due[: self._stage_width()]
            return self._space.vectors([self._places()[i] for i in at])
        width = min(self._stage_width(), self.settings.n - self._space.size)
        if certificate.phase == GUARDING:
            if not certificate.frozen.has_witness:
                return self._draw_witness()
            return self._space.fresh(self._guard_directions(), self._randn)
        if self._space.size < len(self.settings.wanted):
            return self._space.fresh(self._randn(self.settings.n, width), self._randn)
        end, places = self._targets()
        values, residuals = self._space.residuals(places[:width])
        return self._space.fresh(self._directions(end, residuals, values), self._randn)

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

    # -- taking products ----------------------------------------------------------------------

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
        self._begin_guard()

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

    # -- true products ------------------------------------------------------------------------

    def _begin_verification(self) -> None:
        """Measure by true products what the stored ones do not resolve, and end."""
        certificate, space = self._certificate, self._space
        certificate.phase = VERIFYING
        certificate.truth.forget()
        values = space.values[self._places()].clamp(min=0)
        rounding = self.floor * space.scale
        coarse = rounding > RESOLVED * self._limits()
        # λ to a hundredth of what its residual may be: finer digits are not within its bound.
        small = rounding > max(1e-6, 0.01 * self.settings.tol) * values
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
        certificate.plain = False
        if certificate.phase == VERIFYING:
            self._pending = None
            self._back_to_search()
            if self._certificate.phase == SEARCHING:
                self._look()

    # -- state --------------------------------------------------------------------------------

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
