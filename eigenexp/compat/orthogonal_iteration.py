"""Orthogonal (block power) iteration as plenoptic does it, with one product an iteration.

:class:`eigenexp.eigensolvers.Power`, which the other doors run, is another schedule of the same
iteration, and neither can be had by settings of the other. Power is made to end with a proof: both
ends take turns in one block, guard columns are iterated beside the wanted ones, the shift follows
the estimate of λmax, and it stops on residuals and then searches for missed pairs. The documented
contract of ``method="power"`` here is: ``max_iter`` iterations of exactly ``k`` columns, first at
the top until its eigenvalues stand still to ``stop_criterion``, then at the bottom with the shift
so found, each end measured by the change of its eigenvalues from one iteration to the next. With
guard columns that change, and with it the number of iterations, would be another; with residuals
as the stop rule ``stop_criterion`` would mean nothing. What both converge to is the same, from the
same operator and with the same Rayleigh-Ritz step
(:mod:`eigenexp.eigensolvers.rayleigh_ritz`); a test holds them to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.rayleigh_ritz import rayleigh_ritz
from eigenexp.operators import FisherLike

__all__ = ["End", "OrthogonalIteration", "RitzPairs"]


@dataclass(frozen=True)
class RitzPairs:
    """Ritz pairs of one block, in decreasing order, with their residuals.

    ``values (k,)``, ``vectors (n, k)`` orthonormal, ``residuals (k,)``: ‖Fx − θx‖.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor

    @classmethod
    def of(
        cls, block: Tensor, products: Tensor, responses: Tensor | None
    ) -> tuple[RitzPairs, Tensor]:
        """Return the pairs of span(block), orthonormal, and F times their vectors."""
        ritz = rayleigh_ritz(block, products, responses)
        return cls(ritz.values, ritz.vectors, ritz.residuals), ritz.images


class End:
    """Power iteration at one end of the spectrum: state, and one step.

    The top iterates F, the bottom F − σ with σ about λmax. A start vector is never multiplied by F
    before the shift is applied: that would remove the null space, where the bottom pairs live.
    """

    def __init__(self, block: Tensor) -> None:
        self.block: Tensor = torch.linalg.qr(block, "reduced").Q
        self.pairs: RitzPairs | None = None
        self.change = math.inf
        self.steps = 0

    def step(self, operator: FisherLike, shift: float) -> None:
        """Multiply once, measure, and prepare the next block."""
        products, responses = operator.apply(self.block)
        pairs, images = RitzPairs.of(self.block, products, responses)
        if self.pairs is not None and len(self.pairs.values) == len(pairs.values):
            moved = pairs.values.double() - self.pairs.values.double()
            self.change = float(torch.linalg.vector_norm(moved))
        following = images - shift * pairs.vectors
        if not bool(following.any(dim=0).all()):
            following = pairs.vectors  # F acts as the shift here: the block is invariant
        self.block = torch.linalg.qr(following, "reduced").Q
        self.pairs = pairs
        self.steps += 1

    def finished(self, criterion: float, scale: float) -> bool:
        """Whether the eigenvalues changed by no more than ``criterion``, or nothing can improve.

        Below λmax = 1 the criterion is taken relative to λmax, since otherwise a model with a small
        response would stop before it begins; never below what this precision can resolve.
        """
        if self.pairs is None:
            return False
        eps = torch.finfo(self.block.dtype).eps
        if float(self.pairs.residuals.max()) <= 4 * eps * scale:
            return True
        resolvable = 4 * eps * math.sqrt(len(self.pairs.values)) * scale
        return self.change <= min(criterion, max(criterion * scale, resolvable))

    def state(self) -> dict[str, Any]:
        """Return the state as tensors and numbers."""
        pairs = self.pairs
        return {
            "block": self.block,
            "pairs": None if pairs is None else [pairs.values, pairs.vectors, pairs.residuals],
            "change": self.change,
            "steps": self.steps,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> End:
        """Return the end a :meth:`state` came from."""
        end = cls.__new__(cls)
        end.block = state["block"]
        end.pairs = None if state["pairs"] is None else RitzPairs(*state["pairs"])
        end.change, end.steps = float(state["change"]), int(state["steps"])
        return end

    def moved(self, device: torch.device | None, dtype: torch.dtype | None) -> End:
        """Return the same state on a device and in a dtype; None keeps what there is."""
        state = self.state()
        state["block"] = self.block.to(device=device, dtype=dtype)
        if state["pairs"] is not None:
            state["pairs"] = [part.to(device=device, dtype=dtype) for part in state["pairs"]]
        return End.from_state(state)


class OrthogonalIteration:
    """Top and bottom ends, one after the other; goes on where it stood when run again.

    Parameters
    ----------
    n, k
        Order of F, pairs at each end.
    which
        ``"top"``, ``"bottom"`` or ``"both"``.
    seed
        Of the start blocks, drawn by a generator of its own.
    dtype, device
        Of the blocks.
    """

    def __init__(
        self, n: int, k: int, which: str, seed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.n, self.k, self.which = n, k, which
        generator = torch.Generator().manual_seed(seed)

        def start(columns: int) -> Tensor:
            drawn = torch.randn(n, columns, generator=generator, dtype=torch.float64)
            return drawn.to(device=device, dtype=dtype)

        # The bottom alone still needs λmax for its shift: a block of one does.
        self.top = End(start(1 if which == "bottom" else k))
        self.bottom = None if which == "top" else End(start(k))
        self.num_products = 0

    @property
    def scale(self) -> float:
        """The estimate of λmax."""
        pairs = self.top.pairs
        return 0.0 if pairs is None else float(pairs.values[0])

    def count(self, end: End) -> None:
        """Note the products of one step."""
        self.num_products += end.block.shape[1]

    def state(self) -> dict[str, Any]:
        """Return the state as tensors and plain containers."""
        return {
            "n": self.n,
            "k": self.k,
            "which": self.which,
            "top": self.top.state(),
            "bottom": None if self.bottom is None else self.bottom.state(),
            "num_products": self.num_products,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OrthogonalIteration:
        """Return the iteration a :meth:`state` came from."""
        new = cls.__new__(cls)
        new.n, new.k, new.which = int(state["n"]), int(state["k"]), str(state["which"])
        new.top = End.from_state(state["top"])
        new.bottom = None if state["bottom"] is None else End.from_state(state["bottom"])
        new.num_products = int(state["num_products"])
        return new

    def moved(self, device: torch.device | None, dtype: torch.dtype | None) -> OrthogonalIteration:
        """Return the same iteration on a device and in a dtype; None keeps what there is."""
        new = OrthogonalIteration.from_state(self.state())
        new.top = self.top.moved(device, dtype)
        new.bottom = None if self.bottom is None else self.bottom.moved(device, dtype)
        return new
