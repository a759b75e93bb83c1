"""One way to a null space: conjugate gradients for min ‖J v‖², round after round, side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eigenexp.eigensolvers.null_space_state import NullSpaceState
from eigenexp.eigensolvers.state import present

__all__ = ["Descent", "squares"]

MOST_ROUNDS = 8
GAIN = 0.5
"""Rounds of conjugate gradients; each but the first gains this factor in ‖J v‖ or is the last."""
ROUND, REST = 1e-3, 2.0
"""Where a round ends: of its first gradient, and of eps · λmax ‖v‖ in the first round."""


@dataclass(frozen=True)
class Descent:
    """What a descent of vectors ``(n, k)`` stops at; its state is a :class:`NullSpaceState`.

    Attributes
    ----------
    eps
        Relative rounding of products.
    finest
        ‖F v‖ over λmax that is small enough where nothing but F v is seen.
    """

    eps: float
    finest: float

    def begin(self, state: NullSpaceState) -> NullSpaceState:
        """Return the state before the first round."""
        vectors = torch.linalg.qr(present(state.vectors)).Q
        everyone = torch.ones(vectors.shape[1], dtype=torch.bool)
        infinite = torch.full((vectors.shape[1],), float("inf"), dtype=torch.float64)
        return replace(
            state, stage="restarting", vectors=vectors, is_open=everyone, heights=infinite
        )

    def step(self, state: NullSpaceState, block: Tensor, products: Tensor) -> NullSpaceState:
        """Take a step of conjugate gradients along each open direction."""
        held = present(state.is_open)
        vectors, gradients = present(state.vectors).clone(), present(state.gradients).clone()
        directions, energies = present(state.directions).clone(), present(state.energies).clone()
        curvature = (block * products).sum(dim=0).double().cpu()
        lengths = block.square().sum(dim=0).double().cpu()
        largest = max(state.largest, float((curvature / lengths).nan_to_num(0.0).max()))
        step = torch.where(curvature > 0, energies[held] / curvature, 0.0)
        across = step.to(vectors)
        vectors[:, held] -= across * block
        gradients[:, held] -= across * products
        energy = gradients[:, held].square().sum(dim=0).double().cpu()
        ratio = (energy / energies[held]).nan_to_num(0.0).to(vectors)
        directions[:, held] = gradients[:, held] + ratio * block
        energies[held] = energy
        norms = vectors[:, held].norm(dim=0).double().cpu()
        rest = ROUND * present(state.first)[held]
        if not state.has_responses:
            rest = torch.maximum(rest, 0.1 * self.finest * largest * norms)
        if state.rounds == 1:
            rest = torch.minimum(rest, REST * self.eps * largest * norms)
        still = held.clone()
        # A direction without curvature is one that rounding made: nothing is left to descend.
        still[held] = (energy.sqrt() > rest) & (curvature > self.eps * largest * lengths)
        if state.steps >= 4 * state.m:
            still[:] = False
        state = replace(
            state,
            vectors=vectors,
            gradients=gradients,
            directions=directions,
            energies=energies,
            largest=largest,
            is_open=still,
            steps=state.steps + 1,
        )
        if not bool(still.any()):
            unfinished = present(state.heights) > 0
            return replace(state, stage="restarting", is_open=unfinished)
        return state

    def restart(
        self, state: NullSpaceState, block: Tensor, products: Tensor, responses: Tensor | None
    ) -> NullSpaceState:
        """Begin a round from true products of the vectors, or end where they rest."""
        held = present(state.is_open)
        norms = block.square().sum(dim=0).double().cpu()
        quotients = (block * products).sum(dim=0) if responses is None else squares(responses)
        height = quotients.double().cpu().clamp(min=0) / norms
        heights = present(state.heights).clone()
        # Without J v nothing smaller than the rounding of F v is seen, and no more than tol asked.
        floor = (self.finest if responses is None else self.eps**2 * 16) * state.largest
        gained = height < GAIN**2 * heights[held]
        going = (height > floor) & gained & (state.rounds < MOST_ROUNDS)
        heights[held] = torch.where(going, height, 0.0)  # 0: at rest
        still = held.clone()
        still[held] = going
        if not bool(still.any()):
            vectors = present(state.vectors)
            vectors = torch.linalg.qr(vectors.double()).Q.to(vectors)
            return replace(state, stage="measuring", vectors=vectors, heights=heights)
        gradients = torch.zeros_like(present(state.vectors))
        gradients[:, held] = products
        energies = gradients.square().sum(dim=0).double().cpu()
        return replace(
            state,
            stage="descending",
            rounds=state.rounds + 1,
            steps=0,
            gradients=gradients,
            directions=gradients.clone(),
            energies=energies,
            first=energies.sqrt(),
            heights=heights,
            is_open=still,
        )


def squares(responses: Tensor) -> Tensor:
    """Return ‖J v‖² of each column, ``(b,)``."""
    return responses.square().sum(dim=0)
