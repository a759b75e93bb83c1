"""A model's response as one flat real vector, whatever container the model returns it in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import ModelDeviceError, ModelError, ModelPrecisionError

__all__ = ["flatten_response", "flatten_rows", "response_parts", "response_values"]


def response_parts(output: Any) -> list[Tensor]:
    """Return the tensors of a model's output, in order, whatever container it returns.

    Parameters
    ----------
    output
        A tensor, or a tuple, list, mapping or dataclass of such (nested too; ``None`` entries are
        left out).

    Raises
    ------
    ModelError
        When there is something else in it, or nothing.
    """
    parts = [part for _, part in _leaves(output, "")]
    if not parts:
        raise _empty()
    return parts


def response_values(output: Any) -> Tensor:
    """Return every value of a model's output as one real vector ``(m,)``, nothing of it checked.

    Complex values become (real, imaginary) pairs. See :func:`response_parts` for ``output``, and
    :func:`flatten_response` for the response of an operator, whose dtype and device are checked.
    """
    return torch.cat([_as_real(part).reshape(-1) for part in response_parts(output)])


def flatten_response(output: Any, image: Tensor) -> Tensor:
    """Return every value of a model's output as one real vector, in order.

    Parameters
    ----------
    output
        A tensor of any shape and layout, or a tuple, list, mapping or dataclass of such (nested
        too; ``None`` entries are left out). Complex values become (real, imaginary) pairs.
    image
        The picture the model was given: its dtype and device are those expected.

    Returns
    -------
    Tensor
        ``(m,)`` in the picture's dtype.

    Raises
    ------
    ModelError
        When the output holds something else than floating-point tensors of the picture's
        precision (then a ``TypeError`` too) on the picture's device (then a ``RuntimeError`` too),
        or nothing at all.
    """
    parts = [_real(part, where, image) for where, part in _leaves(output, "")]
    if not parts:
        raise _empty()
    response = parts[0] if len(parts) == 1 else torch.cat(parts)
    if response.numel() == 0:
        raise ModelError("model: expected at least one output value, got tensors without elements")
    return response


def flatten_rows(output: Any, images: Tensor) -> Tensor:
    """Return a model's output for B pictures as ``(B, m)``: one row a picture.

    Parameters
    ----------
    output
        As for :func:`flatten_response`.
    images
        ``(B, ...)``: the pictures the model was given.

    Raises
    ------
    ModelError
        As :func:`flatten_response`, or when a tensor of the output has no row a picture.
    """
    count = len(images)
    rows = []
    for where, part in _leaves(output, ""):
        if part.ndim == 0 or part.shape[0] != count:
            raise ModelError(
                f"model: expected output{where} with {count} rows for {count} pictures, got shape "
                f"{tuple(part.shape)}; such a model is given one picture at a time"
            )
        rows.append(_real(part, where, images).reshape(count, -1))
    if not rows:
        raise _empty()
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def _leaves(output: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield where, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _leaves(value, f"{where}[{key!r}]")
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from _leaves(value, f"{where}[{i}]")
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _leaves(getattr(output, field.name), f"{where}.{field.name}")
    elif output is not None:
        raise ModelError(
            f"model: expected output{where} to be a tensor (or a tuple, list, mapping or dataclass "
            f"of tensors), got {type(output).__name__}; return tensors"
        )
    elif not where:
        raise ModelError("model: expected an output tensor, got None; return the response")


def _as_real(part: Tensor) -> Tensor:
    return torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


def _empty() -> ModelError:
    return ModelError("model: expected at least one output tensor, got an empty output")


def _real(part: Tensor, where: str, image: Tensor) -> Tensor:
    if part.layout is not torch.strided:
        raise ModelError(
            f"model: expected output{where} to be a dense tensor, got layout {part.layout}; "
            "return output.to_dense()"
        )
    part = _as_real(part)
    if not part.dtype.is_floating_point:
        raise ModelError(
            f"model: expected output{where} to be floating point, got {part.dtype}, which has no "
            "derivative; return the values before rounding or comparing"
        )
    if part.dtype != image.dtype:
        raise ModelPrecisionError(
            f"model: expected output{where} in the picture's {image.dtype}, got {part.dtype}; "
            "keep one precision through the model, or convert the picture"
        )
    if part.device != image.device:
        raise ModelDeviceError(
            f"model: expected output{where} on the picture's device {image.device}, got "
            f"{part.device}; keep model and picture on one device"
        )
    return part.reshape(-1)
