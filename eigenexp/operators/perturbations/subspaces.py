"""Subspaces of pictures: some pixels, frequencies or colours, or all but some directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators.perturbations.base import Perturbations
from eigenexp.operators.perturbations.coordinates import (
    Complement,
    Coordinates,
    Placed,
    Selected,
)

__all__ = ["COLOURS", "Band", "Colour", "Mask", "Orthogonal", "ZeroMean", "sides"]

COLOURS = {
    "luminance": (1.0, 1.0, 1.0),
    "red-green": (1.0, -1.0, 0.0),
    "blue-yellow": (-1.0, -1.0, 2.0),
}
"""Orthogonal directions of the three channels."""


def sides(image: Tensor, what: object) -> tuple[int, int]:
    """Return height and width of a picture ``(C, H, W)`` or ``(H, W)``.

    Raises
    ------
    InputError
        When the input is no picture.
    """
    if image.ndim < 2:
        raise InputError(
            f"{what}: expected a picture with rows and columns, got shape {tuple(image.shape)}"
        )
    return int(image.shape[-2]), int(image.shape[-1])


@dataclass(frozen=True, eq=False)
class Mask(Perturbations):
    """Changes of some pixels alone.

    Parameters
    ----------
    mask
        ``(H, W)``, or ``(C, H, W)`` for single channels: what may change, True or not 0. None for
        all.
    border
        Pixels along each border that may not.
    """

    name: ClassVar[str] = "mask"
    kind: ClassVar[str] = "pixels"
    mask: Any = None
    border: int = 0

    def __post_init__(self) -> None:
        if self.border < 0:
            raise InputError(f"border: expected at least 0 pixels, got {self.border}")
        if self.mask is None:
            if not self.border:
                raise InputError("mask: expected a mask or a border, got neither")
            return
        try:
            mask = torch.as_tensor(self.mask).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputTypeError(
                f"mask: expected an array, got {type(self.mask).__name__}"
            ) from error
        if mask.ndim not in (2, 3):
            raise InputError(f"mask: expected (H, W) or (C, H, W), got {tuple(mask.shape)}")
        object.__setattr__(self, "mask", mask != 0)

    def chosen(self, image: Tensor) -> Tensor:
        """Return which values may change, of the picture's shape."""
        height, width = sides(image, self.name)
        free = torch.ones(image.shape, dtype=torch.bool, device=image.device)
        if self.mask is not None:
            if self.mask.shape[-2:] != (height, width) or (
                self.mask.ndim == 3 and self.mask.shape != image.shape
            ):
                raise InputError(
                    f"mask: expected one of {(height, width)} or {tuple(image.shape)}, as the "
                    f"picture is, got {tuple(self.mask.shape)}"
                )
            free &= self.mask.to(image.device)
        if self.border:
            inside = torch.zeros_like(free)
            b = self.border
            inside[..., b : max(height - b, b), b : max(width - b, b)] = True
            free &= inside
        if not bool(free.any()):
            raise InputError(f"{self}: expected pixels that may change, got none of {free.numel()}")
        chosen: Tensor = free
        return chosen

    def at(self, image: Tensor) -> Coordinates:
        """Return the chosen pixels; a rectangle of them is a picture itself."""
        free = self.chosen(image)
        flat = free.reshape(-1, *free.shape[-2:])
        rows, columns = (flat.any(dim=0).any(dim=side).nonzero().flatten() for side in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
        if bool(flat[:, top:bottom, left:right].all()):
            return Placed(tuple(image.shape), (top, bottom), (left, right))
        return Selected(free)

    def meet(self, other: Perturbations) -> Perturbations:
        """Return the mask of the pixels in both."""
        if not isinstance(other, Mask):
            return super().meet(other)
        border = max(self.border, other.border)
        masks = [one.mask for one in (self, other) if one.mask is not None]
        if len(masks) == 2:
            try:
                return Mask(masks[0] & masks[1], border)
            except RuntimeError as error:
                raise InputError(
                    f"mask: expected two of one size, got {tuple(masks[0].shape)} and "
                    f"{tuple(masks[1].shape)}"
                ) from error
        return Mask(masks[0] if masks else None, border)


def _hartley(picture: Tensor) -> Tensor:
    """Return the Hartley transform of the last two dimensions: orthonormal, real and symmetric."""
    spectrum = torch.fft.fft2(picture, norm="ortho")
    coefficients: Tensor = spectrum.real - spectrum.imag
    return coefficients


@dataclass(frozen=True, eq=False)
class Band(Perturbations):
    """Changes of some frequencies alone, periodic over the picture.

    Parameters
    ----------
    low, high
        From and to, in cycles a pixel (0.5 along an axis is the finest), both included.
    orientation
        Of the frequency's direction, in degrees from the horizontal axis towards the vertical one;
        0 is a grating of vertical stripes. None for all.
    width
        Of the orientations, in degrees, to both sides together.
    """

    name: ClassVar[str] = "band"
    kind: ClassVar[str] = "frequencies"
    low: float = 0.0
    high: float = 1.0
    orientation: float | None = None
    width: float = 45.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise InputError(f"low, high: expected 0 ≤ low ≤ high, got {self.low} and {self.high}")
        if not 0 < self.width <= 180:
            raise InputError(
                f"width: expected more than 0 and at most 180 degrees, got {self.width}"
            )
        for name in ("low", "high", "width"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def chosen(self, image: Tensor) -> Tensor:
        """Return which frequencies, in the order of ``torch.fft.fft2``, of the picture's shape."""
        height, width = sides(image, self.name)
        fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        fx = torch.fft.fftfreq(width, dtype=torch.float64)[None]
        radius = (fy.square() + fx.square()).sqrt()
        inside = (radius >= self.low - 1e-12) & (radius <= self.high + 1e-12)
        if self.orientation is not None:
            angle = torch.rad2deg(torch.atan2(fy, fx)).expand(height, width)
            off = (angle - self.orientation + 90).remainder(180) - 90
            along = (off.abs() <= self.width / 2 + 1e-9) | (radius == 0)
            # A frequency and its negative are one grating; at the Nyquist rate both signs are.
            negative = along.flip(0, 1).roll((1, 1), (0, 1))
            inside &= along | negative
        if not bool(inside.any()):
            raise InputError(
                f"{self}: expected frequencies that may change, got none of {height} × {width}"
            )
        chosen: Tensor = inside.to(image.device).expand(image.shape)
        return chosen

    def at(self, image: Tensor) -> Coordinates:
        """Return the Hartley coefficients of the band."""
        return Selected(self.chosen(image), _hartley)

    def meet(self, other: Perturbations) -> Perturbations:
        """Return the band of the frequencies in both."""
        if not isinstance(other, Band) or None not in (self.orientation, other.orientation):
            return super().meet(other)
        oriented = self if self.orientation is not None else other
        low, high = max(self.low, other.low), min(self.high, other.high)
        if low > high:
            raise InputError(
                f"{self} & {other}: expected bands that overlap, got none that both have"
            )
        return Band(low, high, oriented.orientation, oriented.width)


@dataclass(frozen=True, eq=False)
class ZeroMean(Perturbations):
    """Changes that leave the mean of each channel as it is."""

    name: ClassVar[str] = "zero_mean"
    kind: ClassVar[str] = "directions"

    def directions(self, image: Tensor) -> Tensor:
        """Return the constant of each channel."""
        shape = image.shape if image.ndim > 2 else (1, *image.shape)
        channels = math.prod(shape[:-2]) if len(shape) > 2 else 1
        each = image.numel() // channels
        return torch.kron(torch.eye(channels), torch.ones(each, 1)).to(image)

    def at(self, image: Tensor) -> Coordinates:
        """Return coordinates of the rest."""
        return Complement(self.directions(image), tuple(image.shape))


@dataclass(frozen=True, eq=False)
class Orthogonal(Perturbations):
    """Changes that are orthogonal to given ones, as to distortions already shown.

    Parameters
    ----------
    to
        ``(c, C, H, W)``, or one ``(C, H, W)``.
    """

    name: ClassVar[str] = "orthogonal"
    kind: ClassVar[str] = "directions"
    to: Any

    def __post_init__(self) -> None:
        if not isinstance(self.to, Tensor) or not self.to.is_floating_point():
            raise InputTypeError(
                f"to: expected a tensor of distortions, got {type(self.to).__name__}"
            )
        if not bool(torch.isfinite(self.to).all()) or not bool(self.to.any()):
            raise InputError("to: expected finite distortions that are not all 0")
        object.__setattr__(self, "to", self.to.detach().clone())

    def directions(self, image: Tensor) -> Tensor:
        """Return the given ones as columns."""
        if self.to.numel() % image.numel():
            raise InputError(
                f"to: expected distortions of shape {tuple(image.shape)}, as the picture is, got "
                f"{tuple(self.to.shape)}"
            )
        columns: Tensor = self.to.to(image).reshape(-1, image.numel()).mT
        return columns

    def at(self, image: Tensor) -> Coordinates:
        """Return coordinates of the rest."""
        return Complement(self.directions(image), tuple(image.shape))


class _Mixed(Coordinates):
    """Some directions of the channels, the same at every pixel: z is a picture of k channels."""

    is_picture = True

    def __init__(self, directions: Tensor, picture_shape: tuple[int, ...]) -> None:
        self._directions = directions  # (3, k), orthonormal columns
        self.picture_shape = picture_shape
        self.shape = (directions.shape[1], *picture_shape[1:])

    def embed(self, z: Tensor) -> Tensor:
        picture: Tensor = torch.einsum("ck,khw->chw", self._directions, z)
        return picture

    def adjoint(self, picture: Tensor) -> Tensor:
        found: Tensor = torch.einsum("ck,chw->khw", self._directions, picture)
        return found


@dataclass(frozen=True, eq=False)
class Colour(Perturbations):
    """Changes along some directions of colour, of pictures of three channels.

    Parameters
    ----------
    directions
        Of :data:`COLOURS`: one name, or several.
    """

    name: ClassVar[str] = "colour"
    kind: ClassVar[str] = "colours"
    directions_: Any = "luminance"

    def __init__(self, *directions: str) -> None:
        names = tuple(dict.fromkeys(directions or ("luminance",)))
        unknown = [name for name in names if name not in COLOURS]
        if unknown:
            raise InputError(f"colour: expected {', '.join(COLOURS)}, got {unknown[0]!r}")
        object.__setattr__(self, "directions_", names)

    def __str__(self) -> str:
        return f"colour({', '.join(self.directions_)})"

    def at(self, image: Tensor) -> Coordinates:
        """Return a picture of one channel a direction."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(
                f"{self}: expected a picture of three channels, got shape {tuple(image.shape)}; "
                "load it with channels='color'"
            )
        columns = torch.tensor([COLOURS[name] for name in self.directions_], dtype=torch.float64)
        return _Mixed(
            (columns / columns.norm(dim=1, keepdim=True)).mT.to(image), tuple(image.shape)
        )

    def meet(self, other: Perturbations) -> Perturbations:
        """Return the directions in both."""
        if not isinstance(other, Colour):
            return super().meet(other)
        both = [name for name in self.directions_ if name in other.directions_]
        if not both:
            raise InputError(f"{self} & {other}: expected a direction in both, got none")
        return Colour(*both)
