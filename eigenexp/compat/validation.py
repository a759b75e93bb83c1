"""Checks of pictures and models at the door, and two helpers that make a model pass them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError, ModelError, first_line, summary
from eigenexp.operators.calling import check_image, no_gradient, undisturbed
from eigenexp.operators.responses import flatten_response, response_parts

__all__ = ["remove_grad", "set_seed", "validate_image", "validate_model"]

SOLVABLE = (torch.float32, torch.float64)


def set_seed(seed: int | None = None) -> None:
    """Seed torch's and NumPy's global generators; ``None`` does nothing.

    ``Eigendistortion.synthesize`` without a ``seed`` of its own starts from the seed set here.
    """
    if seed is None:
        return
    import numpy as np

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what the caller asks for


def remove_grad(model: torch.nn.Module) -> None:
    """Detach every parameter and buffer of ``model``, in place: it is fixed from then on."""
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    for tensor in tensors:
        if tensor.requires_grad:
            tensor.detach_()


def validate_image(image: Tensor, no_batch: bool = True) -> None:
    """Check that a picture can be solved for.

    Parameters
    ----------
    image
        ``(1, C, H, W)``, any other shape with a leading 1, or ``(n,)``.
    no_batch
        Refuse more than one picture.

    Raises
    ------
    InputTypeError
        When it is no tensor of float32 or float64 (a ``TypeError``).
    ImageError
        When it holds several pictures, no value, NaN or inf (a ``ValueError``).

    Warns
    -----
    UserWarning
        When it is not 4-D; when values lie outside [0, 1].
    """
    check_image(image, alone=no_batch)
    image = image.detach()
    if image.ndim != 4:
        warnings.warn(
            f"image: expected 4 dimensions (1, C, H, W), got {image.ndim}; solving goes on with "
            f"shape {tuple(image.shape)}",
            stacklevel=_OUTSIDE,
        )
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        warnings.warn(
            f"image: expected values in [0, 1], got {low:.4g} to {high:.4g}; solving goes on",
            stacklevel=_OUTSIDE,
        )


def validate_model(
    model: Callable[[Tensor], Any],
    image_shape: Sequence[int] | None = None,
    image_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> None:
    """Check that a model's response can be differentiated with respect to the picture.

    The model is called twice on a picture of noise; the global random state stays as it is.

    Parameters
    ----------
    model
        From a picture to a tensor, or a tuple, list or mapping of tensors.
    image_shape
        Shape of the picture; ``(1, 1, 16, 16)`` by default.
    image_dtype, device
        Of the picture.

    Raises
    ------
    ModelError
        When a parameter still requires a gradient, or the response is no tensor or does not
        depend on the picture through torch (a ``ValueError``).
    InputTypeError
        When the response has another precision than the picture (a ``TypeError``).
    RuntimeError
        When the response is on another device.

    Warns
    -----
    UserWarning
        When the model is in training mode.
    """
    if image_dtype not in SOLVABLE:
        raise InputTypeError(
            f"image_dtype: expected torch.float32 or torch.float64, got {image_dtype}"
        )
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 16, 16) if image_shape is None else tuple(image_shape)
    noise = torch.rand(shape, generator=generator, dtype=image_dtype).to(device)
    check_model(model, noise)


def check_model(model: Callable[[Tensor], Any], image: Tensor) -> int:
    """Do the checks of :func:`validate_model` at ``image``; return the number of responses."""
    with undisturbed(model, image.device):
        fixed = image.detach().clone()
        if any(part.requires_grad for part in response_parts(_call(model, fixed))):
            raise ModelError(
                "model: expected fixed parameters, got a response that requires a gradient on "
                "its own; call eigenexp.remove_grad(model)"
            )
        traced = image.detach().clone().requires_grad_()
        try:
            output = _call(model, traced.clone())
        except RuntimeError as error:
            # NumPy cannot take a tensor that requires a gradient: torch says so only here.
            raise ModelError(
                "model: expected torch operations from picture to response, got "
                f"{summary(error)}; replace NumPy, .item() and the like"
            ) from error
        response = flatten_response(output, image)
        if not response.requires_grad:
            raise no_gradient("a detached one")
    if getattr(model, "training", False):
        warnings.warn(
            "model: expected evaluation mode, got training mode (dropout, batch statistics); "
            "call model.eval()",
            stacklevel=_OUTSIDE,
        )
    return response.numel()


_OUTSIDE = 3  # the caller of the public function


def _call(model: Callable[[Tensor], Any], image: Tensor) -> Any:
    try:
        return model(image)
    except AttributeError as error:
        raise ModelError(
            "model: expected torch operations from picture to response, got AttributeError: "
            f"{first_line(error)}"
        ) from error


def check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise InputError unless ``low <= value`` (``<= high``)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name}: expected an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise InputError(f"{name}: expected {limit}, got {value}")
