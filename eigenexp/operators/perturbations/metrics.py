"""Norms of a change other than the 2-norm of its pixels: ‖z‖ where e = B z, M = (B Bᵀ)⁻¹.

λ and α are then per unit of ‖z‖; e itself, as it is shown, has another length. Fisher information
depends on the units of what is changed (Kostal and Lánský 2016), so each record says them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators.perturbations.base import Perturbations
from eigenexp.operators.perturbations.coordinates import Coordinates, Scaled
from eigenexp.operators.perturbations.subspaces import sides

__all__ = ["ContrastSensitivity", "LinearLight", "Metric", "Taper", "Whitening"]


def _diagonal(weights: Tensor, image: Tensor) -> Coordinates:
    scale = weights.expand(image.shape).to(image).contiguous()
    return Scaled(tuple(image.shape), lambda x: x * scale, lambda x: x / scale)


def _filter(transfer: Tensor, image: Tensor) -> Coordinates:
    """Return a convolution by its transfer function, real and even, in the order of ``fft2``."""
    half = transfer[..., : image.shape[-1] // 2 + 1].to(image)
    size = tuple(image.shape[-2:])

    def through(x: Tensor, gain: Tensor) -> Tensor:
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=size)
        return filtered

    undo = half.reciprocal()
    return Scaled(
        tuple(image.shape), lambda x: through(x, half), lambda x: through(x, undo), smooth=True
    )


@dataclass(frozen=True, eq=False)
class Taper(Perturbations):
    """Changes that fade towards the border, where reflecting padding makes models sensitive.

    B = diag(w), w a quarter of a sine wave over the border's ``width`` pixels, 1 inside, never 0: a
    change costs 1/w there.

    Parameters
    ----------
    width
        Pixels.
    """

    name: ClassVar[str] = "taper"
    kind: ClassVar[str] = "metric"
    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"width: expected at least 1 pixel, got {self.width}")

    def at(self, image: Tensor) -> Coordinates:
        """Return diag(w)."""
        window = [_ramp(side, self.width) for side in sides(image, self.name)]
        return _diagonal(window[0][:, None] * window[1][None], image)


def _ramp(size: int, width: int) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    depth = torch.minimum(place, size - 1 - place) + 0.5
    return torch.sin(torch.pi / 2 * (depth / width).clamp(max=1)).square()


@dataclass(frozen=True, eq=False)
class Metric(Perturbations):
    """‖e‖² = Σ M e²: a price of each pixel.

    Parameters
    ----------
    weights
        M, above 0: of the picture's shape, or what expands to it.
    """

    name: ClassVar[str] = "metric"
    kind: ClassVar[str] = "metric"
    weights: Any

    def __post_init__(self) -> None:
        try:
            weights = torch.as_tensor(self.weights).detach().to("cpu", torch.float64).clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputTypeError(
                f"weights: expected an array, got {type(self.weights).__name__}"
            ) from error
        if not bool(((weights > 0) & torch.isfinite(weights)).all()):
            raise InputError("weights: expected finite numbers above 0")
        object.__setattr__(self, "weights", weights)

    def at(self, image: Tensor) -> Coordinates:
        """Return diag(M^{-1/2})."""
        try:
            self.weights.expand(image.shape)
        except RuntimeError as error:
            raise InputError(
                f"weights: expected a shape that expands to {tuple(image.shape)}, got "
                f"{tuple(self.weights.shape)}"
            ) from error
        return _diagonal(self.weights.rsqrt(), image)


@dataclass(frozen=True, eq=False)
class LinearLight(Perturbations):
    """Changes measured in light, L = V^γ, not in the picture's values V: M = (dL/dV)².

    Parameters
    ----------
    gamma
        γ of the display.
    darkest
        Values below this count as this, where dL/dV would be 0.
    """

    name: ClassVar[str] = "linear_light"
    kind: ClassVar[str] = "metric"
    gamma: float = 2.2
    darkest: float = 1 / 255
    of_picture = True

    def __post_init__(self) -> None:
        if not self.gamma > 0 or not self.darkest > 0:
            raise InputError(
                f"gamma, darkest: expected numbers above 0, got {self.gamma} and {self.darkest}"
            )

    def at(self, image: Tensor) -> Coordinates:
        """Return diag(1 / (γ V^{γ−1}))."""
        slope = self.gamma * image.to(torch.float64).clamp(min=self.darkest) ** (self.gamma - 1)
        return _diagonal(slope.reciprocal(), image)


@dataclass(frozen=True, eq=False)
class Whitening(Perturbations):
    """‖e‖² = Σ |ê(ω)|² / S(ω), S the power spectrum of natural pictures: what is usual is cheap.

    Parameters
    ----------
    pictures
        ``(P, C, H, W)`` of the size solved at, or a list of ``(1, C, H, W)``; S is the mean of
        their periodograms about their means, over pictures and channels, scaled to mean 1.
    floor
        Of S, over its largest value.
    """

    name: ClassVar[str] = "whitening"
    kind: ClassVar[str] = "metric"
    pictures: Any
    floor: float = 1e-6

    def __post_init__(self) -> None:
        given = self.pictures
        if not isinstance(given, Tensor):
            if not isinstance(given, Iterable):
                raise InputTypeError(
                    f"pictures: expected pictures, got {type(given).__name__}; a folder's are in "
                    "torch.cat([p.load().tensor for p in eigenexp.study.picture_sources(folder)])"
                )
            given = torch.cat(list(given))
        if given.ndim != 4 or not 0 < self.floor < 1:
            raise InputError(
                f"pictures, floor: expected (P, C, H, W) and a number between 0 and 1, got "
                f"{tuple(given.shape)} and {self.floor}"
            )
        exact = given.detach().cpu().double()
        exact = exact - exact.mean(dim=(2, 3), keepdim=True)
        power = torch.fft.fft2(exact, norm="ortho").abs().square().mean(dim=(0, 1))
        power = power.clamp(min=self.floor * float(power.max()))
        if not float(power.max()) > 0:
            raise InputError("pictures: expected pictures that are not constant")
        object.__setattr__(self, "pictures", power / power.mean())

    def at(self, image: Tensor) -> Coordinates:
        """Return the convolution with transfer function √S."""
        if sides(image, self.name) != tuple(self.pictures.shape):
            raise InputError(
                f"whitening: expected pictures of {tuple(image.shape[-2:])}, as solved at, got "
                f"{tuple(self.pictures.shape)}"
            )
        return _filter(self.pictures.sqrt(), image)


@dataclass(frozen=True, eq=False)
class ContrastSensitivity(Perturbations):
    """‖e‖² = Σ CSF(ω)² |ê(ω)|²: changes measured by how visible their frequencies are.

    CSF(f) = 2.6 (0.0192 + 0.114 f) exp(−(0.114 f)^1.1), f in cycles a degree (Mannos and Sakrison
    1974), over its largest value, and at least ``floor``.

    Parameters
    ----------
    pixels_per_degree
        Of the display as seen.
    floor
        Least sensitivity, over the largest.
    """

    name: ClassVar[str] = "contrast_sensitivity"
    kind: ClassVar[str] = "metric"
    pixels_per_degree: float
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not self.pixels_per_degree > 0 or not 0 < self.floor < 1:
            raise InputError(
                "pixels_per_degree, floor: expected a number above 0 and one between 0 and 1, got "
                f"{self.pixels_per_degree} and {self.floor}"
            )

    def at(self, image: Tensor) -> Coordinates:
        """Return the convolution with transfer function 1/CSF."""
        height, width = sides(image, self.name)
        fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        fx = torch.fft.fftfreq(width, dtype=torch.float64)[None]
        f = (fy.square() + fx.square()).sqrt() * self.pixels_per_degree
        peak = _csf(torch.linspace(0, 60, 6001, dtype=torch.float64)).max()
        return _filter((_csf(f) / peak).clamp(min=self.floor).reciprocal(), image)


def _csf(f: Tensor) -> Tensor:
    return 2.6 * (0.0192 + 0.114 * f) * torch.exp(-((0.114 * f) ** 1.1))
