"""Products with F for one call of ``synthesize``: the first by the autograd graph, then by tape.

To record a tape (:mod:`eigenexp.operators.tape`) takes as long as ten to thirty products of a small
model by its graph; each later product is then up to sixty times as fast. A short call is over
before that pays. Sizes and settings alone decide, never the clock, and every call begins anew, so a
run that is saved and loaded goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import ModelError
from eigenexp.operators import FisherLike, FisherOperator
from eigenexp.operators.protocol import Request

__all__ = ["SKETCH", "EarlyProducts", "early_products"]

# Measured on plenoptic's models and small networks, 16² to 256²: with so many products by the graph
# before the recording, neither a short nor a long call takes longer than plenoptic's.
SHORT, LONG = 16, 8
SHORT_CALL = 32  # products planned up to which no tape is recorded
SKETCH = 64  # the same where they are asked for in a few wide blocks
LONG_CALL = 200  # products planned from which the tape is nearly sure to be wanted
SMALL_PICTURE, LARGE_PICTURE = 2**12, 2**14  # values


class EarlyProducts:
    """F of one call: at most ``limit`` products of ``graph``, all later ones of ``tape()``."""

    def __init__(
        self, graph: FisherOperator, tape: Callable[[], FisherOperator], limit: int
    ) -> None:
        self.graph, self.tape, self.limit = graph, tape, limit
        self.problem = graph.problem
        self._done = 0

    def apply(self, block: Tensor, request: Request = "fisher") -> tuple[Tensor, Tensor | None]:
        """Return ``(F V, J V)``, or what else is requested."""
        self._done += block.shape[1]
        operator = self.graph if self._done <= self.limit else self.tape()
        return operator.apply(block, request)


def early_products(
    model: Callable[[Tensor], object],
    image: Tensor,
    planned: int,
    tape: Callable[[], FisherOperator],
    short: int = SHORT_CALL,
    measured: Mapping[str, Any] | None = None,
) -> FisherLike:
    """Return what a call that plans so many products does them with.

    Parameters
    ----------
    model, image
        What F is of.
    planned
        Products at the most.
    tape
        Returns the operator that is worth recording.
    short
        Products planned up to which none is recorded at a small picture.
    measured
        ``noise`` and ``perturbations`` of the operator.
    """
    n = image.numel()
    if n > LARGE_PICTURE:
        return tape()
    limit = SHORT if planned <= LONG_CALL else LONG
    if n > SMALL_PICTURE:
        limit = LONG
    elif planned <= short:
        limit = planned
    try:
        graph = FisherOperator(model, image, route="double-backward", **(measured or {}))
    except (ModelError, torch.OutOfMemoryError):
        return tape()
    return EarlyProducts(graph, tape, limit)
