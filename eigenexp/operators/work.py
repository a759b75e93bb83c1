"""How much work a forward pass is, counted and not timed: what follows from it can be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["MultiplicationCounter"]

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_MATRIX = {
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.mv,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
    Tensor.bmm,
}


class MultiplicationCounter(TorchFunctionMode):
    """Counts the multiplications of what runs inside, roughly.

    Convolutions and products of matrices are counted in full, every other operation as one
    multiplication for each number it returns. What is called without torch's functions being
    looked up (a compiled or scripted model) is not seen.

    Attributes
    ----------
    count
        Multiplications so far.

    Examples
    --------
    >>> with MultiplicationCounter() as counter:
    ...     _ = torch.ones(4, 5) @ torch.ones(5, 6)
    >>> counter.count >= 4 * 5 * 6
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.count += _multiplications(func, [*args, *kwargs.values()], result)
        return result


def _multiplications(func: Callable[..., Any], given: list[Any], result: Any) -> int:
    """Return the multiplications of one call."""
    tensors = [one for one in given if isinstance(one, Tensor)]
    size = result.numel() if isinstance(result, Tensor) else 0
    if func in _CONVOLUTIONS and len(tensors) > 1:
        return size * math.prod(tensors[1].shape[1:])
    if func in _TRANSPOSED and len(tensors) > 1:
        return tensors[0].numel() * math.prod(tensors[1].shape[1:])
    if func is functional.linear and len(tensors) > 1:
        return size * tensors[1].shape[-1]
    if func in _MATRIX and tensors:
        return size * tensors[0].shape[-1]
    if func is functional.scaled_dot_product_attention and len(tensors) > 2:
        return 2 * tensors[0].numel() * tensors[1].shape[-2]
    if func is functional.multi_head_attention_forward and len(tensors) > 2:
        length, width = tensors[0].shape[0], tensors[0].shape[-1]
        return tensors[0].numel() * (4 * width + 2 * length)
    return size
