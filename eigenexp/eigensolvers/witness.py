"""A Krylov chain from a random vector inside a search space, kept as a witness of what was seen.

Follows the start vector's coordinates through imaging and thick restarts, and states at any time
its spectral measure for :mod:`eigenexp.eigensolvers.certificates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates import Witness
from eigenexp.eigensolvers.rayleigh_ritz import RitzPairs
from eigenexp.eigensolvers.search_space import SearchSpace

__all__ = ["Chain"]


@dataclass
class Chain:
    """The rows ``first, first + 1, …`` of a space, a Krylov space of one random start.

    Attributes
    ----------
    first
        Place of the first row of the chain.
    dimension
        Dimension of the space the start was drawn from: n less what it was made orthogonal to.
    covers
        ``"simple"``: the space holds nothing but this chain, which sees every eigenvalue of F but
        only one copy of each. ``"copies"``: it was made orthogonal to such a space, and sees what
        that space has no part in. ``"all"``: orthogonal to converged pairs alone, it sees all the
        rest of F.
    exhausted
        The chain reached an invariant subspace.
    start
        Coordinates of the (filtered) unit start vector in the chain's rows.
    purged, log_norm
        See :class:`~eigenexp.eigensolvers.certificates.Witness`.
    """

    first: int
    dimension: int
    covers: str
    exhausted: bool = False
    start: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float64))
    purged: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    log_norm: float = 0.0

    def witness(self, space: SearchSpace) -> Witness | None:
        """Return the measure as known now; None before the chain's first product."""
        a, p, q = self.first, space.num_imaged, space.size
        if p <= a:
            return None
        H = space.coefficients[a:p, a:p]
        nodes, Y = torch.linalg.eigh((H + H.T) / 2)
        start = torch.zeros(p - a, dtype=torch.float64)
        start[: len(self.start)] = self.start
        amplitudes = start @ Y
        # Nodes that rounding cannot tell apart count as one.
        nodes, weights, residuals = _merge(
            nodes,
            amplitudes.square(),
            (space.coefficients[q - 1, a:p] @ Y).abs(),
            64 * torch.finfo(torch.float64).eps * max(space.scale, 1e-300),
        )
        log_last = -math.inf
        if not self.exhausted and len(nodes):
            # For each i: ‖χ(F)u‖ = |ρᵢ ωᵢ^½ χ'(θᵢ)|; take the best conditioned.
            tiny = torch.finfo(torch.float64).tiny
            between = (nodes[:, None] - nodes[None, :]).abs().clamp_min(tiny).log()
            slopes = between.fill_diagonal_(0.0).sum(dim=1)
            size = residuals.log() + weights.sqrt().log()
            best = int(size.argmax())
            log_last = float(size[best] + slopes[best])
        return Witness(nodes, weights, log_last, self.purged, self.log_norm)

    def filtered(self, ritz: RitzPairs, keep: Sequence[int]) -> Chain:
        """Return the chain after a restart that keeps these Ritz pairs of the whole space.

        The kept space is the Krylov space of q(F) z, q having the dropped Ritz values as roots.
        """
        start = torch.zeros(len(ritz), dtype=torch.float64)
        start[: len(self.start)] = self.start
        amplitudes = ritz.coordinates.T @ start
        kept = torch.zeros(len(ritz), dtype=torch.bool)
        kept[list(keep)] = True
        dropped = ritz.values[~kept]
        tiny = torch.finfo(torch.float64).tiny
        values = ritz.values[list(keep)]
        difference = values[:, None] - dropped[None, :]
        log_size = difference.abs().clamp_min(tiny).log().sum(dim=1)
        signs = difference.sign().prod(dim=1)
        mine = amplitudes[list(keep)]
        top = float((log_size + mine.abs().clamp_min(tiny).log()).max())
        filtered = signs * mine * (log_size - top).exp()
        norm = float(torch.linalg.vector_norm(filtered))
        return Chain(
            first=0,
            dimension=self.dimension,
            covers=self.covers,
            exhausted=self.exhausted,
            start=filtered / norm,
            purged=torch.cat([self.purged, dropped]),
            log_norm=self.log_norm + top + math.log(norm),
        )

    def export(self) -> dict[str, Any]:
        """Return the chain as tensors and numbers."""
        return {
            "first": self.first,
            "dimension": self.dimension,
            "covers": self.covers,
            "exhausted": self.exhausted,
            "start": self.start.clone(),
            "purged": self.purged.clone(),
            "log_norm": self.log_norm,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Chain:
        """Return what :meth:`export` described."""
        return cls(
            first=int(state["first"]),
            dimension=int(state["dimension"]),
            covers=str(state["covers"]),
            exhausted=bool(state["exhausted"]),
            start=state["start"].to(dtype=torch.float64, device="cpu", copy=True),
            purged=state["purged"].to(dtype=torch.float64, device="cpu", copy=True),
            log_norm=float(state["log_norm"]),
        )


def _merge(
    nodes: Tensor, weights: Tensor, residuals: Tensor, near: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Join nodes closer than ``near``: fewer degrees of freedom, so a more cautious bound."""
    group = torch.cat([torch.zeros(1), (nodes.diff() > near).double()]).cumsum(0).long()
    count = int(group[-1]) + 1
    joined = torch.zeros(count, dtype=torch.float64).index_add(0, group, weights)
    first = torch.searchsorted(group, torch.arange(count))
    longest = torch.zeros(count, dtype=torch.float64).scatter_reduce(0, group, residuals, "amax")
    return nodes[first], joined, longest
