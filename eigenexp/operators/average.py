"""The Fisher information averaged over pictures, F̄ = 1/P Σ JᵢᵀJᵢ: for universal distortions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputError
from eigenexp.operators.base import Fisher, Jacobian
from eigenexp.operators.calling import Model, copy_image
from eigenexp.operators.fisher import FisherOperator
from eigenexp.operators.noise.base import Noise
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Coordinates, Perturbations, coordinates_at
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.operators.starting import start_vectors

__all__ = ["AverageFisherOperator"]


class AverageFisherOperator(Fisher):
    """F̄ = 1/P Σ JᵢᵀJᵢ over P pictures; its eigenvectors are distortions common to all of them.

    A product of F̄ costs a product at every picture. Pictures are linearised when first needed, and
    kept so while memory is granted.

    Parameters
    ----------
    model
        As for :class:`FisherOperator`.
    images
        P pictures ``(1, C, H, W)`` of one shape and dtype, or one tensor ``(P, C, H, W)``.
    keep
        Pictures whose linearisation is kept; the others are linearised again for every product,
        which costs about six forward passes and no memory. ``None`` for all.
    route, check
        As for :class:`FisherOperator`; the check is made at each picture's first use.
    options
        ``chunk_size``, ``recompute``, ``compile``, ``model_dtype``, ``noise``, ``perturbations`` of
        :class:`FisherOperator`.

    Attributes
    ----------
    shape, image_shape, dtype, device
        As of :class:`FisherOperator`.
    rank_bound
        ``min(P m, n)``, m the number of response values at one picture.
    mean_image
        ``(1, C, H, W)``.

    Raises
    ------
    InputTypeError, ImageError, ModelError
        As :class:`FisherOperator`.
    """

    def __init__(
        self,
        model: Model,
        images: Sequence[Tensor] | Tensor,
        *,
        keep: int | None = None,
        route: str = "auto",
        check: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if keep is not None and keep < 0:
            raise InputError(f"keep: expected at least 0 pictures or None, got {keep}")
        pictures = (
            [images[i : i + 1] for i in range(len(images))]
            if isinstance(images, Tensor)
            else list(images)
        )
        self._images = [copy_image(picture) for picture in pictures]
        if not self._images or len({(p.shape, p.dtype, p.device) for p in self._images}) != 1:
            shapes = sorted({tuple(picture.shape) for picture in self._images})
            raise ImageError(
                f"images: expected pictures of one shape, dtype and device, got {shapes or 'none'}"
            )
        first = self._images[0]
        self._model, self._check, self._options = model, check, options
        self._wanted_route, self._keep = route, len(self._images) if keep is None else keep
        self._kept: dict[int, FisherOperator] = {}
        self._checked: set[int] = set()
        self._responses: int | None = None
        self._rank = 0
        self._product_eps: float | None = None
        self.image_shape = tuple(first.shape[1:]) or (first.numel(),)
        self.dtype, self.device = first.dtype, first.device
        self._perturbations = perturbations_or_default(options.get("perturbations"))
        if self._perturbations.of_picture:
            raise InputError(
                "perturbations: expected the same at each picture of a mean, got "
                f"{self._perturbations}, which depends on the picture"
            )
        self._coordinates = coordinates_at(self._perturbations, first.reshape(self.image_shape))
        n = first.numel() if self._coordinates is None else self._coordinates.size
        self.shape = (n, n)
        self.mean_image = torch.stack(self._images).mean(0)

    @property
    def num_pictures(self) -> int:
        """P."""
        return len(self._images)

    @property
    def rank_bound(self) -> int:
        """``min(P m, n)``: the rank of F̄ is at most this."""
        if self._responses is None:
            self.at(0)
        return min(self.shape[0], len(self._images) * self._rank)

    @property
    def num_responses(self) -> int:
        """P m, the number of rows of J at all pictures."""
        if self._responses is None:
            self.at(0)
        return len(self._images) * (self._responses or 0)

    @property
    def jacobian(self) -> Jacobian:
        """J̄ ``(P m, n)``: the Jᵢ one above the other, over √P, so that J̄ᵀJ̄ = F̄."""
        return _StackedJacobian(self)

    @property
    def start(self) -> Tensor | None:
        """``(n, s)``: the mean picture and the constant image."""
        found = start_vectors(self.mean_image, self._coordinates)
        return found if found.shape[1] else None

    @property
    def product_eps(self) -> float:
        """Relative rounding of a product, as of the first picture."""
        if self._product_eps is None:
            self._product_eps = self.at(0).product_eps
        return self._product_eps

    @property
    def noise(self) -> Noise:
        """How the response varies at each picture."""
        return noise_or_default(self._options.get("noise"))

    @property
    def perturbations(self) -> Perturbations:
        """Which changes are considered."""
        return self._perturbations

    @property
    def coordinates(self) -> Coordinates | None:
        """B, from the coordinates of vectors to pictures; None for the identity."""
        return self._coordinates

    @property
    def route(self) -> str:
        """Name of the route of the products, as of the first picture used."""
        return next(iter(self._kept.values())).route if self._kept else self._wanted_route

    def at(self, index: int) -> FisherOperator:
        """Return F at one of the pictures, linearised now or before."""
        found = self._kept.get(index)
        if found is not None:
            return found
        fresh = index not in self._checked
        operator = FisherOperator(
            self._model,
            self._images[index],
            route=self._wanted_route,
            check=self._check and fresh,
            **self._options,
        )
        self._checked.add(index)
        if index == 0 and fresh:  # a second linearisation is not checked for coarse steps
            self._product_eps = operator.product_eps
        m = operator.jacobian.shape[0]
        self._responses = m if self._responses is None else max(m, self._responses)
        self._rank = max(self._rank, operator.rank_bound)
        if len(self._kept) < self._keep:
            self._kept[index] = operator
        return operator

    def prepare(self, indices: Sequence[int]) -> None:
        """Linearise these pictures, as many as are kept, and let go of all others.

        For a process that multiplies at these alone (:meth:`part`).
        """
        self._kept = {i: operator for i, operator in self._kept.items() if i in indices}
        for index in indices:
            if len(self._kept) >= self._keep:
                return
            self.at(index)

    def part(self, block: Tensor, indices: Sequence[int]) -> Tensor:
        """Return 1/P Σ Fᵢ V over some of the pictures; not counted as a product.

        Parameters
        ----------
        block
            ``(n, b)``.
        indices
            Which pictures; those of all parts together must be each once for F̄ V.
        """
        block = self._block(block, self.shape[1], "block")
        total = torch.zeros_like(block)
        for index in indices:
            product, _ = self.at(index).apply(block)
            total += product
        return total / len(self._images)

    def to_dense(self) -> Tensor:
        """Return F̄, ``(n, n)``."""
        total = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        for index in range(len(self._images)):
            total += self.at(index).to_dense()
        return total / len(self._images)

    def _apply(self, block: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(block)
        responses = []
        for index in range(len(self._images)):
            product, response = self.at(index).apply(block)
            total += product
            if response is not None:
                responses.append(response)
        # J̄ is the Jᵢ one above the other, over √P: then J̄ᵀJ̄ = F̄.
        scale = len(self._images)
        return total / scale, torch.cat(responses) / scale**0.5


class _StackedJacobian(Jacobian):
    """J̄ of an average, from the Jacobians at its pictures."""

    def __init__(self, average: AverageFisherOperator) -> None:
        super().__init__()
        self._average = average
        self._scale = float(average.num_pictures**-0.5)
        self.shape = (average.num_responses, average.shape[0])
        self.rank_bound = average.rank_bound
        self.image_shape = average.image_shape
        self.dtype, self.device = average.dtype, average.device

    @property
    def route(self) -> str:
        return self._average.route

    def _each(self) -> Iterator[Jacobian]:
        return (self._average.at(i).jacobian for i in range(self._average.num_pictures))

    def to_dense(self) -> Tensor:
        return torch.cat([jacobian.to_dense() for jacobian in self._each()]) * self._scale

    def _matmat(self, block: Tensor) -> Tensor:
        return torch.cat([jacobian.matmat(block) for jacobian in self._each()]) * self._scale

    def _rmatmat(self, block: Tensor) -> Tensor:
        parts = block.chunk(self._average.num_pictures)
        products = [
            jacobian.rmatmat(part) for jacobian, part in zip(self._each(), parts, strict=True)
        ]
        return torch.stack(products).sum(0) * self._scale
