"""The Fisher information F = JᵀJ as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.operators.base import Fisher
from eigenexp.operators.calling import Model
from eigenexp.operators.jacobian import JacobianOperator
from eigenexp.operators.noise.base import Noise
from eigenexp.operators.perturbations import Coordinates, Perturbations
from eigenexp.operators.starting import start_vectors

if TYPE_CHECKING:
    from eigenexp.operators.metric import MetricOperator

__all__ = ["FisherOperator"]


class FisherOperator(Fisher):
    """The Fisher information F of a model's response at a picture; JᵀJ where nothing else is said.

    With a ``noise``, F = (W J)ᵀ(W J): W is its linear factor at this response.

    Parameters
    ----------
    model
        The model, or a :class:`JacobianOperator` already made.
    image
        The picture; left out when ``model`` is a ``JacobianOperator``.
    route, chunk_size, check, allow_zero, recompute, compile, model_dtype, noise, perturbations
        As for :class:`JacobianOperator`.

    Attributes
    ----------
    shape
        ``(n, n)``.
    image_shape
        ``(C, H, W)``, the picture's shape without its leading 1.
    """

    def __init__(
        self,
        model: Model | JacobianOperator,
        image: Tensor | None = None,
        *,
        route: str = "auto",
        chunk_size: int | None = None,
        check: bool = True,
        allow_zero: bool = False,
        recompute: bool = False,
        compile: bool = False,
        model_dtype: torch.dtype | None = None,
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, JacobianOperator):
            if image is not None:
                raise InputError(
                    "image: expected none beside a JacobianOperator, which has its own; got one"
                )
            if noise is not None or perturbations is not None:
                raise InputError(
                    "noise, perturbations: expected none beside a JacobianOperator, which has its "
                    "own; got one"
                )
            self._jacobian = model
        else:
            if image is None:
                raise InputError("image: expected a picture tensor beside the model, got None")
            self._jacobian = JacobianOperator(
                model,
                image,
                route=route,
                chunk_size=chunk_size,
                check=check,
                allow_zero=allow_zero,
                recompute=recompute,
                compile=compile,
                model_dtype=model_dtype,
                noise=noise,
                perturbations=perturbations,
            )
        n = self.jacobian.shape[1]
        self.shape = (n, n)
        self.image_shape = self.jacobian.image_shape
        self.dtype = self.jacobian.dtype
        self.device = self.jacobian.device

    @staticmethod
    def from_metric(
        metric: Callable[[Tensor, Tensor], Any], image: Tensor, **options: Any
    ) -> MetricOperator:
        """Return ½ ∇² of a full-reference measure d(x, x₀) at x₀ as an operator like F.

        See :class:`~eigenexp.operators.metric.MetricOperator` for parameters and errors.
        """
        from eigenexp.operators.metric import MetricOperator

        return MetricOperator(metric, image, **options)

    @property
    def jacobian(self) -> JacobianOperator:
        """The operator of J. Products of F count there too."""
        return self._jacobian

    @property
    def rank_bound(self) -> int:
        """Upper bound of the rank of F: ``min(m, n)``, or less where the noise says so."""
        return self.jacobian.rank_bound

    @property
    def noise(self) -> Noise:
        """How the response varies."""
        return self.jacobian.noise

    @property
    def perturbations(self) -> Perturbations:
        """Which changes are considered."""
        return self.jacobian.perturbations

    @property
    def coordinates(self) -> Coordinates | None:
        """B, from the coordinates of vectors to pictures; None for the identity."""
        return self.jacobian.coordinates

    @property
    def route(self) -> str:
        """Name of the route of the Jacobian's products."""
        return self.jacobian.route

    @property
    def num_responses(self) -> int:
        """m, the number of response values."""
        return self.jacobian.shape[0]

    @property
    def product_eps(self) -> float:
        """Relative rounding of a product; see :attr:`JacobianOperator.product_eps`."""
        return self.jacobian.product_eps

    @property
    def work(self) -> int:
        """Multiplications of one product, counted; see :attr:`JacobianOperator.work`."""
        return self.jacobian.work

    @property
    def start(self) -> Tensor | None:
        """``(n, s)``: the picture and the constant image, flattened.

        Models with gain control hardly respond to changes along these two, so a search for the
        smallest eigenvalue does well to try them first. A constant picture leaves one column.
        """
        found = start_vectors(self.jacobian.image, self.coordinates)
        return found if found.shape[1] else None

    def to_dense(self) -> Tensor:
        """Return F, ``(n, n)``, from the dense Jacobian."""
        jacobian = self.jacobian.to_dense()
        return jacobian.T @ jacobian

    def _apply(self, block: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        return self.jacobian._fisher(block, count)
