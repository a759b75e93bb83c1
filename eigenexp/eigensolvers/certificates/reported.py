"""What a solve's last stage tells: progress, the spectrum with its bounds, and what was proved."""

from __future__ import annotations

from torch import Tensor

from eigenexp.eigensolvers.certificates.guard import Guard
from eigenexp.eigensolvers.certificates.result import make_spectrum
from eigenexp.eigensolvers.progress import Progress
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Reported"]


class Reported(Guard):
    """A stage whose findings can be read at any time."""

    # -- what is known ------------------------------------------------------------------------

    def _is_proved(self) -> bool:
        if self.settings.miss_chance is None or self._certificate.rule != "frozen":
            return False
        return self._certificate.proved or self._is_whole

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

    # -- what is told -------------------------------------------------------------------------

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
            notes=tuple(
                [*self._own_notes(), *self._search_notes(), *self._relative_notes(intervals)]
            ),
            claimed=self._claimed_chance() if self._claims() else None,
            rule=self._certificate.rule if self.done else "",
        )

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
        reached = self._reached_chance()
        return [
            "a search from a random vector found no pair beyond these, but excluded one only to a "
            f"chance of about {reached:.1g}, where miss_chance asks for "
            f"{self.settings.miss_chance:.1g}"
        ]

    def _relative_notes(self, intervals: tuple[Tensor, Tensor] | None) -> list[str]:
        """Say where a value of the bottom is not known as well as was asked."""
        relative = self.settings.relative_tol
        if relative is None or intervals is None or not self._num_bottom:
            return []
        lower, upper = (one[self._num_top :] for one in intervals)
        rounding = self.floor * self._space.scale
        known = (upper - lower + rounding <= 1.01 * relative * upper) | (
            upper <= self._unresolved()
        )
        if bool(known.all()):
            return []
        return [
            f"the bottom's values are known to tol, not all to relative_tol = {relative:.2g}: "
            "products of this precision do not tell more; solve in float64"
        ]
