"""The ways to compute J·v and Jᵀ·u, one vector at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from eigenexp.operators.probing import Model, respond

__all__ = ["ROUTES", "Route"]


class Route(Protocol):
    """One way to compute products; made from a model and a picture, linearised when made."""

    name: str
    response: Tensor

    def push(self, vector: Tensor) -> Tensor:
        """Return J·v ``(m,)`` for v in the picture's shape."""
        ...

    def pull(self, cotangent: Tensor) -> Tensor:
        """Return Jᵀ·u in the picture's shape for u ``(m,)``."""
        ...


class _KeptGraph:
    """Jᵀ·u from one recorded forward pass."""

    def __init__(self, model: Model, image: Tensor) -> None:
        self._image = image.clone().requires_grad_()
        # A copy of the leaf: models may change their input in place.
        self._output = respond(model, self._image.clone())
        self.response = self._output.detach()

    def pull(self, cotangent: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self._output, self._image, cotangent, retain_graph=True)
        return product


class DoubleBackward(_KeptGraph):
    """J·v as the derivative of u ↦ Jᵀu in the direction v; both graphs kept."""

    name = "double-backward"

    def __init__(self, model: Model, image: Tensor) -> None:
        super().__init__(model, image)
        self._dummy = torch.zeros_like(self._output, requires_grad=True)
        (self._gradient,) = torch.autograd.grad(
            self._output, self._image, self._dummy, create_graph=True
        )

    def push(self, vector: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self._gradient, self._dummy, vector, retain_graph=True)
        return product


class ForwardMode(_KeptGraph):
    """J·v by dual numbers: one forward pass a product."""

    name = "forward-mode"

    def __init__(self, model: Model, image: Tensor) -> None:
        super().__init__(model, image)
        self._model = model

    def push(self, vector: Tensor) -> Tensor:
        with fwad.dual_level():
            dual = fwad.make_dual(self._image.detach(), vector)  # type: ignore[no-untyped-call]
            tangent: Tensor | None
            _, tangent = fwad.unpack_dual(respond(self._model, dual.clone()))  # type: ignore[no-untyped-call]
        return torch.zeros_like(self.response) if tangent is None else tangent


ROUTES: dict[str, Callable[[Model, Tensor], Route]] = {
    route.name: route for route in (DoubleBackward, ForwardMode)
}
