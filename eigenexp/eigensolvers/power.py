"""Orthogonal (block power) iteration with Rayleigh-Ritz, top and bottom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.certified import CertifiedSolver
from eigenexp.eigensolvers.rayleigh_ritz import orthonormalised
from eigenexp.eigensolvers.state import State, vectors
from eigenexp.errors import InputError

__all__ = ["Power", "PowerState"]


@dataclass
class PowerState(State):
    """What the iteration knows, by end.

    Attributes
    ----------
    following
        The blocks multiplied next.
    pairs, images
        Ritz vectors of the blocks last multiplied, and F times them.
    values, residuals
        Their Ritz values and residuals.
    shift
        σ of the bottom: the largest eigenvalue, from above.
    best, since_best
        The smallest residual over λmax so far, and iterations since.
    """

    following: Any = vectors()
    pairs: Any = vectors()
    images: Any = vectors()
    values: dict[str, Any] = field(default_factory=dict)
    residuals: dict[str, Any] = field(default_factory=dict)
    shift: float = 0.0
    best: float = float("inf")
    since_best: int = 0


class Power(CertifiedSolver):
    """Orthogonal iteration: V ← orth(F V) at the top, V ← orth((σI − F) V) at the bottom.

    One product a column and iteration. The bottom's shift σ is the largest eigenvalue; its start is
    random, never F v, which would project the null space out. Both ends take turns in one block.
    Simple and slow: ``lanczos`` needs far fewer products. When every residual is at most
    tol · λmax, when the iteration stagnates, or after ``30 n + 1000`` products, Rayleigh-Ritz in
    both blocks together and the last stage of all methods follow, see
    :mod:`.certificates.certified`.

    Parameters
    ----------
    guard
        Columns iterated beside the k wanted ones: they speed convergence up. At least one.
    patience
        Iterations without a new smallest residual after which the iteration has stagnated.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start, miss_chance
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. The start is random.
    """

    name: ClassVar[str] = "power"

    def __init__(self, n: int, *, guard: int = 2, patience: int = 500, **settings: Any) -> None:
        super().__init__(n, **settings)
        if guard < 1 or patience < 1:
            raise InputError(f"guard, patience: expected at least 1, got {guard} and {patience}")
        self.patience = patience
        width = min(n, self.settings.k + guard)
        self._widths = {
            "top": width if self._num_top else min(n, 1),
            "bottom": width if self._num_bottom else 0,
        }
        self._power = PowerState(
            following={
                end: torch.linalg.qr(self._randn(n, size)).Q if size else self._randn(n, 0)
                for end, size in self._widths.items()
            },
            pairs={},
            images={},
        )

    @property
    def block_size(self) -> int:
        """Columns of both ends together."""
        return sum(self._widths.values())

    @property
    def stored_vectors(self) -> int:
        """The blocks with their products, or the space of the last stage with its own."""
        return max(3 * self.block_size, 2 * self._stage_capacity())

    @property
    def _main(self) -> PowerState:
        return self._power

    def _main_ask(self) -> Tensor:
        following = self._power.following
        blocks = [following[end] for end, width in self._widths.items() if width]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        state, split = self._power, self._widths["top"]
        self._num_products += block.shape[1]
        for end, stretch in (("top", slice(0, split)), ("bottom", slice(split, None))):
            if self._widths[end]:
                self._iterate(end, block[:, stretch], products[:, stretch])
        worst = self._progress().worst
        if worst < 0.999 * state.best:
            state.best, state.since_best = worst, 0
        else:
            state.since_best += 1
        self._main_look()

    def _main_look(self) -> None:
        """Hand over when the residuals are small, or when nothing more is to be had."""
        state = self._power
        if not state.pairs:
            return
        enough = 30 * self.settings.n + 1000
        over = state.since_best >= self.patience or self._num_products >= enough
        if over or self._progress().worst <= 0.97 * self.settings.tol:
            pairs, images = (
                torch.cat([stored[end] for end in stored], dim=1)
                for stored in (state.pairs, state.images)
            )
            self._take_over(*orthonormalised(pairs, images))
            state.following, state.pairs, state.images = {}, {}, {}

    def _iterate(self, end: str, v: Tensor, w: Tensor) -> None:
        """One step: Rayleigh-Ritz in span V, true residuals from W = F V, then the next V."""
        state = self._power
        projected = (v.mT @ w).double()
        theta, s = torch.linalg.eigh((projected + projected.mT) / 2)
        if end == "top":
            theta, s = theta.flip(0), s.flip(1)
        values, s = theta.to(v), s.to(v)
        pairs, images = v @ s, w @ s
        difference = images - pairs * values
        state.values[end] = theta.cpu()
        state.residuals[end] = torch.linalg.vector_norm(difference, dim=0).double().cpu()
        state.pairs[end], state.images[end] = pairs, images
        if end == "top":
            state.shift = max(state.shift, float(theta[0] + state.residuals[end][0]))
            following = images
        else:
            following = state.shift * pairs - images
        if float(following.norm()) == 0.0:  # F = 0, or F = σI: every vector is an eigenvector
            following = pairs
        if end == "bottom":
            following = self._apart_from_top(following, float(theta[self._num_bottom - 1]))
        state.following[end] = torch.linalg.qr(following).Q

    def _apart_from_top(self, block: Tensor, value: float) -> Tensor:
        """Where both ends share one eigenvalue, keep the bottom block orthogonal to the top's."""
        state = self._power
        if "top" not in state.pairs or not self._num_top:
            return block
        lowest = float(state.values["top"][self._num_top - 1])
        if lowest - value > self.settings.tol * self._main_scale():
            return block
        top: Tensor = state.pairs["top"][:, : self._num_top]
        return block - top @ (top.mT @ block)

    def _main_scale(self) -> float:
        values = self._power.values
        return float(values["top"][0].clamp(min=0)) if "top" in values else 0.0

    def _main_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        state, n = self._power, self.settings.n
        values, residuals, index = [], [], list[int]()
        if self._num_top and "top" in state.values:
            values.append(state.values["top"][: self._num_top])
            residuals.append(state.residuals["top"][: self._num_top])
            index += range(self._num_top)
        if self._num_bottom and "bottom" in state.values:
            values.append(state.values["bottom"][: self._num_bottom].flip(0))
            residuals.append(state.residuals["bottom"][: self._num_bottom].flip(0))
            index += range(n - self._num_bottom, n)
        if not values:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), 0.0
        found = torch.cat(values).clamp(min=0)
        places = torch.tensor(index, dtype=torch.int64)
        return found, torch.cat(residuals), places, self._main_scale()

    def _main_vectors(self) -> Tensor:
        state, n = self._power, self.settings.n
        parts = [torch.zeros(n, 0, dtype=self.dtype, device=self.device)]
        if self._num_top and "top" in state.pairs:
            parts.append(state.pairs["top"][:, : self._num_top])
        if self._num_bottom and "bottom" in state.pairs:
            parts.append(state.pairs["bottom"][:, : self._num_bottom].flip(1))
        return torch.cat(parts, dim=1).mT

    def _reopen(self) -> None:
        self._power.best, self._power.since_best = float("inf"), 0
        super()._reopen()
