"""Picture values as the numbers in a file, and back: display gamma, bits, the file itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eigenexp.errors import ImageError, InputError
from eigenexp.pictures.image_files import read_image_file
from eigenexp.pictures.reading import read_regular
from eigenexp.stimuli.manifest import Display

__all__ = ["Light", "check_gamma", "file_suffix", "picture_bytes", "read_levels"]

Array = npt.NDArray[Any]

_KNEE, _SLOPE, _SCALE, _POWER = 0.0031308, 12.92, 1.055, 2.4  # IEC 61966-2-1


def check_gamma(given: str | float) -> str:
    """Return a display's gamma by its name in a manifest: ``"srgb"``, or the exponent as text.

    Raises
    ------
    InputError
        When it is neither.
    """
    if str(given).lower() == "srgb":
        return "srgb"
    try:
        exponent = float(given)
    except (TypeError, ValueError):
        exponent = 0.0
    if not 0.1 <= exponent <= 10:
        raise InputError(
            f"display: expected srgb, or an exponent such as 2.2 (1: linear), got {given!r}"
        )
    return str(exponent)


class Light:
    """The map between picture values and the levels of a file, value by value.

    Parameters
    ----------
    display
        Its gamma is applied with ``linear_light`` alone: values are then light. Otherwise they are
        what a file holds, and the display makes light of them.
    """

    def __init__(self, display: Display) -> None:
        self.display = display
        self.full = 2**display.bits - 1
        self._width = display.white - display.black

    def encode(self, values: Array) -> Array:
        """Return levels, not rounded, in [0, full scale]; what is out of range is clipped.

        A level that float32 could not tell from a whole one is that one.
        """
        part = np.clip((values - self.display.black) / self._width, 0.0, 1.0)
        if self.display.linear_light:
            part = self._from_light(part)
        levels = part * self.full
        whole = np.rint(levels)
        return np.asarray(np.where(np.abs(levels - whole) < 2e-7 * self.full, whole, levels))

    def decode(self, levels: Array) -> Array:
        """Return picture values in float64."""
        part = levels.astype(np.float64) / self.full
        if self.display.linear_light:
            part = self._to_light(part)
        return np.asarray(self.display.black + self._width * part)

    def _from_light(self, light: Array) -> Array:
        if self.display.gamma != "srgb":
            return np.asarray(light ** (1 / float(self.display.gamma)))
        curve = _SCALE * np.maximum(light, _KNEE) ** (1 / _POWER) - (_SCALE - 1)
        return np.where(light <= _KNEE, _SLOPE * light, curve)

    def _to_light(self, part: Array) -> Array:
        if self.display.gamma != "srgb":
            return np.asarray(part ** float(self.display.gamma))
        curve = ((part + _SCALE - 1) / _SCALE) ** _POWER
        return np.where(part <= _KNEE * _SLOPE, part / _SLOPE, curve)


def file_suffix(channels: int, bits: int) -> str:
    """Return ``.png``, or ``.tiff`` for 16-bit colour, which Pillow does not write as PNG."""
    return ".tiff" if channels == 3 and bits == 16 else ".png"


def picture_bytes(levels: Array, bits: int) -> bytes:
    """Return a picture file of whole levels ``(C, H, W)``, C 1 or 3; the same for the same levels.

    Raises
    ------
    InputError
        When there are other channels.
    """
    if levels.ndim != 3 or levels.shape[0] not in (1, 3):
        raise InputError(
            f"picture: expected 1 or 3 channels to write as a file, got shape {levels.shape}"
        )
    kind = np.uint8 if bits == 8 else np.uint16
    picture = levels.astype(kind)
    shown = picture[0] if len(picture) == 1 else np.ascontiguousarray(np.moveaxis(picture, 0, -1))
    file = io.BytesIO()
    if file_suffix(len(picture), bits) == ".tiff":
        import tifffile

        tifffile.imwrite(file, shown, photometric="rgb", metadata=None, software=False)
    else:
        from PIL import Image

        Image.fromarray(shown).save(file, "PNG")
    return file.getvalue()


def read_levels(path: Path) -> Array:
    """Return the whole levels ``(C, H, W)`` that a file of ours holds.

    Raises
    ------
    ImageError
        When it is missing or damaged.
    """
    values, _ = read_image_file(path, read_regular(path))
    if values.dtype.kind != "u":
        raise ImageError(f"{path}: expected 8 or 16 bits a value, got {values.dtype}")
    return np.asarray(values[0])
