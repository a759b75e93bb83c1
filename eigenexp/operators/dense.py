"""An operator for a Fisher matrix, or a Jacobian, already at hand."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators.base import Fisher, Jacobian

__all__ = ["DenseOperator"]


class DenseOperator(Fisher):
    """F as a matrix, with the interface of :class:`eigenexp.operators.FisherOperator`.

    Parameters
    ----------
    matrix
        ``(n, n)``, float32 or float64, symmetric and finite; positive semi-definite if it is to
        be a Fisher matrix (not checked: that costs an eigendecomposition). Copied.

    Raises
    ------
    InputError
        When the matrix is not square, not finite, or not symmetric within rounding.
    InputTypeError
        When it is no float32 or float64 tensor.
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = _checked(matrix, "matrix")
        n = matrix.shape[0]
        if matrix.shape != (n, n):
            raise InputError(f"matrix: expected a square matrix, got shape {tuple(matrix.shape)}")
        # JᵀJ computed in two orders of summation may differ by this much, and rarely does.
        slack = 10 * n * torch.finfo(matrix.dtype).eps * float(matrix.abs().max())
        skew = float((matrix - matrix.T).abs().max())
        if skew > slack:
            raise InputError(
                f"matrix: expected a symmetric matrix, got |F - Fᵀ| up to {skew:.3g}; "
                "pass (F + F.T) / 2, or use from_jacobian(J)"
            )
        self._setup(matrix, None, matrix)

    @classmethod
    def from_jacobian(cls, jacobian: Tensor) -> Self:
        """Return the operator of F = JᵀJ for ``jacobian`` of shape ``(m, n)``, copied."""
        self = cls.__new__(cls)
        own = DenseJacobian(_checked(jacobian, "jacobian"))
        self._setup(None, own, own)
        return self

    def _setup(
        self, matrix: Tensor | None, jacobian: DenseJacobian | None, like: Tensor | DenseJacobian
    ) -> None:
        super().__init__()
        self._matrix = matrix
        self._jacobian = jacobian
        n = like.shape[1]
        self.shape = (n, n)
        self.image_shape = (n,)
        self._rank_bound = min(like.shape)
        self.dtype = like.dtype
        self.device = like.device

    @property
    def rank_bound(self) -> int:
        """``min(m, n)``, or n for a bare matrix."""
        return self._rank_bound

    @property
    def start(self) -> None:
        """None: a bare matrix has no picture."""
        return None

    @property
    def jacobian(self) -> DenseJacobian:
        """J, for an operator made by :meth:`from_jacobian`.

        Raises
        ------
        InputError
            When the operator was made from F alone.
        """
        if self._jacobian is None:
            raise InputError(
                "jacobian: expected an operator made by from_jacobian, got one made from F alone"
            )
        return self._jacobian

    def to_dense(self) -> Tensor:
        """Return F, ``(n, n)``."""
        if self._matrix is None:
            jacobian = self.jacobian.to_dense()
            self._matrix = jacobian.T @ jacobian
        return self._matrix

    def _apply(self, block: Tensor, count: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._jacobian is None:
            return self.to_dense() @ block, None
        return self._jacobian._fisher(block, count)


class DenseJacobian(Jacobian):
    """J as a matrix, with the products of :class:`eigenexp.operators.JacobianOperator`."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self._matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.rank_bound = min(self.shape)
        self.image_shape = (matrix.shape[1],)
        self.dtype = matrix.dtype
        self.device = matrix.device

    @property
    def route(self) -> str:
        """``"dense"``: matrix products."""
        return "dense"

    def to_dense(self) -> Tensor:
        """Return J, ``(m, n)``."""
        return self._matrix

    def _matmat(self, block: Tensor) -> Tensor:
        return self._matrix @ block

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self._matrix.T @ block


def _checked(matrix: Any, name: str) -> Tensor:
    if not isinstance(matrix, Tensor) or matrix.dtype not in (torch.float32, torch.float64):
        got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise InputTypeError(f"{name}: expected a float32 or float64 tensor, got {got}")
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InputError(f"{name}: expected a non-empty matrix, got shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{name}: expected finite entries, got NaN or inf")
    return matrix.detach().clone()
