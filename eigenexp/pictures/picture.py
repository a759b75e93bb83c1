"""Pictures: from a name, a file, a tensor or an array to ``(1, C, H, W)`` and a full record.

Nothing is guessed silently and nothing is downloaded: what was read, how it was scaled, what was
cut, resized or dropped stands in :attr:`Picture.record`, with the hash of the final values.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputTypeError
from eigenexp.pictures.bundled import ALIASES, bundled_pictures, bundled_sha256, read_bundled
from eigenexp.pictures.image_files import MOST_VALUES
from eigenexp.pictures.paths import expand_home
from eigenexp.pictures.reading import Raw, read_array, read_file
from eigenexp.storage.hashing import tensor_sha256

__all__ = ["Picture", "bundled_pictures", "load_picture"]

# ITU-R BT.709 luminance of linear RGB, the weights of skimage.color.rgb2gray.
LUMINANCE = (0.2125, 0.7154, 0.0721)
CHANNELS = ("gray", "color", "keep")


@dataclass(frozen=True)
class Picture:
    """A picture ready for a model.

    Attributes
    ----------
    tensor
        ``(1, C, H, W)``, float32 or float64, values in ``record["value_range"]``.
    name
        Short name for titles and file names.
    record
        Plain, JSON-ready facts: ``source``, ``kind``, ``file_sha256`` (files), ``source_shape``,
        ``source_dtype``, ``scaled_from`` (the source's own black and white), ``alpha``
        (``"dropped"``, ``"tRNS dropped"`` or ``None``), ``orientation`` (EXIF), ``conversion``,
        ``crop``, ``resize``, ``channels``, ``value_range``, ``dtype``, ``shape``, ``minimum``,
        ``maximum``, ``sha256`` (of dtype, shape and values).
    """

    tensor: Tensor
    name: str
    record: dict[str, Any]


def load_picture(
    source: str | Path | Tensor | np.ndarray[Any, Any],
    *,
    crop: int | Sequence[int] | None = None,
    resize: int | Sequence[int] | None = None,
    channels: str = "gray",
    value_range: Sequence[float] = (0.0, 1.0),
    dtype: torch.dtype | str = torch.float32,
) -> Picture:
    """Load a picture; the steps are read, crop, scale, drop alpha, resize, gray or colour.

    Parameters
    ----------
    source
        - the name of a picture of scikit-image (:func:`bundled_pictures`);
        - a file: PNG, JPEG, TIFF, BMP, GIF, WebP, AVIF, JPEG 2000, PPM, TGA, PCX or SGI, ``.npy``,
          or ``.pt`` / ``.safetensors`` holding one tensor. A name is looked up before a file; write
          ``./camera`` for a file called *camera*;
        - a tensor ``(H, W)``, ``(C, H, W)`` or ``(1, C, H, W)``, or an array ``(H, W)``,
          ``(H, W, C)`` or as a tensor's; C is 1 to 4, of which 2 and 4 end with alpha. An array
          whose first and last side are both that short is refused: ``(1, C, H, W)`` is clear.

        Booleans, uint8 and uint16 are scaled from their full range to ``value_range``; other
        numbers must be in ``value_range`` already, which integers must not leave at its default.
    crop
        ``[top, left, height, width]`` in pixels, or the side of a square in the middle.
    resize
        ``[height, width]`` in pixels or one side of a square: bicubic with antialiasing, computed
        in float64, clipped to ``value_range``.
    channels
        ``"gray"``: one channel, luminance 0.2125 R + 0.7154 G + 0.0721 B; ``"color"``: three,
        a gray picture repeated; ``"keep"``: as the source has them.
    value_range
        ``(black, white)`` of the result.
    dtype
        ``torch.float32`` or ``torch.float64``, also as ``"float32"`` or ``"float64"``.

    Returns
    -------
    Picture
        A copy: nothing is shared with ``source``.

    Raises
    ------
    ImageError
        When the file is missing or unreadable, or the picture, its values or a step cannot be used.
    InputTypeError
        When the source or an option is of a wrong type.

    Examples
    --------
    >>> picture = load_picture("camera", crop=[120, 220, 64, 64])
    >>> tuple(picture.tensor.shape), picture.record["channels"]
    ((1, 1, 64, 64), 'gray')
    """
    black, white = _value_range(value_range)
    kind = _dtype(dtype)
    if channels not in CHANNELS:
        raise ImageError(f"channels: expected one of {', '.join(CHANNELS)}, got {channels!r}")
    raw = _read(source)
    _check_values(raw, black, white)
    # Cropped before all else, so that a part of a large picture costs no copies of the whole.
    values, crop_record = _crop(raw.values, crop)
    values, scaled_from = _scale(values, raw.full_range, black, white)
    values, alpha = _drop_alpha(values, raw.name)
    values, resize_record = _resize(values, resize, black, white)
    values, conversion = _convert(values, channels)
    tensor = values.clamp(black, white).to(kind).unsqueeze(0).contiguous()
    record = {
        "source": raw.source,
        "kind": raw.kind,
        "file_sha256": raw.file_sha256,
        "source_shape": list(raw.values.shape),
        "source_dtype": raw.dtype,
        "scaled_from": scaled_from,
        "orientation": raw.orientation,
        "alpha": raw.alpha or alpha,
        "crop": crop_record,
        "resize": resize_record,
        "channels": channels,
        "conversion": conversion,
        "value_range": [black, white],
        "dtype": str(kind).removeprefix("torch."),
        "shape": list(tensor.shape),
        "minimum": float(tensor.min()),
        "maximum": float(tensor.max()),
        "sha256": tensor_sha256(tensor),
    }
    return Picture(tensor, raw.name, record)


def _read(source: Any) -> Raw:
    if isinstance(source, (Tensor, np.ndarray)):
        return read_array(source)
    if isinstance(source, Path):
        return read_file(source)
    if not isinstance(source, str):
        raise InputTypeError(
            "source: expected the name of a picture, a path, a tensor or an array, "
            f"got {type(source).__name__}"
        )
    if not source.strip():
        raise ImageError("source: expected the name of a picture or a path, got an empty string")
    bundled = bundled_pictures()
    name = ALIASES.get(source, source)
    if name in bundled:
        facts = {"source": f"skimage.data.{name}", "name": name, "kind": "scikit-image"}
        return read_array(read_bundled(name), **facts, file_sha256=bundled_sha256(name))
    try:
        path = expand_home(source)
        if path.exists() or path.is_symlink():
            return read_file(path)
        near = _near(source, path, bundled)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"source: {source!r} cannot be read: {error}") from error
    advice = f"did you mean {' or '.join(near)}?" if near else f"pictures: {', '.join(bundled)}"
    raise ImageError(
        f"source: expected a picture's name or an existing file, got {source!r}; {advice}"
    )


def _near(source: str, path: Path, bundled: list[str]) -> list[str]:
    """Return names of pictures and files that a mistyped source may have meant."""
    names = difflib.get_close_matches(source.lower(), [*bundled, *ALIASES], n=3)
    if not path.parent.is_dir():
        return names
    here = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    files = difflib.get_close_matches(path.name, here, n=3)
    return [*names, *(str(path.parent / file) for file in files)]


def _check_values(raw: Raw, black: float, white: float) -> None:
    """Refuse a picture without pixels, and values whose black and white cannot be the ones said."""
    values = raw.values
    if values.numel() == 0:
        raise ImageError(f"{raw.name}: expected pixels, got shape {tuple(values.shape)}")
    if raw.full_range is not None:
        return
    if not values.is_floating_point():
        if (black, white) == (0.0, 1.0):
            raise InputTypeError(
                f"{raw.name}: expected floats, booleans, uint8 or uint16, got {raw.dtype}, whose "
                "white is unknown; divide by it, or say the range of the values: "
                "value_range=[0, 255]"
            )
    elif bad := int((~torch.isfinite(values)).sum()):
        raise ImageError(
            f"{raw.name}: expected finite values, got NaN or inf at {bad} of {values.numel()} "
            "places; mend the picture"
        )
    # Room for the rounding of a float32 computation, no more.
    slack = 1e-6 * (white - black)
    low, high = float(values.min()), float(values.max())
    if low < black - slack or high > white + slack:
        raise ImageError(
            f"{raw.name}: expected values in [{black:g}, {white:g}], got {low:g} to {high:g}; "
            "rescale the picture, or say its range: value_range=[black, white]"
        )


def _scale(
    values: Tensor, full_range: tuple[float, float] | None, black: float, white: float
) -> tuple[Tensor, list[float] | None]:
    """Return float64 values in [black, white] and the range the source was scaled from."""
    if full_range is None:
        return values.to(torch.float64), None
    low, high = full_range
    scaled = (values.to(torch.float64) - low) / (high - low)
    return black + (white - black) * scaled, [float(low), float(high)]


def _drop_alpha(values: Tensor, name: str) -> tuple[Tensor, str | None]:
    c = values.shape[0]
    if c not in (1, 2, 3, 4):
        raise ImageError(
            f"{name}: expected 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels, got {c}; "
            f"a tensor is (C, H, W), got {tuple(values.shape)}"
        )
    return (values, None) if c in (1, 3) else (values[:-1], "dropped")


def _crop(values: Tensor, crop: Any) -> tuple[Tensor, list[int] | None]:
    if crop is None:
        return values, None
    h, w = values.shape[-2:]
    numbers = _whole_numbers(crop, "crop", "[top, left, height, width] or one side", (4,))
    if len(numbers) == 1:
        side = numbers[0]
        numbers = [(h - side) // 2, (w - side) // 2, side, side]
    top, left, height, width = numbers
    if height < 1 or width < 1:
        raise ImageError(f"crop: expected a height and width of at least 1, got {height}x{width}")
    if top < 0 or left < 0 or top + height > h or left + width > w:
        raise ImageError(
            f"crop: expected a part of the {h}x{w} picture, got rows {top} to {top + height} and "
            f"columns {left} to {left + width}; [top, left, height, width] = {numbers}"
        )
    return values[:, top : top + height, left : left + width], numbers


def _resize(
    values: Tensor, resize: Any, black: float, white: float
) -> tuple[Tensor, list[int] | None]:
    if resize is None:
        return values, None
    numbers = _whole_numbers(resize, "resize", "[height, width] or one side", (2,))
    size = numbers * 2 if len(numbers) == 1 else numbers
    if min(size) < 1:
        raise ImageError(f"resize: expected a height and width of at least 1, got {size}")
    if size[0] * size[1] * len(values) > MOST_VALUES:
        raise ImageError(f"resize: expected a picture of at most {MOST_VALUES} values, got {size}")
    if size != list(values.shape[-2:]):
        values = torch.nn.functional.interpolate(
            values.unsqueeze(0), size=size, mode="bicubic", antialias=True, align_corners=False
        )[0]
    # Bicubic overshoots at edges.
    return values.clamp(black, white), size


def _convert(values: Tensor, channels: str) -> tuple[Tensor, str | None]:
    c = values.shape[0]
    if channels == "gray" and c == 3:
        red, green, blue = (weight * plane for weight, plane in zip(LUMINANCE, values, strict=True))
        return (red + green + blue).unsqueeze(0), "{} R + {} G + {} B".format(*LUMINANCE)
    if channels == "color" and c == 1:
        return values.repeat(3, 1, 1), "gray repeated"
    return values, None


def _whole_numbers(value: Any, name: str, what: str, lengths: tuple[int, ...]) -> list[int]:
    """Return a list of one int, or of an allowed length."""
    entries = list(value) if isinstance(value, (Sequence, np.ndarray, Tensor)) else [value]
    if isinstance(value, str) or not all(
        isinstance(entry, (int, np.integer)) and not isinstance(entry, bool) for entry in entries
    ):
        raise InputTypeError(f"{name}: expected whole numbers, {what}, got {value!r}")
    if hasattr(value, "__len__") and len(entries) not in lengths:
        raise ImageError(f"{name}: expected {what}, got {len(entries)} numbers: {value!r}")
    return [int(entry) for entry in entries]


def _value_range(value_range: Any) -> tuple[float, float]:
    try:
        black, white = (float(end) for end in value_range)
    except (TypeError, ValueError):
        raise InputTypeError(
            f"value_range: expected two numbers, [black, white], got {value_range!r}"
        ) from None
    if not (math.isfinite(black) and math.isfinite(white) and black < white):
        raise ImageError(f"value_range: expected finite black < white, got {value_range!r}")
    return black, white


def _dtype(dtype: Any) -> torch.dtype:
    named = {"float32": torch.float32, "float64": torch.float64}
    found = named.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.float64):
        raise InputTypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    return torch.float64 if found == torch.float64 else torch.float32
