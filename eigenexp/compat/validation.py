"""Checks of pictures and models at the door, and two helpers that make a model pass them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputError, InputTypeError, ModelError
from eigenexp.operators.probing import undisturbed
from eigenexp.operators.responses import response_parts

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
    if not isinstance(image, Tensor):
        raise InputTypeError(f"image: expected a torch tensor, got {type(image).__name__}")
    image = image.detach()
    if image.dtype not in SOLVABLE:
        raise InputTypeError(
            f"image: expected torch.float32 or torch.float64, got {image.dtype}; convert picture "
            "and model with .to(torch.float32)"
        )
    if image.ndim != 4:
        warnings.warn(
            f"image: expected 4 dimensions (1, C, H, W), got {image.ndim}; solving goes on with "
            f"shape {tuple(image.shape)}",
            stacklevel=_OUTSIDE,
        )
    if no_batch and image.ndim > 1 and image.shape[0] != 1:
        raise ImageError(
            f"image: expected one picture (first dimension 1), got {image.shape[0]}; solve for "
            "one at a time: image[:1]"
        )
    if image.ndim == 0 or image.numel() == 0:
        raise ImageError(f"image: expected picture values, got shape {tuple(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ImageError("image: expected finite values, got NaN or inf; mend the picture")
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
                f"{type(error).__name__}: {_first_line(error)}; replace NumPy, .item() and the like"
            ) from error
        parts = response_parts(output)
        if not any(part.requires_grad for part in parts):
            raise ModelError(
                "model: expected a response that can be differentiated with respect to the "
                "picture, got a detached one; look for detach, no_grad, integers or rounding"
            )
        real = {torch.complex64: torch.float32, torch.complex128: torch.float64}
        for part in parts:
            if real.get(part.dtype, part.dtype) != image.dtype:
                raise InputTypeError(
                    f"model: expected the picture's precision {image.dtype} in the response, got "
                    f"{part.dtype}; keep one precision through the model"
                )
            if part.device != image.device:
                raise RuntimeError(
                    f"model: expected the picture's device {image.device} for the response, got "
                    f"{part.device}; keep model and picture on one device"
                )
    if getattr(model, "training", False):
        warnings.warn(
            "model: expected evaluation mode, got training mode (dropout, batch statistics); "
            "call model.eval()",
            stacklevel=_OUTSIDE,
        )
    return sum(part.numel() * (2 if part.is_complex() else 1) for part in parts)


_OUTSIDE = 3  # the caller of the public function


def _call(model: Callable[[Tensor], Any], image: Tensor) -> Any:
    try:
        return model(image)
    except AttributeError as error:
        raise ModelError(
            "model: expected torch operations from picture to response, got AttributeError: "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise InputError unless ``low <= value`` (``<= high``)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name}: expected an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise InputError(f"{name}: expected {limit}, got {value}")
