"""Frozen linear maps left of J: W with WᵀW the information one response carries about another."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Dense", "Diagonal", "Factor", "LowRankRoot", "Pair", "Simplex", "Stacked", "join"]


class Factor(abc.ABC):
    """W ``(rows, m)``, fixed at one response; F = (W J)ᵀ(W J).

    Attributes
    ----------
    rows
        Values of W u.
    rank
        Upper bound of the rank of W.
    """

    rows: int
    rank: int

    @abc.abstractmethod
    def apply(self, vector: Tensor) -> Tensor:
        """Return W u, ``(rows,)``, for u ``(m,)``."""

    @abc.abstractmethod
    def adjoint(self, vector: Tensor) -> Tensor:
        """Return Wᵀ w, ``(m,)``, for w ``(rows,)``."""


class Diagonal(Factor):
    """W = diag(w): each response by itself, at the price of one multiplication a value."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.rows = self.rank = len(weights)

    def apply(self, vector: Tensor) -> Tensor:
        """Return w ⊙ u."""
        return vector * self.weights

    def adjoint(self, vector: Tensor) -> Tensor:
        """Return w ⊙ u."""
        return vector * self.weights


class Dense(Factor):
    """W as a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.rows, self.rank = len(matrix), min(matrix.shape)

    def apply(self, vector: Tensor) -> Tensor:
        """Return W u."""
        product: Tensor = self.matrix @ vector
        return product

    def adjoint(self, vector: Tensor) -> Tensor:
        """Return Wᵀ w."""
        product: Tensor = vector @ self.matrix
        return product


class LowRankRoot(Factor):
    """W = (I + Q diag(g) Qᵀ) diag(d)^{-1/2} with WᵀW = (diag(d) + U Uᵀ)⁻¹.

    With diag(d)^{-1/2} U = Q S Pᵀ, (I + Q S² Qᵀ)^{-1/2} = I + Q ((1 + S²)^{-1/2} − 1) Qᵀ: the root
    that goes with Woodbury's inverse, at a price of 2 m r a product.
    """

    def __init__(self, diagonal: Tensor, columns: Tensor) -> None:
        self._scale = diagonal.rsqrt()
        left, sizes, _ = torch.linalg.svd(columns * self._scale[:, None], full_matrices=False)
        # (1 + s²)^{-1/2} − 1 without cancellation where s is small.
        root = (1 + sizes.square()).sqrt()
        self._left, self._gains = left, -sizes.square() / (root * (1 + root))
        self.rows = self.rank = len(diagonal)

    def to(self, like: Tensor) -> LowRankRoot:
        """Return it in the dtype and on the device of ``like``."""
        moved = object.__new__(LowRankRoot)
        moved._scale, moved._left = self._scale.to(like), self._left.to(like)
        moved._gains, moved.rows, moved.rank = self._gains.to(like), self.rows, self.rank
        return moved

    def _root(self, vector: Tensor) -> Tensor:
        root: Tensor = vector + self._left @ (self._gains * (vector @ self._left))
        return root

    def apply(self, vector: Tensor) -> Tensor:
        """Return W u."""
        return self._root(vector * self._scale)

    def adjoint(self, vector: Tensor) -> Tensor:
        """Return Wᵀ w."""
        return self._root(vector) * self._scale


class Simplex(Factor):
    """W = H (diag(w) − a pᵀ) for one probability vector p: m values, m − 1 rows.

    2√p moves on a sphere, so its derivative has no part along √p. H is the reflection that takes
    √p to a coordinate axis, that coordinate left out: the rank C − 1 is then seen from the shape.

    Parameters
    ----------
    probabilities
        ``(groups, C)``, positive, each row of sum 1.
    of_logits
        Whether u is a change of logits (w = √p, a = √p) or of probabilities (w = 1/√p, a = 0).
    """

    def __init__(self, probabilities: Tensor, *, of_logits: bool) -> None:
        p = probabilities
        roots = p.sqrt()
        self._p = p if of_logits else None
        self._weights = roots if of_logits else roots.reciprocal()
        # The likeliest class is the axis: there the reflection's vector is longest.
        groups, classes = p.shape
        axis = p.argmax(dim=1)
        mirror = roots.clone()
        mirror[torch.arange(groups, device=p.device), axis] += 1
        self._mirror = mirror / mirror.norm(dim=1, keepdim=True)
        every = torch.arange(classes, device=p.device).expand(groups, classes)
        kept = every[every != axis[:, None]].reshape(groups, classes - 1)
        offsets = torch.arange(groups, device=p.device)[:, None] * classes
        self._kept = (kept + offsets).reshape(-1)
        self._shape = (groups, classes)
        self.rows = self.rank = groups * (classes - 1)

    def _reflect(self, rows: Tensor) -> Tensor:
        along: Tensor = (rows * self._mirror).sum(dim=1, keepdim=True)
        reflected: Tensor = rows - 2 * self._mirror * along
        return reflected

    def apply(self, vector: Tensor) -> Tensor:
        """Return W u."""
        rows = vector.reshape(self._shape)
        if self._p is not None:
            rows = rows - (rows * self._p).sum(dim=1, keepdim=True)
        return self._reflect(rows * self._weights).reshape(-1).index_select(0, self._kept)

    def adjoint(self, vector: Tensor) -> Tensor:
        """Return Wᵀ w."""
        groups, classes = self._shape
        empty = torch.zeros(groups * classes, dtype=vector.dtype, device=vector.device)
        whole = empty.index_put((self._kept,), vector)
        rows = self._reflect(whole.reshape(self._shape)) * self._weights
        if self._p is not None:
            rows = rows - self._p * rows.sum(dim=1, keepdim=True)
        return rows.reshape(-1)


class Pair(Factor):
    """W by two functions, W u and Wᵀ w, of rank at most ``rank``."""

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        rows: int,
        rank: int,
    ) -> None:
        self._apply, self._adjoint = apply, adjoint
        self.rows, self.rank = rows, min(rank, rows)

    def apply(self, vector: Tensor) -> Tensor:
        """Return W u."""
        return self._apply(vector)

    def adjoint(self, vector: Tensor) -> Tensor:
        """Return Wᵀ w."""
        return self._adjoint(vector)


class Stacked(Factor):
    """Factors of the same response, one above the other: W = [W₁; W₂; …]."""

    def __init__(self, parts: Sequence[Factor], size: int) -> None:
        self._parts = list(parts)
        self.rows = sum(part.rows for part in parts)
        self.rank = min(size, self.rows)

    def apply(self, vector: Tensor) -> Tensor:
        """Return W u."""
        return torch.cat([part.apply(vector) for part in self._parts])

    def adjoint(self, vector: Tensor) -> Tensor:
        """Return Wᵀ w."""
        pieces = torch.split(vector, [part.rows for part in self._parts])
        found = [part.adjoint(piece) for part, piece in zip(self._parts, pieces, strict=True)]
        return torch.stack(found).sum(dim=0)


class _Beside(Factor):
    """Factors of several pictures' responses, one after another: a block-diagonal W."""

    def __init__(self, parts: Sequence[Factor], size: int) -> None:
        self._parts, self._size = list(parts), size
        self.rows = sum(part.rows for part in parts)
        self.rank = sum(part.rank for part in parts)

    def apply(self, vector: Tensor) -> Tensor:
        pieces = torch.split(vector, self._size)
        return torch.cat([p.apply(v) for p, v in zip(self._parts, pieces, strict=True)])

    def adjoint(self, vector: Tensor) -> Tensor:
        pieces = torch.split(vector, [part.rows for part in self._parts])
        return torch.cat([p.adjoint(v) for p, v in zip(self._parts, pieces, strict=True)])


def join(factors: Sequence[Factor | None], size: int) -> Factor | None:
    """Return the factor of several responses of ``size`` values, one after another.

    None stands for the identity; where all are, so is the result.
    """
    there = [factor for factor in factors if factor is not None]
    if not there:
        return None
    if len(there) != len(factors):
        raise ValueError("factors: expected all of them, or none")
    if len(there) == 1:
        return there[0]
    diagonals = [factor.weights for factor in there if isinstance(factor, Diagonal)]
    if len(diagonals) == len(there):
        return Diagonal(torch.cat(diagonals))
    return _Beside(there, size)
