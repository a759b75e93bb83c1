"""Stochastic orthogonal iteration for the mean of F over many pictures.

A full product of F̄ costs a product at every picture; one of a sample of them costs a part of it and
points the same way on average. Steps V ← orth(V + η F_S V / λmax) with a step η that decreases come
near the top of the spectrum in a fraction of the passes over the data. How near is not guessed: at
the end of each pass a full product gives true residuals, and only these decide. Once samples bring
no gain any more, the last digits come from full products.

Source: E. Oja, "A simplified neuron model as a principal component analyzer", J. Math. Biology
1982, for blocks; the check on the full set and the change to full products are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.power import Power, PowerState
from eigenexp.errors import InputError

__all__ = ["StochasticPower"]

# Full checks without a residual smaller by this factor, after which only full products follow.
GAIN = 0.7
PATIENCE = 2


@dataclass
class StochasticState(PowerState):
    """Beside the iteration: samples used, steps since a full product, and what those brought."""

    samples: int = 0
    since_check: int = 0
    checked_best: float = float("inf")
    without_gain: int = 0


class StochasticPower(Power):
    """Top eigenpairs of F̄ from products of samples, checked and finished on the full set.

    Parameters
    ----------
    n
        Order of F̄.
    num_pictures
        P.
    sample
        Pictures in one sample.
    step
        η at the start; it is ``step / (1 + t / steps of a pass)`` after t samples.
    settings
        As for :class:`~eigenexp.eigensolvers.Power`; ``which`` must be ``"top"``.

    Raises
    ------
    InputError
        When the bottom is asked for, which the noise of samples hides, or the sample does not fit.
    """

    name: ClassVar[str] = "stochastic"

    def __init__(
        self,
        n: int,
        *,
        num_pictures: int,
        sample: int = 4,
        step: float = 1.0,
        **settings: Any,
    ) -> None:
        if settings.get("which", "both") != "top":
            raise InputError(
                f"which: expected 'top' for the stochastic method, got "
                f"{settings.get('which', 'both')!r}; samples hide small eigenvalues: use lanczos"
            )
        if not 1 <= sample <= num_pictures:
            raise InputError(f"sample: expected 1 to {num_pictures} pictures, got {sample}")
        if not step > 0:
            raise InputError(f"step: expected a positive number, got {step}")
        super().__init__(n, **settings)
        self.num_pictures, self.sample_size, self.step = num_pictures, sample, step
        self.steps_of_a_pass = max(1, num_pictures // sample)
        before = self._power
        # The first product is a full one: it gives λmax.
        self._power = self._stochastic = StochasticState(
            following=before.following, pairs={}, images={}, since_check=self.steps_of_a_pass
        )

    @property
    def wants_all(self) -> bool:
        """Whether the block asked for is to be multiplied at all pictures."""
        state = self._stochastic
        return (
            not self._in_main
            or state.without_gain >= PATIENCE
            or state.since_check >= self.steps_of_a_pass
        )

    @property
    def num_samples(self) -> int:
        """Samples used so far."""
        return self._stochastic.samples

    def sample(self) -> list[int]:
        """Return the pictures of the present sample: each once a pass, in an order of its own."""
        turn, place = divmod(self._stochastic.samples, self.steps_of_a_pass)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + turn)
        order = torch.randperm(self.num_pictures, generator=generator).tolist()
        return [int(i) for i in order[place * self.sample_size : (place + 1) * self.sample_size]]

    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        state = self._stochastic
        if self.wants_all:
            super()._main_tell(block, products, responses)
            if not self._in_main:
                return
            state.since_check = 0
            worst = self._progress().worst
            gained = worst < GAIN * state.checked_best
            state.without_gain = 0 if gained else state.without_gain + 1
            state.checked_best = min(worst, state.checked_best)
            return
        step = self.step / (1 + state.samples / self.steps_of_a_pass)
        scale = max(self._main_scale(), torch.finfo(torch.float32).tiny)
        state.following["top"] = torch.linalg.qr(block + (step / scale) * products).Q
        self._num_products += block.shape[1]
        state.samples += 1
        state.since_check += 1

    def _reopen(self) -> None:
        self._stochastic.checked_best, self._stochastic.without_gain = float("inf"), 0
        super()._reopen()
