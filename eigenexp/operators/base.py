"""What all operators share: checks at the public door, counts, SciPy's words.

Public methods check shape, dtype and device, and count; ``_matmat`` and its like compute.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators.noise.base import Noise
from eigenexp.operators.noise.gaussian import Gaussian
from eigenexp.operators.perturbations import Coordinates, Everything, Perturbations
from eigenexp.operators.protocol import Problem, Request

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["Adjoint", "ColumnCounter", "Fisher", "Jacobian"]


def count_columns(block: Tensor) -> Tensor:
    """Return the number of columns of ``block`` ``(n, b)`` that are not all zero, on its device."""
    return block.any(dim=0).sum()


class ColumnCounter:
    """Adds up counts that are still on a device, without waiting for it before somebody asks."""

    def __init__(self) -> None:
        self._read = 0
        self._unread: list[Tensor] = []

    def add(self, count: Tensor | int) -> None:
        """Add a count."""
        if isinstance(count, int):
            self._read += count
            return
        self._unread.append(count)
        if len(self._unread) > 1000:
            self._unread = [torch.stack(self._unread).sum()]

    @property
    def count(self) -> int:
        """The sum so far."""
        self._read += sum(int(count) for count in self._unread)
        self._unread = []
        return self._read


class _Operator(abc.ABC):
    """Sizes and the checks of vectors handed in."""

    shape: tuple[int, int]
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def _columns(self, vectors: Any, length: int, name: str) -> Tensor:
        """Return ``vectors`` as ``(length, b)`` after checking it; ``(length,)`` is one column."""
        if not isinstance(vectors, Tensor):
            raise InputTypeError(f"{name}: expected a tensor, got {type(vectors).__name__}")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != length or vectors.numel() == 0:
            raise InputError(
                f"{name}: expected shape ({length},) or ({length}, b), got {tuple(vectors.shape)}"
            )
        if vectors.dtype != self.dtype:
            raise InputTypeError(
                f"{name}: expected the operator's {self.dtype}, got {vectors.dtype}; "
                f"convert with .to({self.dtype})"
            )
        if vectors.device != self.device:
            raise InputError(
                f"{name}: expected a tensor on the operator's device {self.device}, got one on "
                f"{vectors.device}; move it with .to('{self.device}')"
            )
        columns = vectors.detach()
        return columns if columns.ndim == 2 else columns[:, None]

    def _block(self, block: Any, length: int, name: str) -> Tensor:
        if isinstance(block, Tensor) and block.ndim != 2:
            raise InputError(f"{name}: expected shape ({length}, b), got {tuple(block.shape)}")
        return self._columns(block, length, name)

    def _over_arrays(
        self, matmat: Callable[[Tensor], Tensor], rmatmat: Callable[[Tensor], Tensor]
    ) -> LinearOperator:
        from scipy.sparse.linalg import LinearOperator

        def wrap(product: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
            def apply(array: Any) -> Any:
                vectors = torch.as_tensor(array).to(dtype=self.dtype, device=self.device)
                return product(vectors.reshape(len(vectors), -1)).cpu().numpy()

            return apply

        forward, adjoint = wrap(matmat), wrap(rmatmat)
        return LinearOperator(
            shape=self.shape,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
            matvec=lambda vector: forward(vector)[:, 0],
            rmatvec=lambda vector: adjoint(vector)[:, 0],
            matmat=forward,
            rmatmat=adjoint,
        )


class Jacobian(_Operator):
    """J ``(m, n)`` as an operator; subclasses compute the products.

    Attributes
    ----------
    rank_bound
        Upper bound of the rank of J.
    """

    rank_bound: int

    def __init__(self) -> None:
        self._jvps = ColumnCounter()
        self._vjps = ColumnCounter()

    @property
    @abc.abstractmethod
    def route(self) -> str:
        """Name of the way products are computed."""

    @property
    def num_jvp(self) -> int:
        """Columns of J·V computed so far; all-zero columns (padding) are not counted."""
        return self._jvps.count

    @property
    def num_vjp(self) -> int:
        """Columns of Jᵀ·U computed so far; all-zero columns (padding) are not counted."""
        return self._vjps.count

    def matmat(self, block: Tensor) -> Tensor:
        """Return J·V, ``(m, b)``, for ``block`` V of shape ``(n, b)``."""
        block = self._block(block, self.shape[1], "block")
        self._jvps.add(count_columns(block))
        return self._matmat(block)

    def rmatmat(self, block: Tensor) -> Tensor:
        """Return Jᵀ·U, ``(n, b)``, for ``block`` U of shape ``(m, b)``."""
        block = self._block(block, self.shape[0], "block")
        self._vjps.add(count_columns(block))
        return self._rmatmat(block)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return J·V: ``(m,)`` for ``(n,)``, ``(m, b)`` for ``(n, b)``."""
        product = self.matmat(self._columns(vectors, self.shape[1], "vectors"))
        return product[:, 0] if vectors.ndim == 1 else product

    @property
    def T(self) -> Adjoint:  # noqa: N802 - the name tensors and arrays use
        """Jᵀ as an operator."""
        return Adjoint(self)

    adjoint = T

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """Return J, ``(m, n)``."""

    def as_linear_operator(self) -> LinearOperator:
        """Return J as a ``scipy.sparse.linalg.LinearOperator`` over NumPy arrays."""
        return self._over_arrays(self.matmat, self.rmatmat)

    def _fisher(self, block: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(JᵀJ V, J V)`` for a checked block of ``count`` columns."""
        self._jvps.add(count)
        self._vjps.add(count)
        return self._products(block)

    def _products(self, block: Tensor) -> tuple[Tensor, Tensor]:
        responses = self._matmat(block)
        return self._rmatmat(responses), responses

    @abc.abstractmethod
    def _matmat(self, block: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _rmatmat(self, block: Tensor) -> Tensor: ...


class Adjoint:
    """Jᵀ ``(n, m)``: the products of J with their roles exchanged."""

    def __init__(self, jacobian: Jacobian) -> None:
        self.T = self.adjoint = jacobian
        self.shape = (jacobian.shape[1], jacobian.shape[0])
        self.dtype = jacobian.dtype
        self.device = jacobian.device

    def matmat(self, block: Tensor) -> Tensor:
        """Return Jᵀ·U, ``(n, b)``, for ``block`` U of shape ``(m, b)``."""
        return self.T.rmatmat(block)

    def rmatmat(self, block: Tensor) -> Tensor:
        """Return J·V, ``(m, b)``, for ``block`` V of shape ``(n, b)``."""
        return self.T.matmat(block)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return Jᵀ·U: ``(n,)`` for ``(m,)``, ``(n, b)`` for ``(m, b)``."""
        product = self.matmat(self.T._columns(vectors, self.shape[1], "vectors"))
        return product[:, 0] if vectors.ndim == 1 else product

    def to_dense(self) -> Tensor:
        """Return Jᵀ, ``(n, m)``."""
        return self.T.to_dense().T


class Fisher(_Operator):
    """F ``(n, n)``, symmetric, as an operator; subclasses compute the products."""

    @property
    @abc.abstractmethod
    def rank_bound(self) -> int:
        """Upper bound of the rank of F."""

    def __init__(self) -> None:
        self._counter = ColumnCounter()

    @property
    @abc.abstractmethod
    def start(self) -> Tensor | None:
        """``(n, s)`` vectors worth trying first at the bottom of the spectrum, or None."""

    @property
    @abc.abstractmethod
    def jacobian(self) -> Jacobian:
        """J, with F = JᵀJ.

        Raises
        ------
        InputError
            When F is all there is.
        """

    @property
    def product_eps(self) -> float:
        """Relative rounding of a product: residuals below a few times it · λmax say nothing."""
        return torch.finfo(self.dtype).eps

    @property
    def work(self) -> int | None:
        """Multiplications of one product, counted; None where they are not known."""
        return None

    @property
    def noise(self) -> Noise:
        """How the response varies: for F = JᵀJ, independent Gaussian noise of std 1."""
        return Gaussian()

    @property
    def perturbations(self) -> Perturbations:
        """Which changes are considered."""
        return Everything()

    @property
    def coordinates(self) -> Coordinates | None:
        """B, from the coordinates of vectors to pictures; None for the identity."""
        return None

    @property
    def problem(self) -> Problem:
        """Everything a solver must know beside the products."""
        return Problem(
            image_shape=self.image_shape if self.coordinates is None else self.coordinates.shape,
            rank_bound=self.rank_bound,
            dtype=self.dtype,
            device=self.device,
            start=self.start,
            product_eps=self.product_eps,
            work=self.work,
            noise=str(self.noise),
            perturbations=str(self.perturbations),
            embedding=self.coordinates,
        )

    @property
    def num_products(self) -> int:
        """Columns of F·V computed so far; all-zero columns (padding) are not counted."""
        return self._counter.count

    def apply(self, block: Tensor, request: Request = "fisher") -> tuple[Tensor, Tensor | None]:
        """Return ``(F V, J V)`` for ``block`` V of shape ``(n, b)``.

        ``F V`` is ``(n, b)``; ``J V`` is ``(m, b)``, or None where there is no J. ``request`` asks
        for products with J alone, see :class:`~eigenexp.operators.protocol.FisherLike`; those are
        counted by :attr:`jacobian`.
        """
        if request == "jacobian":
            return self.jacobian.matmat(block), None
        if request == "adjoint":
            return self.jacobian.rmatmat(block), None
        block = self._block(block, self.shape[1], "block")
        count = count_columns(block)
        self._counter.add(count)
        return self._apply(block, count)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return F·V for V of shape ``(n,)`` or ``(n, b)``, in the same shape."""
        product, _ = self.apply(self._columns(vectors, self.shape[1], "vectors"))
        return product.reshape(vectors.shape)

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """Return F, ``(n, n)``."""

    def as_linear_operator(self) -> LinearOperator:
        """Return F as a ``scipy.sparse.linalg.LinearOperator`` over NumPy arrays."""
        return self._over_arrays(self.__matmul__, self.__matmul__)

    @abc.abstractmethod
    def _apply(self, block: Tensor, count: Tensor) -> tuple[Tensor, Tensor | None]: ...
