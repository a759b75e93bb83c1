"""One way to compute J·v and Jᵀ·u."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from eigenexp.errors import ModelError
from eigenexp.operators.precision import CoarseStep

__all__ = ["Product", "Route", "RouteError"]

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Route:
    """One way to compute products, linearised at a picture.

    Attributes
    ----------
    name
        A key of ``ROUTES``.
    push, pull
        J·v ``(m,)`` for v in the picture's shape, and Jᵀ·u in the picture's shape for u ``(m,)``.
    response
        ``(m,)``.
    running
        The context products are computed in.
    width
        Largest number of values in an intermediate result, where a column batch may be tried;
        0 where columns must go one by one.
    costs
        Relative cost of one ``push`` and one ``pull``.
    num_products
        Products spent on making it.
    taped
        Whether the products are tapes: pure functions that never see the model.
    repeatable
        Whether the same product, computed twice, was the same bit for bit.
    coarse
        The model's own step in a lower precision than the picture's that its products show.
    work
        Multiplications of one forward pass, counted.
    references
        ``push`` and ``pull`` by autograd, for a tape to be checked against.
    """

    name: str
    push: Product
    pull: Product
    response: Tensor
    running: Callable[[], AbstractContextManager[object]]
    width: int = 0
    costs: tuple[float, float] = (1.0, 1.0)
    num_products: int = 0
    taped: bool = False
    repeatable: bool = True
    coarse: CoarseStep | None = None
    work: int = 0
    references: tuple[Product | None, Product | None] = field(default=(None, None), repr=False)


class RouteError(ModelError):
    """A route that this model does not allow."""
