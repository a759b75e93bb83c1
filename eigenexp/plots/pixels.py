"""From tensors to what ``imshow`` shows: shapes, channels and display ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.spectrum import Spectrum

__all__ = ["Range", "distortion_image", "peak", "picture_range", "show_array", "to_float"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """The picture values that are shown as black (``low``) and as white (``high``)."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Distance from black to white."""
        return self.high - self.low

    def clipped(self, values: Array) -> float:
        """Return the share (0 to 1) of ``values`` outside the range, rounding error forgiven."""
        slack = 1e-6 * max(self.width, abs(self.low), abs(self.high))
        return float(np.mean((values < self.low - slack) | (values > self.high + slack)))

    def normalize(self, values: Array) -> Array:
        """Map ``low`` to 0 and ``high`` to 1 and clip."""
        return np.clip((values - self.low) / self.width, 0.0, 1.0)


def to_float(tensor: Tensor) -> Array:
    """Return ``tensor`` as a float64 array on the CPU."""
    return np.asarray(tensor.detach().to(device="cpu", dtype=torch.float64).numpy())


def picture_range(values: Array) -> Range:
    """Return [0, 1] for a picture inside it, else the picture's own smallest and largest value."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0.0 and high <= 1.0:
        return Range(0.0, 1.0)
    if low == high:
        return Range(low - 0.5, high + 0.5)
    return Range(low, high)


def peak(values: Array) -> float:
    """Return the largest magnitude, or 1 where everything is zero."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    return largest if largest > 0 else 1.0


def show_array(
    values: Array,
    channel: int | None = None,
    *,
    as_rgb: bool | None = None,
    blank: float = np.nan,
) -> Array:
    """Turn ``(1, C, H, W)``, ``(C, H, W)``, ``(H, W)`` or ``(n,)`` into what is shown.

    Parameters
    ----------
    values
        Picture or distortion.
    channel
        Show this channel alone, in gray.
    as_rgb
        Whether channels are colours: by default where there are three. ``True`` takes the first
        three of four (no transparency), ``False`` shows a mosaic.
    blank
        Fills the unused places of a mosaic.

    Returns
    -------
    array
        ``(n,)`` (a line), ``(H, W)`` (gray; more than three channels, or two, side by side as a
        mosaic in reading order), or ``(H, W, 3)`` (colour).

    Raises
    ------
    InputError
        When the shape is none of these, the channel does not exist, or there are no colours.
    """
    shape = values.shape
    while values.ndim > 1 and values.ndim != 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 1:
        return values
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        raise InputError(
            f"picture: expected shape (1, C, H, W), (C, H, W), (H, W) or (n,), got {shape}; "
            "reshape it, or draw one slice"
        )
    channels = values.shape[0]
    if channel is not None:
        if not -channels <= channel < channels:
            raise InputError(
                f"channel: expected {-channels} to {channels - 1} for {channels} channels, "
                f"got {channel}"
            )
        return np.asarray(values[channel])
    if as_rgb and channels not in (3, 4):
        raise InputError(f"as_rgb: expected 3 or 4 channels to show in colour, got {channels}")
    if as_rgb or (channels == 3 and as_rgb is None):
        return np.moveaxis(values[:3], 0, -1)
    if channels == 1:
        return np.asarray(values[0])
    return _mosaic(values, blank)


def _mosaic(values: Array, blank: float) -> Array:
    """Lay channels out in reading order, one blank pixel between neighbours."""
    channels, height, width = values.shape
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    mosaic = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), blank)
    for c in range(channels):
        top, left = (c // columns) * (height + 1), (c % columns) * (width + 1)
        mosaic[top : top + height, left : left + width] = values[c]
    return mosaic


def distortion_image(
    spectrum: Spectrum,
    i: int,
    image_shape: Sequence[int] | None = None,
    *,
    channel: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the ``i``-th distortion of ``spectrum`` as pixels, for loggers.

    Zero is mid-gray (128), the largest magnitude is black (0) or white (255): the range is
    symmetric, so brighter and darker mean the same strength.

    Parameters
    ----------
    spectrum
        Its ``eigenvectors`` may be flat.
    i
        Place in the spectrum's list (negative counts from the end), not the eigenindex.
    image_shape
        ``(C, H, W)`` (a leading 1 is allowed), ``(H, W)`` or ``(n,)``; by default the shape the
        eigenvectors have. A 1-D distortion becomes one row.
    channel
        Show this channel alone.

    Returns
    -------
    pixels
        ``(H, W)`` or ``(H, W, 3)``, uint8.

    Raises
    ------
    InputError
        When there is no such pair, or the shape does not fit.
    """
    vector = select(spectrum, i)
    if image_shape is not None:
        if math.prod(image_shape) != vector.numel():
            raise InputError(
                f"image_shape: expected a shape of {vector.numel()} values, got "
                f"{tuple(image_shape)}; give the shape of the picture solved for"
            )
        vector = vector.reshape(tuple(image_shape))
    values = to_float(vector)
    shown = np.atleast_2d(show_array(values / peak(values), channel, blank=0.0))
    # A logger must not stop a run: a value that is not a number shows as mid-gray.
    levels = np.rint(127.5 + 127.5 * np.clip(np.nan_to_num(shown, nan=0.0), -1.0, 1.0))
    return np.asarray(levels, dtype=np.uint8)


def select(spectrum: Spectrum, i: int) -> Tensor:
    """Return eigenvector ``i`` of the list; raise InputError where there is none."""
    k = len(spectrum)
    if not -k <= i < k:
        raise InputError(f"pair: expected {-k} to {k - 1} for {k} pairs, got {i}")
    return spectrum.eigenvectors[i]
