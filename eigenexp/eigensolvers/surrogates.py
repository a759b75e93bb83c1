"""Surrogates of F and the choice among them, all from the products of a few random vectors.

Each explains one kind of model: a convolution with gains a front end, a strided frame a smooth
network with strides or pooling, the norms of the rows a masked one. The wrong one costs more
products than none, so that one that does not explain products it has not seen is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from eigenexp.eigensolvers.modulated_convolution import ModulatedConvolution
from eigenexp.eigensolvers.row_norms import RowNorms, fit_rows
from eigenexp.eigensolvers.strided_frame import StridedFrame, finish_frame, fit_frame, reach

__all__ = ["MORE", "Surrogate", "choose", "fits", "surrogate_from_state", "telling_pixel"]

MORE = 4
"""Random vectors drawn beyond the first ones where the modulated convolution does not fit."""
CONVOLUTION_FITS, FRAME_FITS, ROWS_FIT = 0.1, 0.22, 0.5
"""Misfits below which each is used; see ``benchmarks/surrogates.py`` for the networks behind."""


class Surrogate(Protocol):
    """A ≈ F, positive definite, from products of F alone."""

    @property
    def misfit(self) -> float:
        """How much of F it leaves unexplained; 0 where A = F."""

    @property
    def note(self) -> str:
        """What it is, for a spectrum's notes."""

    def apply(self, vectors: Tensor) -> Tensor:
        """Return A V, ``(n, b)``."""

    def solve(self, vectors: Tensor) -> Tensor:
        """Return A⁻¹ V, ``(n, b)``; with a small shift where A is singular."""

    def starts(self, random: Tensor, count: int) -> Tensor:
        """Return bottom vectors of A, outermost first, ``(n, count)``; ``random`` is ``(n, 1)``."""

    def correction(
        self, end: str, residual: Tensor, value: float, locked: Tensor, steps: int
    ) -> Tensor:
        """Solve the correction equation for a residual ``(n, 1)`` roughly, ``(n, 1)``."""

    def state(self) -> dict[str, Any]:
        """Return plain containers and tensors, for a checkpoint."""


def surrogate_from_state(state: Mapping[str, Any], like: Tensor) -> Surrogate:
    """Return the surrogate of a state, on the device of ``like``."""
    kind = state.get("kind", "convolution")
    if kind == "frame":
        return StridedFrame.from_state(state, like)
    if kind == "rows":
        return RowNorms.from_state(state, like)
    return ModulatedConvolution.from_state(state, like)


def fits(surrogate: Surrogate | None) -> bool:
    """Whether the modulated convolution explains F, so that nothing else is tried."""
    return surrogate is not None and surrogate.misfit < CONVOLUTION_FITS


def telling_pixel(products: Tensor, shape: tuple[int, int, int]) -> int:
    """Return a pixel near the middle that F does not ignore, from products ``(n, p)``."""
    channels, height, width = shape
    rows = products.square().sum(1).reshape(channels, height, width)
    y, x = (torch.arange(size, device=rows.device) - size // 2 for size in (height, width))
    near = (y.abs()[:, None] <= height // 8) & (x.abs()[None] <= width // 8)
    return int(torch.where(near, rows, rows.new_tensor(-1.0)).argmax())


def choose(
    vectors: Tensor,
    products: Tensor,
    shape: tuple[int, int, int],
    column: Tensor,
    pixel: int,
    scale: float,
    budget: float,
) -> StridedFrame | RowNorms | None:
    """Choose where the modulated convolution does not fit.

    Parameters
    ----------
    vectors, products
        ``(n, p)``: random vectors of unit norm, and F times them.
    shape
        ``(C, H, W)``.
    column, pixel
        F e, ``(n,)``, of the e with a 1 at ``pixel``: it tells how large a window must be.
    scale
        λmax, roughly.
    budget
        Multiplications that a fit may take.

    Returns
    -------
    StridedFrame, RowNorms or None
        None where nothing explains the products.
    """
    width = reach(column, pixel, shape) + 1
    frame = fit_frame(vectors, products, shape, width, scale, budget)
    if frame is not None and frame.misfit < FRAME_FITS:
        return finish_frame(frame, vectors, products)
    rows = fit_rows(vectors, products, scale)
    return rows if rows.misfit < ROWS_FIT else None
