"""Calling a foreign model without leaving a trace, and finding out what it is like."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from eigenexp.errors import EigenexpError, ImageError, InputTypeError, ModelError, summary
from eigenexp.operators.responses import flatten_response
from eigenexp.operators.work import MultiplicationCounter

__all__ = [
    "Linearization",
    "Model",
    "as_written",
    "check_callable",
    "check_image",
    "copy_image",
    "gradient",
    "linearize",
    "no_gradient",
    "respond",
    "uncompiled",
    "undisturbed",
]

Model = Callable[[Tensor], Any]


def check_image(image: Any, *, alone: bool = True) -> None:
    """Refuse what cannot be a picture to solve for.

    Parameters
    ----------
    image
        The picture.
    alone
        Whether it must be one picture.

    Raises
    ------
    InputTypeError
        When it is no float32 or float64 tensor.
    ImageError
        When it has more than one dimension and its first is not 1, holds no value, NaN or inf.
    """
    if not isinstance(image, Tensor):
        raise InputTypeError(
            f"image: expected a torch tensor, got {type(image).__name__}; "
            "load_picture(...).tensor makes one"
        )
    if image.dtype not in (torch.float32, torch.float64):
        raise InputTypeError(
            f"image: expected torch.float32 or torch.float64, got {image.dtype}; solve in float32: "
            "convert picture and model with .to(torch.float32)"
        )
    if image.ndim == 0 or image.numel() == 0:
        raise ImageError(
            f"image: expected a picture of shape (1, C, H, W), got {tuple(image.shape)}"
        )
    if alone and image.ndim > 1 and image.shape[0] != 1:
        raise ImageError(
            f"image: expected one picture of shape (1, C, H, W), got {tuple(image.shape)}; "
            "pass one picture at a time: image[:1]"
        )
    if not bool(torch.isfinite(image.detach()).all()):
        raise ImageError("image: expected finite picture values, got NaN or inf; mend the picture")


def copy_image(image: Any) -> Tensor:
    """Check the picture and return a contiguous copy that shares nothing with the caller's.

    Raises
    ------
    InputTypeError, ImageError
        See :func:`check_image`.
    """
    check_image(image)
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty(image.shape, dtype=image.dtype, device=image.device).copy_(image)


@contextlib.contextmanager
def undisturbed(model: Model, device: torch.device) -> Iterator[None]:
    """Run a model in here: gradients on, and nothing outside is changed at the end.

    The caller may be in ``no_grad``, ``inference_mode`` or autocast; none of them reaches the
    model. Random states, and what the model changes in its own buffers, are put back. Attention
    takes its mathematical kernel: the fused ones have no second derivative. What the model has
    compiled of itself runs uncompiled: the compiler would trace the recording of it, for minutes.

    Raises
    ------
    ModelError
        When a weight has no shape yet.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        uncompiled(),
        _random_states(device),
        _module_state(model),
    ):
        yield


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what a model has compiled of itself as it was written.

    For a few runs: compiling takes seconds, and its arithmetic is another.
    """
    # Where nothing was compiled, there is no need to import the compiler.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def as_written(model: Any) -> Any:
    """Return the module that ``torch.compile`` made ``model`` of, or ``model``.

    A compiled module has no second derivative; the module it was made from does. torch names it by
    a private attribute alone.
    """
    return getattr(model, "_orig_mod", model)


@contextlib.contextmanager
def _random_states(device: torch.device) -> Iterator[None]:
    # Not numpy.random itself, which is first imported, for 20 ms, when something asks for it.
    numpy_random = sys.modules.get("numpy.random")
    python_state = random.getstate()
    numpy_state = None if numpy_random is None else numpy_random.get_state()
    accelerator = device.type in ("cuda", "xpu")
    devices, device_type = ([device], device.type) if accelerator else ([], "cuda")
    try:
        with torch.random.fork_rng(devices, device_type=device_type):
            yield
    finally:
        random.setstate(python_state)
        if numpy_random is not None and numpy_state is not None:
            numpy_random.set_state(numpy_state)


@contextlib.contextmanager
def _module_state(model: Model) -> Iterator[None]:
    """Put back what a forward pass changes in a module: running statistics, ``.data``."""
    module = model if isinstance(model, torch.nn.Module) else getattr(model, "__self__", None)
    if not isinstance(module, torch.nn.Module):
        yield
        return
    _check_initialized(module)
    kept = [(tensor, tensor.detach()) for tensor in (*module.parameters(), *module.buffers())]
    # Running statistics are small, and their kernels do not mark them as changed. Weights that
    # are written in place by a forward pass are not met in practice.
    copies = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, alias in kept:
                if tensor.data_ptr() != alias.data_ptr():
                    tensor.data = alias
            for buffer, copy in copies:
                # To compare would wait for an accelerator, product after product.
                if buffer.device.type != "cpu" or not torch.equal(buffer, copy):
                    # Through .data: a kept graph may hold the buffer, as it is put back to be.
                    buffer.data.copy_(copy)


def check_callable(model: Any) -> None:
    """Refuse what cannot be a model, before it is moved or run.

    Raises
    ------
    InputTypeError
        When it is not callable.
    ModelError
        When a weight of it has no shape yet.
    """
    if not callable(model):
        raise InputTypeError(f"model: expected a callable, got {type(model).__name__}")
    if isinstance(model, torch.nn.Module):
        _check_initialized(model)


def _check_initialized(module: torch.nn.Module) -> None:
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise ModelError(
                f"model: expected weights of known shape, got {name} without one (a lazy module); "
                "call the model once on a picture first, and load its weights"
            )


class Linearization:
    """One forward pass with its autograd graph kept: the response, and Jᵀ·u from it.

    ``work`` counts the multiplications of the pass.
    """

    def __init__(self, model: Model, image: Tensor) -> None:
        self.image = image.clone().requires_grad_()
        with MultiplicationCounter() as counter:
            self.output = respond(model, self.image)
        self.work = counter.count
        self.response = self.output.detach().clone()

    def pull(self, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return Jᵀ·u in the picture's shape for u ``(m,)``."""
        product = gradient(self.output, self.image, cotangent, create_graph=create_graph)
        if product is None:
            raise no_gradient("one that depends on parameters alone")
        return product


def gradient(
    output: Tensor, source: Tensor, cotangent: Tensor, *, create_graph: bool = False
) -> Tensor | None:
    """Return the derivative of ⟨output, cotangent⟩ in ``source``; the graph is kept.

    As a scalar: given ``grad_outputs``, ``torch.autograd.grad`` imports half a second's worth of
    symbolic algebra to compare their shapes.
    """
    scalar = torch.dot(output.reshape(-1), cotangent.reshape(-1))
    (product,) = torch.autograd.grad(
        scalar, source, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return product


def respond(model: Model, image: Tensor) -> Tensor:
    """Return the model's flattened response ``(m,)``; its own exceptions become ``ModelError``."""
    try:
        # A copy, so that models may change their input in place.
        output = model(image.clone())
    except EigenexpError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"model: expected a response to a picture of shape {tuple(image.shape)} and "
            f"{image.dtype}, got {summary(error)}"
        ) from error
    return flatten_response(output, image)


def linearize(model: Model, image: Tensor, *, check: bool) -> Linearization:
    """Run the model once and see to it that it has a derivative.

    Raises
    ------
    ModelError
        When the response carries no gradient, is not finite, or (with ``check``) differs from one
        forward pass to the next.
    """
    lin = Linearization(model, image)
    if not lin.output.requires_grad:
        raise no_gradient("one without gradient")
    if not bool(torch.isfinite(lin.response).all()):
        bad = int((~torch.isfinite(lin.response)).sum())
        raise ModelError(
            f"model: expected a finite response, got NaN or inf in {bad} of {len(lin.response)} "
            "values; look for 0/0, log(0) or overflow at this picture"
        )
    if check:
        _check_repeats(lin.response, respond(model, lin.image).detach())
    return lin


def _check_repeats(first: Tensor, second: Tensor) -> None:
    if first.shape == second.shape:
        difference = float((first - second).abs().max())
        # Accelerators may add up in varying order; on a CPU the same sum is the same number.
        slack = 0.0 if first.device.type == "cpu" else 1e3 * torch.finfo(first.dtype).eps
        if difference <= slack * float(first.abs().max()):
            return
        found = f"responses that differ by up to {difference:.3g}"
    else:
        found = f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
    raise ModelError(
        f"model: expected the same response to the same picture, got {found}; "
        "call model.eval(), or take the random layers (dropout, noise) out"
    )


def no_gradient(found: str) -> ModelError:
    """Return the error of a model whose response has no derivative."""
    return ModelError(
        f"model: expected a response differentiable in the picture, got {found}; look for "
        "no_grad, inference_mode, detach, .data, numpy or integers between picture and response"
    )
