"""Picture files by Pillow, and by tifffile what Pillow would cut, clip or misread.

Every way ends in the values that the file holds: a conversion of Pillow's that loses some is
replaced or refused.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np

from eigenexp.errors import ImageError, first_line

__all__ = ["MOST_VALUES", "ImageFileFacts", "read_image_file"]

# As Pillow: three times its 89 million pixels is a decompression bomb.
MOST_VALUES = 3 * 89_478_485
# Formats are opened by name alone: others of Pillow's start programs (PostScript) or read scripts.
# A camera's MPO file is opened as JPEG.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF",
            "TGA", "PCX", "SGI")  # fmt: skip
# Pillow's modes that hold what we read as they are; other modes are converted by Pillow first.
_KEPT_MODES = ("L", "LA", "RGB", "RGBA", "F", "I;16", "I;16B", "I;16L")
_CONVERTED_MODES = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "CMYK": "RGB"}
_CONVERTED_MODES |= {"YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
_ORIENTATION, _BITS, _PHOTOMETRIC, _EXTRA, _SAMPLE_FORMAT = 274, 258, 262, 338, 339
_SAMPLES = 277
_COLORS = (0, 1, 2)  # PhotometricInterpretation: gray, gray, RGB; what more there is, is extra
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated alpha
_SIGNED = 2  # SampleFormat: two's complement

ImageFileFacts = dict[str, Any]
"""``dtype`` (with Pillow's mode), ``orientation``, ``alpha``: what a record says of a file."""


def read_image_file(path: Any, content: bytes) -> tuple[np.ndarray[Any, Any], ImageFileFacts]:
    """Return the values ``(1, C, H, W)`` of a picture file, upright, and what to say of them.

    Raises
    ------
    ImageError
        When it holds no single picture that is gray or RGB, with or without alpha, or more values
        than :data:`MOST_VALUES`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of a suspiciously large picture; here that is an error of one line.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Any = Image.open(io.BytesIO(content), formats=_FORMATS)
            frames = getattr(image, "n_frames", 1)
            deep = _deep_color(image, content)
            orientation = image.getexif().get(_ORIENTATION, 1)
            upright = image if deep else ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(path, content)
        raise ImageError(
            f"{path}: expected a picture file, got {kind_of(content)}; convert it to PNG, or save "
            "the values as .npy"
        ) from None
    except Exception as error:  # damaged files raise whatever their decoder meets first
        raise ImageError(f"{path}: cannot be read as a picture: {first_line(error)}") from error
    if frames != 1 and image.format != "MPO":  # a camera's JPEG with previews behind the picture
        raise ImageError(f"{path}: expected one picture, got {frames} frames; save one of them")
    if deep:
        return _tiff(path, content)
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) in _COLORS:
        _check_extra(path, image.tag_v2.get(_SAMPLES, 1), image.tag_v2.get(_EXTRA, ()))
    mode = upright.mode
    # A colour that stands for "see-through", in files without alpha of their own.
    alpha = "tRNS dropped" if "transparency" in image.info and mode != "P" else None
    if mode == "P":
        upright = upright.convert("RGBA" if "transparency" in upright.info else "RGB")
    elif mode == "I":
        # 16-bit PNG files of older Pillow versions come as 32-bit integers.
        return _sixteen_bits(path, np.asarray(upright)), {"orientation": _turned(orientation)}
    elif mode in _CONVERTED_MODES:
        upright = upright.convert(_CONVERTED_MODES[mode])
    elif mode not in _KEPT_MODES:
        raise ImageError(f"{path}: expected a gray or RGB picture, got Pillow mode {mode!r}")
    array = np.asarray(upright)
    facts = {
        "dtype": f"{array.dtype.newbyteorder('=')} ({mode})",
        "orientation": _turned(orientation),
        "alpha": alpha,
    }
    return (array[None] if array.ndim == 2 else array.transpose(2, 0, 1))[None], facts


def kind_of(content: bytes) -> str:
    """Say what a file seems to be by its first bytes."""
    kinds = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF",
             b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP", b"%!PS": "PostScript",
             b"%PDF": "PDF", b"\xc5\xd0\xd3\xc6": "PostScript", b"v/1\x01": "OpenEXR",
             b"\x93NUMPY": "NumPy (.npy)", b"PK": "zip or PyTorch (.pt)"}  # fmt: skip
    for start, kind in kinds.items():
        if content.startswith(start):
            return f"a {kind} file"
    return "a file of unknown kind"


def _turned(orientation: int) -> str | None:
    return f"EXIF {orientation}, applied" if orientation not in (0, 1) else None


def _deep_color(image: Any, content: bytes) -> bool:
    """Tell whether Pillow would keep only 8 bits of more, or misread them."""
    if image.format == "PNG":  # IHDR: bit depth, colour type (0: gray)
        return content[24] == 16 and content[25] != 0
    if image.format != "TIFF":
        return False
    bits, photometric = image.tag_v2.get(_BITS, (8,)), image.tag_v2.get(_PHOTOMETRIC)
    # Signed numbers of 8 or 16 bits: Pillow takes the first for unsigned ones.
    if _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()) and max(bits) <= 16:
        return True
    # Pillow forgets to turn 16-bit pictures whose 0 is white.
    return max(bits) > 8 and (len(bits) > 1 or photometric == 0)


def _tiff(path: Any, content: bytes) -> tuple[np.ndarray[Any, Any], ImageFileFacts]:
    """Read a TIFF file of deep, signed or floating point colours; Pillow cannot."""
    if not content.startswith((b"II", b"MM")):
        raise ImageError(
            f"{path}: expected at most 8 bits a colour in a PNG file, got 16, of which 8 would be "
            "lost; save it as TIFF or .npy"
        )
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            pages, axes = len(file.pages), page.axes
            photometric = tifffile.PHOTOMETRIC(page.photometric).name
            extra = tuple(int(kind) for kind in page.extrasamples)
            tag = page.tags.get(_ORIENTATION)
            orientation = int(tag.value) if tag is not None else 1
            values = math.prod(page.shape)
            if values > MOST_VALUES:
                raise ImageError(
                    f"{path}: expected a picture of at most {MOST_VALUES} values, got {values}; "
                    "crop it first"
                )
            array = page.asarray()
    except ImageError:
        raise
    except Exception as error:  # damaged files raise whatever the decoder meets first
        raise ImageError(f"{path}: cannot be read as TIFF: {first_line(error)}") from error
    if pages != 1 or photometric not in ("RGB", "MINISBLACK"):
        raise ImageError(
            f"{path}: expected one gray or RGB picture, got {pages} of kind {photometric}"
        )
    if axes not in ("YX", "YXS", "SYX"):
        raise ImageError(f"{path}: expected rows, columns and colours, got the axes {axes}")
    array = array[None] if axes == "YX" else array.transpose(2, 0, 1) if axes == "YXS" else array
    _check_extra(path, len(array), extra)
    array = _upright(array, orientation)
    dtype = str(array.dtype.newbyteorder("="))
    return array[None], {"dtype": dtype, "orientation": _turned(orientation)}


def _check_extra(path: Any, channels: int, extra: Any) -> None:
    """Refuse a channel beside gray or RGB that the file does not call alpha."""
    if channels not in (1, 3) and not (channels in (2, 4) and set(extra) & set(_ALPHA)):
        raise ImageError(
            f"{path}: expected gray or RGB, with or without alpha, got {channels} channels of "
            "which the last is not marked as alpha; save those you mean as a file of 1 or 3"
        )


def _upright(array: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Turn ``(C, H, W)`` as its Orientation (TIFF 6.0, tag 274) says."""
    if orientation in (5, 6, 7, 8):  # rows and columns are exchanged
        array = array.swapaxes(-1, -2)
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :]
    return array


def _sixteen_bits(path: Any, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.min() < 0 or array.max() > 65535:
        raise ImageError(
            f"{path}: expected at most 16 bits a pixel, got {array.min()} to {array.max()}; "
            "save it as floats in [0, 1] (.npy)"
        )
    return array.astype(np.uint16)[None, None]
