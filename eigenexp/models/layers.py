"""A layer of any network as a model, and a network made ready to be one."""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from eigenexp.errors import InputTypeError, ModelError

__all__ = ["LayerOutput", "available_layers", "freeze", "frozen"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LayerOutput(nn.Module):
    """The output of one submodule of a network, as a model of its own.

    The network runs up to the layer and no further: what comes after costs nothing and cannot
    change the layer's output in place. A hook is there only during a call, so the network stays as
    it was, and every ``torch.func`` transform sees an ordinary function.

    Parameters
    ----------
    model
        Any network; it is not copied.
    layer
        Dotted name of a submodule, as :func:`available_layers` lists it. A layer that runs several
        times in a pass gives its first output.

    Raises
    ------
    ModelError
        When the network has no such layer (the nearest names are listed) or, on a call, does not
        use it.
    InputTypeError
        When ``model`` is no module.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
    >>> LayerOutput(network, "1")(torch.rand(1, 1, 5, 5)).shape
    torch.Size([1, 2, 3, 3])
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        names = available_layers(model)
        if layer not in names:
            raise ModelError(f"layer: {_unknown_layer(layer, names, type(model).__name__)}")
        self.model = model
        self.layer = layer
        self.training = model.training

    def forward(self, *inputs: Any) -> Any:
        """Run the network up to the layer; return its output as it is, tuples and all."""
        reached = _Reached()
        caller = threading.get_ident()

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if threading.get_ident() == caller:  # another thread's call is not ours to stop
                reached.output = output
                raise reached

        handle = self.model.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.model(*inputs)
        except _Reached as signal:
            if signal is not reached:  # of a LayerOutput around this one
                raise
            return reached.output
        finally:
            handle.remove()
            # The signal's traceback holds this frame, and so the output's graph, in a cycle.
            reached.__traceback__ = None
        raise ModelError(
            f"layer: expected {self.layer!r} to be used in a forward pass of "
            f"{type(self.model).__name__}, but it was not; choose a layer that runs"
        )

    def extra_repr(self) -> str:
        """Name the layer."""
        return f"layer={self.layer!r}"


class _Reached(BaseException):
    """Ends a forward pass; no ``Exception``, lest the network catch it."""

    output: Any = None


def available_layers(model: nn.Module) -> list[str]:
    """Return the dotted names of all submodules, in the order they were registered."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(
            f"model: expected a torch.nn.Module to take a layer of, got {type(model).__name__}"
        )
    return [name for name, _ in model.named_modules() if name]


def _unknown_layer(layer: Any, names: list[str], network: str) -> str:
    if not names:
        return f"{network} has no submodules; leave layer out (null) to take its own output"
    near = difflib.get_close_matches(str(layer), names, n=5, cutoff=0.5)
    # "conv1" may well mean "encoder.conv1".
    near += [name for name in names if name.endswith(f".{layer}") and name not in near][:5]
    some = f"did you mean {' or '.join(near)}?" if near else f"some are {', '.join(names[:8])}"
    return f"expected a submodule of {network}, got {layer!r}; {some} ({len(names)} in all)"


def freeze(model: ModuleT) -> ModuleT:
    """Switch off training and the parameters' gradients, in place; return the model."""
    model.eval()
    return model.requires_grad_(False)


@contextlib.contextmanager
def frozen(model: ModuleT) -> Iterator[ModuleT]:
    """Freeze a model for the time of a ``with`` block; every flag is put back at its end."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield freeze(model)
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, needed in grads:
            parameter.requires_grad_(needed)
