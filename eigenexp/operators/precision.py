"""Networks of lower precision than the solver: casts at both ends, and what a product is worth.

The picture, blocks and products stay float32; the network computes in bfloat16 or float16. Its
products are linear up to its own rounding only, which is measured. They are those of the network
as it is then: rounding moves units across the kinks of a ReLU, so its J is not that in float32.

A model may also hold a step in a lower precision of its own making (a cast, ``torch.autocast``).
That too shows in how far its products are from linear; :func:`find_coarse_step` then says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from eigenexp.errors import InputTypeError, ModelError
from eigenexp.operators.responses import flatten_response

__all__ = [
    "LOW_PRECISIONS",
    "CoarseStep",
    "InPrecision",
    "find_coarse_step",
    "linearity_defect",
    "scaled",
]

LOW_PRECISIONS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class CoarseStep:
    """The coarsest arithmetic met in a forward pass.

    ``dtype`` it is in, the first ``operation`` that gave it, and whether ``torch.autocast`` was on.
    """

    dtype: torch.dtype
    operation: str
    autocast: bool

    @property
    def eps(self) -> float:
        """Relative rounding of one operation."""
        return torch.finfo(self.dtype).eps

    def __str__(self) -> str:
        """Return what to say of it."""
        cause = "torch.autocast in it" if self.autocast else "a cast or a constant in it"
        return f"{self.operation} in {self.dtype} ({cause})"


def find_coarse_step(forward: Callable[[], Any], image: Tensor) -> CoarseStep | None:
    """Return the coarsest arithmetic in a forward pass, or None if all is in ``image``'s dtype."""
    operations, calls = _Operations(), _Calls(image.device.type)
    with operations, calls:
        forward()
    coarsest = max(operations.first, key=lambda dtype: torch.finfo(dtype).eps, default=image.dtype)
    if torch.finfo(coarsest).eps <= torch.finfo(image.dtype).eps:
        return None
    return CoarseStep(coarsest, operations.first[coarsest], calls.autocast)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operation with a result in each floating dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first: dict[torch.dtype, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, Tensor) and (part.is_floating_point() or part.is_complex()):
                self.first.setdefault(part.dtype, str(func.overloadpacket))
        return result


class _Calls(TorchFunctionMode):
    """Notes whether anything was called under autocast, which operations do not see."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type
        self.autocast = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.autocast = self.autocast or torch.is_autocast_enabled(self._device_type)
        return func(*args, **(kwargs or {}))


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
