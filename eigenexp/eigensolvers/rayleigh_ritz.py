"""Ritz pairs of a block from its products: pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Ritz", "orthonormalised", "rayleigh_ritz", "with_products"]


class Ritz(NamedTuple):
    """Ritz pairs of one block, in decreasing order, with their true residuals.

    ``values (b,)``, ``vectors (n, b)`` orthonormal, ``images (n, b)``: F times them, and
    ``residuals (b,)``: ‖Fx − θx‖, exact because ``images`` come from products.
    """

    values: Tensor
    vectors: Tensor
    images: Tensor
    residuals: Tensor


def rayleigh_ritz(block: Tensor, products: Tensor, responses: Tensor | None) -> Ritz:
    """Return the Ritz pairs of span(block).

    The projected problem is solved in float64, and so are squares summed that underflow in float32.
    Where J V is at hand, θ = ‖Jx‖²/‖x‖²: never negative, and without cancellation near zero.

    Parameters
    ----------
    block
        V ``(n, b)``, orthonormal columns.
    products
        F V ``(n, b)``.
    responses
        J V ``(m, b)``, or None.
    """
    projected = block.T.to(torch.float64) @ products.to(torch.float64)
    _, rotation = torch.linalg.eigh((projected + projected.T) / 2)
    rotation = rotation.flip(1).to(block.dtype)
    vectors, images = block @ rotation, products @ rotation
    lengths = _squared_norms(vectors)
    if responses is None:
        measured = (vectors * images).sum(0).double()
    else:
        measured = _squared_norms(responses @ rotation)
    values = (measured / lengths).to(block.dtype)
    # Measured values may leave the projected order by a rounding error.
    values, order = values.sort(descending=True, stable=True)
    vectors, images = vectors[:, order], images[:, order]
    return with_products(values, vectors, images)


def with_products(values: Tensor, vectors: Tensor, images: Tensor) -> Ritz:
    """Return pairs with the residuals that ``images``, F times ``vectors``, give them."""
    residuals = _squared_norms(images - vectors * values).sqrt()
    return Ritz(values, vectors, images, residuals.to(images.dtype))


def orthonormalised(vectors: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of span(vectors) ``(n, b)``, and F times it by the same changes.

    Directions that two vectors nearly share are left out: their product would be rounding.
    """
    lengths, mix = torch.linalg.eigh(vectors.mT.double() @ vectors.double())
    kept = lengths > 1e-6 * lengths[-1]
    change = (mix[:, kept] / lengths[kept].sqrt()).to(vectors)
    basis, images = vectors @ change, products @ change
    # A second turn, to rounding.
    lengths, mix = torch.linalg.eigh(basis.mT.double() @ basis.double())
    change = (mix / lengths.sqrt()).to(vectors)
    return basis @ change, images @ change


def _squared_norms(columns: Tensor) -> Tensor:
    """Return ‖·‖² of each column, as float64."""
    sums = columns.square().sum(0).double()
    info = torch.finfo(columns.dtype)
    if bool(((sums > info.tiny / info.eps) & (sums < info.max)).all()):
        return sums
    # Squares that the dtype cannot hold: rare, and five times as slow.
    norms: Tensor = torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64)
    return norms.square()
