"""Blocks of columns at the public door: shape, dtype and device checks, counts, SciPy's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["ColumnCounter", "as_columns", "scipy_operator"]


def as_columns(
    vectors: Any, length: int, dtype: torch.dtype, device: torch.device, name: str
) -> Tensor:
    """Return ``vectors`` as ``(length, b)`` after checking it; ``(length,)`` becomes one column.

    Raises
    ------
    InputTypeError
        When it is no tensor, or of another dtype.
    InputError
        When its shape or device differs.
    """
    if not isinstance(vectors, Tensor):
        raise InputTypeError(f"{name}: expected a tensor, got {type(vectors).__name__}")
    if vectors.ndim not in (1, 2) or vectors.shape[0] != length:
        raise InputError(
            f"{name}: expected shape ({length},) or ({length}, b), got {tuple(vectors.shape)}"
        )
    if vectors.dtype != dtype:
        raise InputTypeError(f"{name}: expected {dtype}, got {vectors.dtype}")
    if vectors.device != device:
        raise InputError(f"{name}: expected a tensor on {device}, got one on {vectors.device}")
    return vectors if vectors.ndim == 2 else vectors[:, None]


class ColumnCounter:
    """Counts columns that are not all zero (zeros are padding), without waiting for a device.

    The count is kept on the vectors' own device and read only when somebody asks.
    """

    def __init__(self) -> None:
        self._read = 0
        self._unread: Tensor | None = None

    def add(self, block: Tensor) -> None:
        """Count the non-zero columns of ``block`` ``(n, b)``."""
        with torch.no_grad():
            new = (block != 0).any(dim=0).sum()
            self._unread = new if self._unread is None else self._unread + new

    @property
    def count(self) -> int:
        """Columns counted so far."""
        if self._unread is not None:
            self._read += int(self._unread)
            self._unread = None
        return self._read


def scipy_operator(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    matmat: Callable[[Tensor], Tensor],
    rmatmat: Callable[[Tensor], Tensor],
) -> LinearOperator:
    """Wrap two block products as a SciPy ``LinearOperator`` over NumPy arrays.

    SciPy is imported here, only when asked for.
    """
    from scipy.sparse.linalg import LinearOperator

    def over_arrays(product: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        def apply(array: Any) -> Any:
            block = torch.as_tensor(array).to(dtype=dtype, device=device)
            return product(block).detach().cpu().numpy()

        return apply

    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    forward, adjoint = over_arrays(matmat), over_arrays(rmatmat)

    def column(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda vector: product(vector.reshape(-1, 1))[:, 0]

    return LinearOperator(
        shape=shape,
        dtype=numpy_dtype,
        matvec=column(forward),
        rmatvec=column(adjoint),
        matmat=forward,
        rmatmat=adjoint,
    )
