"""The curvature of a full-reference measure d(x, x₀) at x₀ as an operator like F."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError, ModelError, summary
from eigenexp.operators.base import Fisher
from eigenexp.operators.calling import copy_image, gradient
from eigenexp.operators.jacobian import JacobianOperator
from eigenexp.operators.perturbations import Coordinates, Perturbations, coordinates_at
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.operators.starting import start_vectors

__all__ = ["MetricOperator"]

Metric = Callable[[Tensor, Tensor], Any]

_STEP = 1e-3  # RMS of the change that the curvature is checked with, of the picture's range
_AGREEMENT = 3.0  # by what factor d and its quadratic form may differ there


class MetricOperator(Fisher):
    """F = ½ ∇²ₓ d(x, x₀) at x = x₀, so that d(x₀ + αe, x₀) ≈ α² eᵀFe.

    For a sum of squared feature distances, d = Σ ‖φ(x) − φ(x₀)‖² (LPIPS-like), this is the
    Gauss–Newton matrix JᵀJ of the features, exactly: what Gauss and Newton leave out is multiplied
    by φ(x) − φ(x₀) = 0. For any other smooth d (1 − SSIM, 1 − MS-SSIM) it is the second order of d
    about its minimum, and nothing more is approximated; λ then says nothing of large changes.

    Parameters
    ----------
    metric
        ``d(x, x0)`` → one number, at least 0 and 0 for equal pictures, twice differentiable at x₀:
        the *square* of a distance, one minus a similarity.
    image
        x₀, ``(1, C, H, W)``, any shape with a leading 1, or ``(n,)``. Copied.
    perturbations
        Which changes are considered, of those that are linear in the picture.
    route, chunk_size, compile
        As for :class:`~eigenexp.JacobianOperator`, of the gradient's products.

    Raises
    ------
    ModelError
        When d is no number, has no curvature at x₀ or one that d does not follow, or falls away
        from x₀.
    InputError
        For a generator's codes.

    Examples
    --------
    >>> import torch, eigenexp as ee
    >>> picture = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    >>> operator = ee.FisherOperator.from_metric(lambda x, y: (x - y).square().sum(), picture)
    >>> bool(torch.allclose(operator.to_dense(), torch.eye(16, dtype=torch.float64)))
    True
    """

    def __init__(
        self,
        metric: Metric,
        image: Tensor,
        *,
        perturbations: Perturbations | None = None,
        route: str = "auto",
        chunk_size: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not callable(metric):
            raise InputTypeError(
                f"metric: expected a function of two pictures, got {type(metric).__name__}"
            )
        considered = perturbations_or_default(perturbations)
        if considered.split()[0] is not None:
            raise InputError(
                f"perturbations: expected ones that are linear in the picture for a metric, got "
                f"{considered}; put the generator into the metric"
            )
        self._considered = considered
        self._image = copy_image(image)
        self.dtype, self.device = self._image.dtype, self._image.device
        self.image_shape = tuple(self._image.shape[1:]) or (self._image.numel(),)
        field = _Gradient(metric, self._image)
        field.check()
        try:
            # Of a gradient J is symmetric: Jᵀ, one backward pass, is all that is needed.
            self._field = JacobianOperator(
                field, self._image, route=route, chunk_size=chunk_size, compile=compile
            )
        except ModelError as error:
            raise ModelError(
                "metric: expected one that is twice differentiable at the picture, got none with "
                f"a curvature there ({summary(error)}); give the square of a distance, and no "
                "absolute values or thresholds of differences"
            ) from error
        self._coordinates = coordinates_at(considered, self._image.reshape(self.image_shape))
        n = self._image.numel() if self._coordinates is None else self._coordinates.size
        self.shape = (n, n)
        field.check_curvature(self._field)

    @property
    def rank_bound(self) -> int:
        """n: nothing is known."""
        return self.shape[0]

    @property
    def jacobian(self) -> JacobianOperator:
        """Refuse: of a number there is no response whose J it would be.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            "jacobian: expected a model's operator, got a metric's, which is a number alone"
        )

    @property
    def perturbations(self) -> Perturbations:
        """Which changes are considered."""
        return self._considered

    @property
    def coordinates(self) -> Coordinates | None:
        """B, from the coordinates of vectors to pictures; None for the identity."""
        return self._coordinates

    @property
    def route(self) -> str:
        """Name of the route of the products."""
        return self._field.route

    @property
    def product_eps(self) -> float:
        """Relative rounding of a product."""
        return self._field.product_eps

    @property
    def start(self) -> Tensor | None:
        """``(n, s)``: the picture and the constant; None where neither is considered."""
        found = start_vectors(self._image, self._coordinates)
        return found if found.shape[1] else None

    def to_dense(self) -> Tensor:
        """Return F, ``(n, n)``, by n products."""
        eye = torch.eye(self.shape[0], dtype=self.dtype, device=self.device)
        dense = self.apply(eye)[0]
        return (dense + dense.T) / 2

    def _apply(self, block: Tensor, count: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._coordinates is None:
            return self._field.rmatmat(block), None
        pictures = self._coordinates.pictures(block).flatten(1).T.contiguous()
        return self._coordinates.adjoints(self._field.rmatmat(pictures)), None


class _Gradient(torch.nn.Module):
    """x ↦ ½ ∇ₓ d(x, x₀), differentiable once more."""

    def __init__(self, metric: Metric, image: Tensor) -> None:
        super().__init__()
        # A module's weights and buffers are the callers': seen here, so that they are put back.
        self.metric, self._reference = metric, image.detach().clone()

    def value(self, image: Tensor) -> Tensor:
        """Return d(x, x₀).

        Raises
        ------
        ModelError
            When it fails or is no number.
        """
        try:
            found = self.metric(image, self._reference)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"metric: expected a number for two pictures of shape {tuple(image.shape)}, got "
                f"{summary(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(f"metric: expected one floating-point number, got {got}; take its sum")
        return found.reshape(())

    def forward(self, image: Tensor) -> Tensor:
        """Return ½ ∇ₓ d(x, x₀), flat."""
        with torch.enable_grad():
            x = image if image.requires_grad else image.detach().requires_grad_()
            found = self.value(x)
            if not found.requires_grad:
                raise ModelError(
                    "metric: expected one that is differentiable in its first picture, got one "
                    "without gradient; look for no_grad, detach, numpy or integers in it"
                )
            slope = gradient(found, x, found.new_full((1,), 0.5), create_graph=True)
        if slope is None:
            raise ModelError("metric: expected one that depends on its first picture, got none")
        return slope.reshape(-1)

    def check(self) -> None:
        """Refuse a d whose gradient at x₀ is not 0.

        Raises
        ------
        ModelError
            Naming what was found.
        """
        with torch.inference_mode(False), torch.enable_grad():
            slope = self.forward(self._reference.clone().requires_grad_()).detach()
        if not bool(torch.isfinite(slope).all()):
            raise ModelError(
                "metric: expected one that is differentiable where both pictures are equal, got a "
                "gradient with NaN or inf; give the square of a distance, not its root"
            )

    def check_curvature(self, field: JacobianOperator) -> None:
        """Refuse a d that does not grow as its quadratic form does.

        Raises
        ------
        ModelError
            Naming what was found.
        """
        x = self._reference
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        span = float(x.max() - x.min()) or 1.0
        e = drawn * (_STEP * span * math.sqrt(x.numel()) / torch.linalg.vector_norm(drawn))
        form = float(e.reshape(-1) @ (field.T @ e.reshape(-1)))
        with torch.inference_mode(False), torch.no_grad():
            rest, moved = (float(self.value(y)) for y in (x.clone(), x + e))
        if form < 0:
            raise ModelError(
                f"metric: expected a measure that grows away from the picture, got one that falls "
                f"from {rest:.6g} to {moved:.6g} at a small change; give one minus a similarity"
            )
        grown = moved - rest
        rounding = 1e2 * torch.finfo(x.dtype).eps * max(abs(rest), abs(moved), 1e-3)
        if abs(grown - form) <= rounding or form / _AGREEMENT <= grown <= form * _AGREEMENT:
            return
        raise ModelError(
            f"metric: expected one that is twice differentiable where both pictures are equal, got "
            f"one that grows by {grown:.3g} at a small change where its curvature says {form:.3g}; "
            "give the square of a distance, not its root"
        )
