"""Calling a foreign model without leaving a trace, and finding out what it is like."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eigenexp.errors import EigenexpError, ImageError, InputTypeError, ModelError
from eigenexp.operators.responses import flatten_response

__all__ = ["Model", "copy_image", "respond", "undisturbed"]

Model = Callable[[Tensor], Any]


def copy_image(image: Any) -> Tensor:
    """Check the picture and return a contiguous copy that shares nothing with the caller's.

    Raises
    ------
    InputTypeError
        When it is no float32 or float64 tensor.
    ImageError
        When it has more than one dimension and its first is not 1, or holds NaN or inf.
    """
    if not isinstance(image, Tensor):
        raise InputTypeError(
            f"image: expected a torch tensor, got {type(image).__name__}; "
            "load_picture(...).tensor makes one"
        )
    if image.dtype not in (torch.float32, torch.float64):
        raise InputTypeError(
            f"image: expected torch.float32 or torch.float64, got {image.dtype}; solve in float32: "
            "image.to(torch.float32), and the model likewise"
        )
    if image.ndim == 0 or image.numel() == 0:
        raise ImageError(f"image: expected picture values, got shape {tuple(image.shape)}")
    if image.ndim > 1 and image.shape[0] != 1:
        raise ImageError(
            f"image: expected one picture of shape (1, C, H, W), got {tuple(image.shape)}; "
            "pass one picture at a time: image[:1]"
        )
    with torch.inference_mode(False), torch.no_grad():
        copy = torch.empty(image.shape, dtype=image.dtype, device=image.device).copy_(image)
    if not bool(torch.isfinite(copy).all()):
        raise ImageError("image: expected finite picture values, got NaN or inf; mend the picture")
    return copy


@contextlib.contextmanager
def undisturbed(model: Model, device: torch.device) -> Iterator[None]:
    """Run a model in here: gradients on, and nothing of the outside world is changed at the end.

    The caller may be in ``no_grad``, ``inference_mode`` or autocast; none of them reaches the
    model. Random states and the model's buffers are put back. Attention takes its mathematical
    kernel: the fused ones have no second derivative.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        _random_states(device),
        _module_state(model),
    ):
        yield


@contextlib.contextmanager
def _random_states(device: torch.device) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = None if numpy is None else numpy.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def _module_state(model: Model) -> Iterator[None]:
    """Put back what a forward pass changes in a module: running statistics, ``.data``."""
    if not isinstance(model, torch.nn.Module):
        yield
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: (t, t.detach(), _version(t)) for name, t in tensors.items()}
    copies = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, (tensor, alias, version) in kept.items():
                if tensor.data_ptr() != alias.data_ptr():
                    tensor.data = alias
                elif name in copies and _version(tensor) != version:
                    tensor.copy_(copies[name])


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def respond(model: Model, image: Tensor) -> Tensor:
    """Return the model's flattened response ``(m,)``; its own exceptions become ``ModelError``."""
    try:
        output = model(image)
    except EigenexpError:
        raise
    except Exception as error:
        raise ModelError(
            f"model: expected a response to a picture of shape {tuple(image.shape)}, got "
            f"{summary(error)}"
        ) from error
    return flatten_response(output, image)


def summary(error: BaseException) -> str:
    """Return an exception as its type and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
