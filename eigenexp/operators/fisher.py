"""The Fisher information F = JᵀJ as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.operators.columns import ColumnCounter, as_columns, scipy_operator
from eigenexp.operators.jacobian import JacobianOperator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["FisherOperator"]


class FisherOperator:
    """F = JᵀJ of a model at a picture: for Gaussian noise, the Fisher information of its response.

    Parameters
    ----------
    model
        The model, or a :class:`JacobianOperator` already made.
    image
        The picture; left out when ``model`` is a ``JacobianOperator``.
    route, chunk_size, check
        As for :class:`JacobianOperator`.

    Attributes
    ----------
    jacobian
        The operator of J.
    shape
        ``(n, n)``.
    image_shape
        ``(C, H, W)``, the picture's shape without its leading 1.
    rank_bound
        ``min(m, n)``, no less than the rank of F.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any] | JacobianOperator,
        image: Tensor | None = None,
        *,
        route: str = "auto",
        chunk_size: int | None = None,
        check: bool = True,
    ) -> None:
        if isinstance(model, JacobianOperator):
            if image is not None:
                raise InputError(
                    "image: expected none beside a JacobianOperator, which has its own; got one"
                )
            self.jacobian = model
        else:
            if image is None:
                raise InputError("image: expected a picture tensor beside the model, got None")
            self.jacobian = JacobianOperator(
                model, image, route=route, chunk_size=chunk_size, check=check
            )
        m, n = self.jacobian.shape
        self.shape = (n, n)
        self.rank_bound = min(m, n)
        self.image_shape = self.jacobian.image_shape
        self.dtype = self.jacobian.dtype
        self.device = self.jacobian.device
        self._counter = ColumnCounter()

    @property
    def route(self) -> str:
        """Name of the route of the Jacobian's products."""
        return self.jacobian.route

    @property
    def num_products(self) -> int:
        """Columns of F·V computed so far; all-zero columns (padding) are not counted."""
        return self._counter.count

    @property
    def start(self) -> Tensor:
        """``(n, s)``: the picture and the constant image, flattened.

        Models with gain control hardly respond to changes along these two, so a search for the
        smallest eigenvalue does well to try them first. A picture that is constant gives one.
        """
        picture = self.jacobian.image.reshape(-1, 1)
        constant = torch.ones_like(picture)
        if bool((picture == picture[0]).all()):
            return constant
        return torch.cat([picture, constant], dim=1)

    def apply(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(F V, J V)``, ``(n, b)`` and ``(m, b)``, for ``block`` V of shape ``(n, b)``."""
        as_columns(block, self.shape[1], self.dtype, self.device, "block")
        if block.ndim != 2:
            raise InputError(f"block: expected ({self.shape[1]}, b), got {tuple(block.shape)}")
        self._counter.add(block)
        return self.jacobian._fisher(block)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return F·V for ``(n,)`` or ``(n, b)``, in the same shape."""
        columns = as_columns(vectors, self.shape[1], self.dtype, self.device, "vectors")
        return self.apply(columns)[0].reshape(vectors.shape)

    def to_dense(self) -> Tensor:
        """Return F, ``(n, n)``, from the dense Jacobian."""
        jacobian = self.jacobian.to_dense()
        return jacobian.T @ jacobian

    def as_linear_operator(self) -> LinearOperator:
        """Return F as a ``scipy.sparse.linalg.LinearOperator`` over NumPy arrays."""
        return scipy_operator(self.shape, self.dtype, self.device, self.__matmul__, self.__matmul__)
