"""What a solver is driven with: products, and one value that says everything else about them.

An operator keeps :class:`FisherLike`: its :attr:`~FisherLike.problem` and its products. Whatever
stands between an operator and a solver (another dtype, other vectors to try first, the first
products by another route) hands the problem on as ``dataclasses.replace(operator.problem, …)``, so
that nothing is forgotten: :class:`Problem` has no defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from eigenexp.operators.noise.gaussian import Gaussian
from eigenexp.operators.perturbations import Coordinates, Everything

__all__ = ["FisherLike", "Problem", "Request"]

Request = Literal["fisher", "jacobian", "adjoint"]
"""Which product: F·V, J·V or Jᵀ·U."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a solver must know of F before the first product.

    Attributes
    ----------
    image_shape
        Shape of one vector seen as a picture: ``(C, H, W)``, or ``(n,)``. Where not every change
        is considered, of the coordinates.
    rank_bound
        Upper bound of the rank of F; n where none is known.
    dtype, device
        Of the vectors and of the products.
    start
        ``(n, s)``: vectors worth trying first at the bottom of the spectrum, or None.
    product_eps
        Relative rounding of a product: ``torch.finfo(dtype).eps`` or, where the model computes in
        a lower precision, more. No residual below a few times ``product_eps`` · λmax says anything.
    work
        Multiplications of one product, counted; None where they are not known. A solver begins
        nothing that costs more than the products it may save.
    noise
        The noise model that F is of, in words: ``"gaussian(std=1.0)"`` for F = JᵀJ.
    perturbations
        The changes considered, in words: ``"everything"`` where all are.
    embedding
        B, from the coordinates that vectors are of to pictures; None where they are pictures.
    """

    image_shape: tuple[int, ...]
    rank_bound: int
    dtype: torch.dtype
    device: torch.device
    start: Tensor | None
    product_eps: float
    work: int | None
    noise: str
    perturbations: str
    embedding: Coordinates | None

    @classmethod
    def of_size(cls, image_shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
        """Return what is known of F before there is an operator: nothing but its size.

        Enough to check settings, and to read a solver's state; on the CPU.
        """
        return cls(
            image_shape=tuple(image_shape),
            rank_bound=math.prod(image_shape),
            dtype=dtype,
            device=torch.device("cpu"),
            start=None,
            product_eps=torch.finfo(dtype).eps if dtype.is_floating_point else 0.0,
            work=None,
            noise=str(Gaussian()),
            perturbations=str(Everything()),
            embedding=None,
        )

    @property
    def n(self) -> int:
        """Order of F: the number of picture values, or the dimension of what is considered."""
        return math.prod(self.image_shape)

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Shape of one change of the picture."""
        return self.image_shape if self.embedding is None else self.embedding.picture_shape

    def told(self) -> dict[str, str]:
        """Return what a record says of F beside model and picture."""
        return {"noise": self.noise, "perturbations": self.perturbations}

    def as_settings(self) -> dict[str, Any]:
        """Return the keyword arguments that every eigensolver takes beside n."""
        return {
            "image_shape": self.image_shape,
            "rank_bound": self.rank_bound,
            "dtype": self.dtype,
            "device": self.device,
            "start": self.start,
            "product_eps": self.product_eps,
            "work": self.work,
            "embedding": self.embedding,
        }


class FisherLike(Protocol):
    """F as solvers take it: what it is, and its products.

    Kept by :class:`~eigenexp.operators.FisherOperator`,
    :class:`~eigenexp.operators.AverageFisherOperator`, :class:`~eigenexp.operators.DenseOperator`
    and each picture of a :class:`~eigenexp.operators.BatchedFisherOperator`.
    """

    @property
    def problem(self) -> Problem:
        """Everything but the products."""

    def apply(self, block: Tensor, request: Request = "fisher") -> tuple[Tensor, Tensor | None]:
        """Return the products of a block, and the responses J·V where they are at hand.

        Parameters
        ----------
        block
            V ``(n, b)``; U ``(m, b)`` for ``"adjoint"``.
        request
            ``"fisher"``: ``(F V, J V)``, or ``(F V, None)`` where there is no J. ``"jacobian"``:
            ``(J V, None)``. ``"adjoint"``: ``(Jᵀ U, None)``.

        Raises
        ------
        InputError
            When there is no J to multiply with, or the block does not fit.
        """
