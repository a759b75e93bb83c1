"""The Jacobian of a model at a picture as an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eigenexp.errors import InputError, ModelError
from eigenexp.operators.columns import ColumnCounter, as_columns, scipy_operator
from eigenexp.operators.probing import Model, copy_image, summary, undisturbed
from eigenexp.operators.routes import ROUTES, Route

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["JacobianOperator"]


class JacobianOperator:
    """J = ∂f/∂x of a model f at a picture x, linearised once; ``operator @ V`` is J·V.

    Parameters
    ----------
    model
        Any callable that takes the picture and returns floating-point tensors (also complex, and
        in tuples, lists, mappings or dataclasses). It is called a few times while the operator is
        made and left as it was.
    image
        ``(1, C, H, W)``, any other shape with a leading 1, or ``(n,)``; float32 or float64. Copied.
    route
        How products are computed. ``"auto"`` probes the model; the name found is in
        :attr:`route`, and passing that name back gives the same arithmetic.
    chunk_size
        Columns handled at once.
    check
        Whether to check the route by the adjoint identity and the model for randomness.

    Raises
    ------
    InputTypeError, ImageError
        When the picture cannot be used.
    ModelError
        When the model is not differentiable, random, constant around the picture, changes dtype
        or device, or gives NaN or inf.
    """

    def __init__(
        self,
        model: Model,
        image: Tensor,
        *,
        route: str = "auto",
        chunk_size: int | None = None,
        check: bool = True,
    ) -> None:
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
        self._jvps = ColumnCounter()
        self._vjps = ColumnCounter()

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

    @property
    def num_jvp(self) -> int:
        """Columns of J·V computed so far, all-zero ones apart."""
        return self._jvps.count

    @property
    def num_vjp(self) -> int:
        """Columns of Jᵀ·U computed so far, all-zero ones apart."""
        return self._vjps.count

    def matmat(self, block: Tensor) -> Tensor:
        """Return J·V, ``(m, b)``, for ``block`` V of shape ``(n, b)``."""
        columns = as_columns(block, self.shape[1], self.dtype, self.device, "block")
        self._jvps.add(columns)
        return self._matmat(columns)

    def rmatmat(self, block: Tensor) -> Tensor:
        """Return Jᵀ·U, ``(n, b)``, for ``block`` U of shape ``(m, b)``."""
        columns = as_columns(block, self.shape[0], self.dtype, self.device, "block")
        self._vjps.add(columns)
        return self._rmatmat(columns)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return J·V: ``(m,)`` for ``(n,)``, ``(m, b)`` for ``(n, b)``."""
        product = self.matmat(vectors)
        return product[:, 0] if vectors.ndim == 1 else product

    def _matmat(self, block: Tensor) -> Tensor:
        with undisturbed(self._model, self.device):
            columns = [self._route.push(v.reshape(self.image.shape)) for v in block.detach().T]
        return torch.stack([column.detach() for column in columns], dim=1)

    def _rmatmat(self, block: Tensor) -> Tensor:
        with undisturbed(self._model, self.device):
            columns = [self._route.pull(u) for u in block.detach().T]
        return torch.stack([column.detach().reshape(-1) for column in columns], dim=1)

    def _fisher(self, block: Tensor) -> tuple[Tensor, Tensor]:
        self._jvps.add(block)
        self._vjps.add(block)
        responses = self._matmat(block)
        return self._rmatmat(responses), responses

    def to_dense(self) -> Tensor:
        """Return J, ``(m, n)``."""
        return self._matmat(torch.eye(self.shape[1], dtype=self.dtype, device=self.device))

    def as_linear_operator(self) -> LinearOperator:
        """Return J as a ``scipy.sparse.linalg.LinearOperator`` over NumPy arrays."""
        return scipy_operator(self.shape, self.dtype, self.device, self.matmat, self.rmatmat)
