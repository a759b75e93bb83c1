"""Reading pictures from files and arrays, as they are: no scaling, no conversion."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputTypeError
from eigenexp.storage.archives import archive_fault

__all__ = ["Raw", "read_array", "read_file", "read_regular"]

_FULL_RANGES = {
    torch.bool: (0.0, 1.0),
    torch.uint8: (0.0, 255.0),
    torch.uint16: (0.0, 65535.0),
}
# As Pillow: three times its 89 million pixels is a decompression bomb.
_MOST_VALUES = 3 * 89_478_485
# Pillow's modes that hold what we read as they are; other modes are converted by Pillow first.
_KEPT_MODES = ("L", "LA", "RGB", "RGBA", "F", "I;16")
_CONVERTED_MODES = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "CMYK": "RGB"}
_CONVERTED_MODES |= {"YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "I;16B": "I;16", "I;16L": "I;16"}


@dataclass(frozen=True)
class Raw:
    """A picture as its source holds it.

    Attributes
    ----------
    values
        ``(C, H, W)`` in the source's dtype.
    full_range
        (black, white) of an integer source; ``None``: not known from the source.
    """

    values: Tensor
    source: str
    name: str
    kind: str
    dtype: str
    full_range: tuple[float, float] | None = None
    file_sha256: str | None = None
    orientation: str | None = None


def read_array(source: Tensor | np.ndarray[Any, Any], /, **facts: Any) -> Raw:
    """Read a tensor ``([1,] C, H, W)`` or ``(H, W)``, or an array of these or ``(H, W, C)``.

    Raises
    ------
    InputTypeError
        When its values are no real numbers.
    ImageError
        When its shape is no picture's.
    """
    name = str(facts.get("name", "picture"))
    if isinstance(source, np.ndarray):
        kind = "array"
        if source.dtype.kind not in "biuf":
            raise InputTypeError(f"{name}: expected real numbers, got an array of {source.dtype}")
        native = source.astype(source.dtype.newbyteorder("="), order="C", copy=True)
        if native.dtype == np.longdouble:
            native = native.astype(np.float64)
        values = torch.from_numpy(native)
    else:
        kind = "tensor"
        if source.is_complex() or source.is_quantized:
            raise InputTypeError(f"{name}: expected real numbers, got {source.dtype}")
        values = source.detach().to_dense().cpu().clone()
    values = _channels_first(values, name, last_allowed=kind == "array")
    given = str(source.dtype).removeprefix("torch.")
    facts = {"kind": kind, "source": "given", "name": name, **facts}
    return Raw(values, dtype=given, full_range=_FULL_RANGES.get(values.dtype), **facts)


def _channels_first(values: Tensor, name: str, last_allowed: bool) -> Tensor:
    shape = tuple(values.shape)
    if values.ndim == 4 and shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        return values.unsqueeze(0)
    if values.ndim != 3:
        raise ImageError(
            f"{name}: expected one picture of shape (H, W), (C, H, W) or (1, C, H, W), got {shape}"
        )
    if values.shape[0] not in (1, 2, 3, 4) and values.shape[-1] in (1, 2, 3, 4) and last_allowed:
        values = values.permute(2, 0, 1)
    return values


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; a pipe or device would block or never end.

    Raises
    ------
    ImageError
        When it is missing, a folder, a device, or cannot be read.
    """
    try:
        if path.is_dir():
            raise ImageError(f"{path}: expected a picture file, got a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: expected a picture file, got a device or pipe")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: expected a picture file, found none; check the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path, source: str | None = None, name: str | None = None) -> Raw:
    """Read a picture file by its kind.

    Raises
    ------
    ImageError
        When it is missing, a folder, unreadable, or holds no single picture.
    """
    content = read_regular(path)
    facts = {
        "source": source or str(path),
        "name": name or path.stem,
        "kind": "scikit-image" if source else "file",
        "file_sha256": hashlib.sha256(content).hexdigest(),
    }
    if not content:
        raise ImageError(f"{path}: expected a picture file, got an empty file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_array(_numpy(path, content), **facts)
    if suffix in (".pt", ".pth"):
        return read_array(_torch(path, content), **facts)
    if suffix == ".safetensors":
        return read_array(_safetensors(path, content), **facts)
    return _pillow(path, content, facts)


def _numpy(path: Path, content: bytes) -> np.ndarray[Any, Any]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise ImageError(f"{path}: expected a NumPy array file: {_first_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise ImageError(f"{path}: expected one array, got an archive; save the array alone")
    return array


def _torch(path: Path, content: bytes) -> Tensor:
    fault = archive_fault(io.BytesIO(content))
    if fault is not None:
        raise ImageError(f"{path}: expected a tensor saved by torch.save, got {fault}; refused")
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # every kind of damage shows as another exception of torch's
        raise ImageError(
            f"{path}: expected a tensor saved by torch.save, readable without executing code: "
            f"{_first_line(error)}"
        ) from error
    return _only_tensor(path, value)


def _safetensors(path: Path, content: bytes) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        value = load(content)
    except SafetensorError as error:
        raise ImageError(f"{path}: expected a safetensors file: {_first_line(error)}") from error
    return _only_tensor(path, value)


def _only_tensor(path: Path, value: Any) -> Tensor:
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if not isinstance(value, Tensor):
        got = f"{len(value)} entries" if isinstance(value, dict) else type(value).__name__
        raise ImageError(f"{path}: expected one tensor, got {got}; save the picture alone")
    return value


def _pillow(path: Path, content: bytes, facts: dict[str, Any]) -> Raw:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of a suspiciously large picture; here that is an error of one line.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            frames = getattr(image, "n_frames", 1)
            orientation = image.getexif().get(0x0112, 1)
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _deep(path, content, facts)
        raise ImageError(
            f"{path}: expected a picture file, got one that Pillow does not know; "
            "convert it to PNG, or save the values as .npy"
        ) from None
    except Exception as error:  # damaged files raise whatever their decoder meets first
        raise ImageError(f"{path}: cannot be read as a picture: {_first_line(error)}") from error
    if frames != 1 and image.format != "MPO":  # a camera's JPEG with previews behind the picture
        raise ImageError(f"{path}: expected one picture, got {frames} frames; save one of them")
    if _deep_color(image, content):
        return _deep(path, content, facts)
    mode = upright.mode
    if mode == "P":
        upright = upright.convert("RGBA" if "transparency" in upright.info else "RGB")
    elif mode == "I":
        # 16-bit PNG files of older Pillow versions come as 32-bit integers.
        return _wide_integers(path, np.asarray(upright), facts)
    elif mode in _CONVERTED_MODES:
        upright = upright.convert(_CONVERTED_MODES[mode])
    elif mode not in _KEPT_MODES:
        raise ImageError(f"{path}: expected a gray or RGB picture, got Pillow mode {mode!r}")
    array = np.asarray(upright)
    values = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    raw = read_array(np.ascontiguousarray(values), **facts)
    turned = f"EXIF {orientation}, applied" if orientation not in (0, 1) else None
    return replace(raw, dtype=f"{raw.dtype} ({mode})", orientation=turned)


def _deep_color(image: Any, content: bytes) -> bool:
    """Tell whether Pillow would keep only 8 bits of more, or misread them."""
    if image.format == "PNG":  # IHDR: bit depth, colour type (0: gray)
        return content[24] == 16 and content[25] != 0
    if image.format != "TIFF":
        return False
    bits, photometric = image.tag_v2.get(258, (8,)), image.tag_v2.get(262)
    # Pillow forgets to turn 16-bit pictures whose 0 is white.
    return max(bits) > 8 and (len(bits) > 1 or photometric == 0)


def _deep(path: Path, content: bytes, facts: dict[str, Any]) -> Raw:
    """Read a TIFF file of deep or floating point colours; Pillow cannot."""
    if not content.startswith((b"II", b"MM")):
        raise ImageError(
            f"{path}: expected at most 8 bits a colour in a PNG file, got 16, of which 8 would be "
            "lost; save it as TIFF or .npy"
        )
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            pages = len(file.pages)
            photometric = tifffile.PHOTOMETRIC(file.pages.first.photometric).name
            values = math.prod(file.pages.first.shape)
            if values > _MOST_VALUES:
                raise ImageError(
                    f"{path}: expected a picture of at most {_MOST_VALUES} values, got {values}; "
                    "crop it first"
                )
            array = file.pages.first.asarray()
    except ImageError:
        raise
    except Exception as error:  # damaged files raise whatever the decoder meets first
        raise ImageError(f"{path}: cannot be read as TIFF: {_first_line(error)}") from error
    if pages != 1 or photometric not in ("RGB", "MINISBLACK"):
        raise ImageError(
            f"{path}: expected one gray or RGB picture, got {pages} of kind {photometric}"
        )
    return read_array(array, **facts)


def _wide_integers(path: Path, array: np.ndarray[Any, Any], facts: dict[str, Any]) -> Raw:
    if array.min() < 0 or array.max() > 65535:
        raise ImageError(
            f"{path}: expected at most 16 bits a pixel, got {array.min()} to {array.max()}; "
            "save it as floats in [0, 1] (.npy)"
        )
    return read_array(array.astype(np.uint16)[None], **facts)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
