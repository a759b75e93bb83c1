"""The Jacobian of a model at a picture as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.errors import InputError, ModelError
from eigenexp.operators.base import Jacobian
from eigenexp.operators.probing import Model, copy_image, summary, undisturbed
from eigenexp.operators.routes import ROUTES, Route

__all__ = ["JacobianOperator"]


class JacobianOperator(Jacobian):
    """J = ∂f/∂x of a model f at a picture x, linearised once; ``operator @ V`` is J·V."""

    def __init__(
        self,
        model: Model,
        image: Tensor,
        *,
        route: str = "auto",
        chunk_size: int | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        if route != "auto" and route not in ROUTES:
            raise InputError(f"route: expected 'auto' or one of {list(ROUTES)}, got {route!r}")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size: expected at least 1 column, got {chunk_size}")
        self.image = copy_image(image)
        self.dtype = self.image.dtype
        self.device = self.image.device
        self.image_shape: tuple[int, ...] = tuple(self.image.shape[1:]) or (self.image.numel(),)
        self.chunk_size = chunk_size
        self._model = model
        self._route = self._choose([route] if route != "auto" else list(ROUTES))
        self.response = self._route.response
        self.shape = (self.response.numel(), self.image.numel())

    def _choose(self, names: list[str]) -> Route:
        failures = []
        for name in names:
            with undisturbed(self._model, self.device):
                try:
                    route = ROUTES[name](self._model, self.image)
                    route.push(torch.ones_like(self.image))
                except RuntimeError as error:
                    failures.append(f"{name}: {summary(error)}")
                    continue
            return route
        raise ModelError(
            f"model: expected a differentiable response, got {'; '.join(failures)}; look for "
            "no_grad, detach, numpy or integers in the model"
        )

    @property
    def route(self) -> str:
        """Name of the route in use."""
        return self._route.name

    def _matmat(self, block: Tensor) -> Tensor:
        with undisturbed(self._model, self.device):
            columns = [self._route.push(v.reshape(self.image.shape)) for v in block.detach().T]
        return torch.stack([column.detach() for column in columns], dim=1)

    def _rmatmat(self, block: Tensor) -> Tensor:
        with undisturbed(self._model, self.device):
            columns = [self._route.pull(u) for u in block.detach().T]
        return torch.stack([column.detach().reshape(-1) for column in columns], dim=1)

    def to_dense(self) -> Tensor:
        """Return J, ``(m, n)``."""
        return self._matmat(torch.eye(self.shape[1], dtype=self.dtype, device=self.device))
