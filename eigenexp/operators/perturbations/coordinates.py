"""Linear maps right of J: from the coordinates that a solver works in to pictures, e = B z."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from eigenexp.errors import InputError

__all__ = ["Complement", "Coordinates", "Nested", "Placed", "Projected", "Scaled", "Selected"]


class Coordinates(abc.ABC):
    """B ``(n, n′)`` at one picture; the problem is BᵀFB.

    Attributes
    ----------
    shape
        Of z: ``(C, H, W)`` where it is a picture too, else ``(n′,)``.
    picture_shape
        Of B z.
    orthonormal
        Whether BᵀB = I, so that ‖e‖ = ‖z‖.
    is_picture
        Whether z is a picture whose pixels or frequencies are neighbours as B z's are, so that F
        looks to a solver as it does without B.
    """

    shape: tuple[int, ...]
    picture_shape: tuple[int, ...]
    orthonormal: bool = True
    is_picture: bool = False

    @property
    def size(self) -> int:
        """n′, the dimension of what is considered."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def embed(self, z: Tensor) -> Tensor:
        """Return B z for z of :attr:`shape`."""

    @abc.abstractmethod
    def adjoint(self, picture: Tensor) -> Tensor:
        """Return Bᵀ x for x of :attr:`picture_shape`."""

    def inverse(self, picture: Tensor) -> Tensor:
        """Return B⁺ x, the coordinates nearest to a picture."""
        return self.adjoint(picture)

    def dual(self, z: Tensor) -> Tensor:
        """Return (B⁺)ᵀ z."""
        return self.embed(z)

    def pictures(self, columns: Tensor) -> Tensor:
        """Return B Z as pictures ``(b, *picture_shape)`` for columns Z ``(n′, b)``."""
        return self._each(self.embed, columns, self.shape)

    def coordinates(self, columns: Tensor) -> Tensor:
        """Return B⁺ X, ``(n′, b)``, for pictures as columns ``(n, b)``."""
        return self._each(self.inverse, columns, self.picture_shape).flatten(1).mT

    def duals(self, columns: Tensor) -> Tensor:
        """Return (B⁺)ᵀ Z as columns ``(n, b)`` for columns Z ``(n′, b)``."""
        return self._each(self.dual, columns, self.shape).flatten(1).mT

    def adjoints(self, columns: Tensor) -> Tensor:
        """Return Bᵀ X, ``(n′, b)``, for pictures as columns ``(n, b)``."""
        return self._each(self.adjoint, columns, self.picture_shape).flatten(1).mT

    @staticmethod
    def _each(
        function: Callable[[Tensor], Tensor], columns: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        rows = columns.mT.contiguous().reshape(-1, *shape)
        return torch.stack([function(row) for row in rows])


class Selected(Coordinates):
    """Some of the values of a picture, in a fixed transform of it or as they are.

    Parameters
    ----------
    chosen
        ``(C, H, W)`` bool: which values.
    transform
        An orthonormal, symmetric map of pictures; None for the pixels themselves.
    """

    def __init__(self, chosen: Tensor, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self._places = chosen.reshape(-1).nonzero().flatten()
        self.picture_shape = tuple(chosen.shape)
        self.shape = (len(self._places),)
        self._transform = transform

    def embed(self, z: Tensor) -> Tensor:
        """Return the picture whose chosen values are z, the others 0."""
        empty = torch.zeros(math.prod(self.picture_shape), dtype=z.dtype, device=z.device)
        picture = empty.index_put((self._places,), z).reshape(self.picture_shape)
        return picture if self._transform is None else self._transform(picture)

    def adjoint(self, picture: Tensor) -> Tensor:
        """Return the chosen values."""
        values = picture if self._transform is None else self._transform(picture)
        return values.reshape(-1).index_select(0, self._places)


class Placed(Coordinates):
    """A rectangle of the picture: z is a smaller picture."""

    is_picture = True

    def __init__(
        self, picture_shape: tuple[int, ...], rows: tuple[int, int], columns: tuple[int, int]
    ) -> None:
        *channels, height, width = picture_shape
        self.picture_shape = picture_shape
        self.shape = (*channels, rows[1] - rows[0], columns[1] - columns[0])
        self._rows, self._columns = slice(*rows), slice(*columns)
        self._pad = (columns[0], width - columns[1], rows[0], height - rows[1])

    def embed(self, z: Tensor) -> Tensor:
        """Return z with zeros around it."""
        return torch.nn.functional.pad(z, self._pad)

    def adjoint(self, picture: Tensor) -> Tensor:
        """Return the rectangle."""
        return picture[..., self._rows, self._columns]


class Scaled(Coordinates):
    """B = D, one-to-one on pictures and not orthonormal: a metric.

    Parameters
    ----------
    picture_shape
        Of pictures.
    apply, undo
        D x and D⁻¹ x; both symmetric.
    smooth
        Whether D is a convolution, which F of a vision model is too.
    """

    orthonormal = False

    def __init__(
        self,
        picture_shape: tuple[int, ...],
        apply: Callable[[Tensor], Tensor],
        undo: Callable[[Tensor], Tensor],
        *,
        smooth: bool = False,
    ) -> None:
        self.shape = self.picture_shape = picture_shape
        self._apply, self._undo, self.is_picture = apply, undo, smooth

    def embed(self, z: Tensor) -> Tensor:
        """Return D z."""
        return self._apply(z)

    def adjoint(self, picture: Tensor) -> Tensor:
        """Return D x."""
        return self._apply(picture)

    def inverse(self, picture: Tensor) -> Tensor:
        """Return D⁻¹ x."""
        return self._undo(picture)

    def dual(self, z: Tensor) -> Tensor:
        """Return D⁻¹ z."""
        return self._undo(z)


class Projected(Coordinates):
    """B = P, the projection onto a subspace: what a subspace does to a picture of another map."""

    orthonormal = False

    def __init__(self, inner: Coordinates) -> None:
        self._inner = inner
        self.shape = self.picture_shape = inner.picture_shape

    def embed(self, z: Tensor) -> Tensor:
        """Return P z."""
        return self._inner.embed(self._inner.adjoint(z))

    def adjoint(self, picture: Tensor) -> Tensor:
        """Return P x."""
        return self.embed(picture)


class Nested(Coordinates):
    """B = B₁ B₂: the coordinates of ``outer`` are the pictures of ``inner``."""

    def __init__(self, outer: Coordinates, inner: Coordinates) -> None:
        self._outer, self._inner = outer, inner
        self.shape, self.picture_shape = inner.shape, outer.picture_shape
        self.orthonormal = outer.orthonormal and inner.orthonormal
        self.is_picture = outer.is_picture and inner.is_picture

    def embed(self, z: Tensor) -> Tensor:
        """Return B₁ B₂ z."""
        return self._outer.embed(self._inner.embed(z).reshape(self._outer.shape))

    def adjoint(self, picture: Tensor) -> Tensor:
        """Return B₂ᵀ B₁ᵀ x."""
        inside = self._outer.adjoint(picture).reshape(self._inner.picture_shape)
        return self._inner.adjoint(inside)

    def inverse(self, picture: Tensor) -> Tensor:
        """Return B₂⁺ B₁⁺ x."""
        inside = self._outer.inverse(picture).reshape(self._inner.picture_shape)
        return self._inner.inverse(inside)

    def dual(self, z: Tensor) -> Tensor:
        """Return (B₁⁺)ᵀ (B₂⁺)ᵀ z."""
        return self._outer.dual(self._inner.dual(z).reshape(self._outer.shape))


class Complement(Coordinates):
    """All that is orthogonal to some vectors, in orthonormal coordinates.

    The Householder reflections I − V T Vᵀ that take the vectors to the first axes take the rest of
    the axes to their complement: two products with ``(n, c)`` matrices.

    Parameters
    ----------
    vectors
        ``(n, c)``, linearly dependent or not.
    shape
        Of pictures of n values.

    Raises
    ------
    InputError
        When nothing is orthogonal to them.
    """

    def __init__(self, vectors: Tensor, shape: tuple[int, ...]) -> None:
        exact = vectors.to(torch.float64)
        left, sizes, _ = torch.linalg.svd(exact, full_matrices=False)
        independent = sizes > 1e-12 * float(sizes.max().clamp(min=1e-300))
        basis = left[:, independent]
        n, rank = basis.shape
        if rank >= n:
            raise InputError(
                f"perturbations: expected a constraint that leaves something, got one that leaves "
                f"none of {n} dimensions"
            )
        packed, tau = torch.geqrf(basis)
        mirrors = torch.tril(packed, -1)
        mirrors.diagonal().fill_(1)
        gram = torch.triu(mirrors.mT @ mirrors, 1)
        gram.diagonal().copy_(1 / tau.where(tau != 0, torch.ones_like(tau)))
        mirrors = mirrors * (tau != 0)
        # Compact WY (Schreiber and Van Loan 1989): T⁻¹ = striu(VᵀV) + diag(1/τ).
        self._mirrors = mirrors.to(vectors)
        self._weights = torch.linalg.inv(gram).to(vectors)
        self._rank = rank
        self.picture_shape, self.shape = shape, (n - rank,)

    def embed(self, z: Tensor) -> Tensor:
        """Return Q [0; z]."""
        whole = torch.nn.functional.pad(z, (self._rank, 0))
        picture = whole - self._mirrors @ (self._weights @ (whole @ self._mirrors))
        shaped: Tensor = picture.reshape(self.picture_shape)
        return shaped

    def adjoint(self, picture: Tensor) -> Tensor:
        """Return the last n − c values of Qᵀ x."""
        flat = picture.reshape(-1)
        turned = flat - self._mirrors @ ((flat @ self._mirrors) @ self._weights)
        kept: Tensor = turned[self._rank :]
        return kept
