"""Networks of lower precision than the solver: casts at both ends, and what a product is worth.

The picture, blocks and products stay float32; the network computes in bfloat16 or float16. Its
products are linear up to its own rounding only, which is measured. They are those of the network
as it is then: rounding moves units across the kinks of a ReLU, so its J is not that in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eigenexp.errors import InputTypeError, ModelError
from eigenexp.operators.responses import flatten_response

__all__ = ["LOW_PRECISIONS", "InPrecision", "linearity_defect", "scaled"]

LOW_PRECISIONS = (torch.bfloat16, torch.float16)


class InPrecision(nn.Module):
    """A model run in another precision: ``(1, C, H, W)`` float32 in, ``(m,)`` float32 out.

    Parameters
    ----------
    model
        Takes and returns tensors of ``dtype``; its weights are in it already.
    dtype
        ``torch.bfloat16`` or ``torch.float16``.

    Raises
    ------
    InputTypeError
        When ``dtype`` is another.
    ModelError
        When a weight is not of that dtype.
    """

    def __init__(self, model: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
        super().__init__()
        if dtype not in LOW_PRECISIONS:
            raise InputTypeError(
                f"model_dtype: expected torch.bfloat16 or torch.float16, got {dtype}; leave it out "
                "for the picture's own"
            )
        if isinstance(model, nn.Module):
            for name, weight in model.named_parameters():
                if weight.is_floating_point() and weight.dtype != dtype:
                    raise ModelError(
                        f"model: expected weights in {dtype}, got {name} in {weight.dtype}; "
                        f"convert with model.to({dtype})"
                    )
        self.model = model
        self.dtype = dtype
        self.training = isinstance(model, nn.Module) and model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the flat response in the precision of ``x``."""
        low = x.to(self.dtype)
        return flatten_response(self.model(low), low).to(x.dtype)


def scaled(product: Callable[[Tensor], Tensor], pictures: int = 1) -> Callable[[Tensor], Tensor]:
    """Return a linear function that keeps to the range of float16 whatever it is given.

    A power of two takes the largest entry to about 1 and is multiplied back: exact, and without a
    value read from the device. Where vectors hold several ``pictures`` one after another, each has
    a power of its own.
    """

    def apply(vector: Tensor) -> Tensor:
        rows = vector.reshape(pictures, -1)
        largest = rows.abs().amax(dim=1, keepdim=True)
        unit = torch.exp2(torch.floor(torch.log2(largest)))
        unit = torch.where(torch.isfinite(unit) & (unit > 0), unit, torch.ones_like(unit))
        result = product((rows / unit).reshape(vector.shape))
        return (result.reshape(pictures, -1) * unit).reshape(result.shape)

    return apply


def linearity_defect(
    product: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, pictures: int = 1
) -> Tensor:
    """Return how far ``product`` is from linear: 0 but for rounding, which it so measures.

    One number ``(pictures,)`` for each of those that the vectors hold one after another.
    """
    results = (product(first + second), product(first), product(second))
    both, one, other = (result.reshape(pictures, -1) for result in results)
    size = both.norm(dim=1) + one.norm(dim=1) + other.norm(dim=1)
    defect = (both - one - other).norm(dim=1) / size
    return torch.where(size > 0, defect, torch.zeros_like(defect))
