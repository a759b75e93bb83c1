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

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers import Power
from eigenexp.errors import InputError

__all__ = ["StochasticPower"]

# Full checks without a residual smaller by this factor, after which only full products follow.
GAIN = 0.7
PATIENCE = 2


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
        self._samples = 0
        self._since_check = self.steps_of_a_pass  # the first product is a full one: it gives λmax
        self._checked_best = float("inf")
        self._without_gain = 0

    @property
    def wants_all(self) -> bool:
        """Whether the block asked for is to be multiplied at all pictures."""
        return (
            self._verify_left > 0
            or self._without_gain >= PATIENCE
            or self._since_check >= self.steps_of_a_pass
        )

    @property
    def num_samples(self) -> int:
        """Samples used so far."""
        return self._samples

    def sample(self) -> list[int]:
        """Return the pictures of the present sample: each once a pass, in an order of its own."""
        turn, place = divmod(self._samples, self.steps_of_a_pass)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + turn)
        order = torch.randperm(self.num_pictures, generator=generator).tolist()
        return [int(i) for i in order[place * self.sample_size : (place + 1) * self.sample_size]]

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        if self.wants_all:
            super()._tell(block, products, responses)
            self._since_check = 0
            worst = self._progress().worst
            gained = worst < GAIN * self._checked_best
            self._without_gain = 0 if gained else self._without_gain + 1
            self._checked_best = min(worst, self._checked_best)
            return
        step = self.step / (1 + self._samples / self.steps_of_a_pass)
        ahead = block + (step / max(self._scale(), torch.finfo(torch.float32).tiny)) * products
        self._vectors["top"] = torch.linalg.qr(ahead).Q
        self._num_products += block.shape[1]
        self._samples += 1
        self._since_check += 1

    def _reopen(self) -> None:
        super()._reopen()
        self._checked_best, self._without_gain = float("inf"), 0

    def _export_state(self) -> dict[str, Any]:
        return {
            **super()._export_state(),
            "samples": self._samples,
            "since_check": self._since_check,
            "checked_best": self._checked_best,
            "without_gain": self._without_gain,
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        super()._import_state(state)
        self._samples = int(state["samples"])
        self._since_check = int(state["since_check"])
        self._checked_best = float(state["checked_best"])
        self._without_gain = int(state["without_gain"])
