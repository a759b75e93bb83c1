"""An operator for a Fisher matrix, or a Jacobian, already at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators.columns import ColumnCounter, as_columns, scipy_operator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["DenseOperator"]


class DenseOperator:
    """F as a matrix, with the interface of :class:`eigenexp.operators.FisherOperator`.

    Parameters
    ----------
    matrix
        ``(n, n)``, float32 or float64, symmetric and finite; positive semi-definite if it is to
        be a Fisher matrix (not checked: that costs an eigendecomposition).

    Raises
    ------
    InputError
        When the matrix is not square, not finite, or not symmetric within rounding.
    InputTypeError
        When it is not a float32 or float64 tensor.
    """

    def __init__(self, matrix: Tensor) -> None:
        _check_matrix(matrix, "matrix")
        n = matrix.shape[0]
        if matrix.shape != (n, n):
            raise InputError(f"matrix: expected a square matrix, got shape {tuple(matrix.shape)}")
        matrix = matrix.detach().clone()
        # Products of n terms that should agree may differ by about n·eps of the largest entry.
        slack = 10 * n * torch.finfo(matrix.dtype).eps * float(matrix.abs().max())
        skew = float((matrix - matrix.T).abs().max())
        if skew > slack:
            raise InputError(
                f"matrix: expected a symmetric matrix, got |F - Fᵀ| up to {skew:.3g}; "
                "pass (F + Fᵀ) / 2, or from_jacobian(J)"
            )
        self._matrix: Tensor | None = matrix
        self._dense_jacobian: Tensor | None = None
        self._jacobian: _DenseJacobian | None = None
        self._setup(n, n, matrix)

    @classmethod
    def from_jacobian(cls, jacobian: Tensor) -> Self:
        """Return the operator of F = JᵀJ for ``jacobian`` of shape ``(m, n)``."""
        _check_matrix(jacobian, "jacobian")
        self = cls.__new__(cls)
        self._matrix = None
        self._dense_jacobian = jacobian.detach().clone()
        self._jacobian = _DenseJacobian(self._dense_jacobian)
        self._setup(jacobian.shape[1], min(jacobian.shape), jacobian)
        return self

    def _setup(self, n: int, rank_bound: int, like: Tensor) -> None:
        self.shape = (n, n)
        self.image_shape: tuple[int, ...] = (n,)
        self.dtype = like.dtype
        self.device = like.device
        self.rank_bound = rank_bound
        self.start: Tensor | None = None
        self._counter = ColumnCounter()

    @property
    def jacobian(self) -> _DenseJacobian:
        """J, for an operator made by :meth:`from_jacobian`."""
        if self._jacobian is None:
            raise InputError(
                "jacobian: expected an operator made by from_jacobian, got one made from F alone"
            )
        return self._jacobian

    @property
    def num_products(self) -> int:
        """Columns of F·V computed so far, all-zero ones apart."""
        return self._counter.count

    def apply(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``(F V, J V)`` for ``block`` V of shape ``(n, b)``; ``J V`` is None without J."""
        as_columns(block, self.shape[1], self.dtype, self.device, "block")
        if block.ndim != 2:
            raise InputError(f"block: expected ({self.shape[1]}, b), got {tuple(block.shape)}")
        self._counter.add(block)
        if self._dense_jacobian is None:
            return self.to_dense() @ block, None
        responses = self._dense_jacobian @ block
        return self._dense_jacobian.T @ responses, responses

    def __matmul__(self, vectors: Tensor) -> Tensor:
        columns = as_columns(vectors, self.shape[1], self.dtype, self.device, "vectors")
        return self.apply(columns)[0].reshape(vectors.shape)

    def to_dense(self) -> Tensor:
        """Return F, ``(n, n)``."""
        if self._matrix is None:
            jacobian = self.jacobian.to_dense()
            self._matrix = jacobian.T @ jacobian
        return self._matrix

    def as_linear_operator(self) -> LinearOperator:
        """Return F as a ``scipy.sparse.linalg.LinearOperator``."""
        return scipy_operator(self.shape, self.dtype, self.device, self.__matmul__, self.__matmul__)


class _DenseJacobian:
    """J as a matrix, with the products of ``JacobianOperator``."""

    route = "dense"

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.image_shape = (matrix.shape[1],)
        self.dtype = matrix.dtype
        self.device = matrix.device
        self._jvps = ColumnCounter()
        self._vjps = ColumnCounter()

    @property
    def num_jvp(self) -> int:
        return self._jvps.count

    @property
    def num_vjp(self) -> int:
        return self._vjps.count

    def matmat(self, block: Tensor) -> Tensor:
        columns = as_columns(block, self.shape[1], self.dtype, self.device, "block")
        self._jvps.add(columns)
        return self._matrix @ columns

    def rmatmat(self, block: Tensor) -> Tensor:
        columns = as_columns(block, self.shape[0], self.dtype, self.device, "block")
        self._vjps.add(columns)
        return self._matrix.T @ columns

    def __matmul__(self, vectors: Tensor) -> Tensor:
        product = self.matmat(vectors)
        return product[:, 0] if vectors.ndim == 1 else product

    def to_dense(self) -> Tensor:
        return self._matrix


def _check_matrix(matrix: Any, name: str) -> None:
    if not isinstance(matrix, Tensor) or matrix.dtype not in (torch.float32, torch.float64):
        got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise InputTypeError(f"{name}: expected a float32 or float64 tensor, got {got}")
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InputError(f"{name}: expected a non-empty matrix, got shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{name}: expected finite entries, got NaN or inf")
