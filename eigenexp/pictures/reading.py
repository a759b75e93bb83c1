"""Reading pictures from files and arrays, as they are: no scaling, no conversion."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputTypeError, first_line
from eigenexp.pictures.image_files import MOST_VALUES, kind_of, read_image_file
from eigenexp.storage.archives import archive_fault, larger_than_storage
from eigenexp.storage.regular import file_fault

__all__ = ["Raw", "read_array", "read_file", "read_regular"]

_FULL_RANGES = {
    torch.bool: (0.0, 1.0),
    torch.uint8: (0.0, 255.0),
    torch.uint16: (0.0, 65535.0),
}
_MOST_BYTES = 8 * MOST_VALUES + (1 << 20)  # float64, and a header


@dataclass(frozen=True)
class Raw:
    """A picture as its source holds it.

    Attributes
    ----------
    values
        ``(C, H, W)`` in the source's dtype; may share memory with the source.
    full_range
        (black, white) of an integer source; ``None``: not known from the source.
    alpha
        What reading left out of transparency; ``None``: nothing.
    """

    values: Tensor
    source: str
    name: str
    kind: str
    dtype: str
    full_range: tuple[float, float] | None = None
    file_sha256: str | None = None
    orientation: str | None = None
    alpha: str | None = None


def read_array(source: Tensor | np.ndarray[Any, Any], /, **facts: Any) -> Raw:
    """Read a tensor ``([1,] C, H, W)`` or ``(H, W)``, or an array of these or ``(H, W, C)``.

    Raises
    ------
    InputTypeError
        When its values are no real numbers.
    ImageError
        When its shape is no picture's, may be read in two ways, or has too many values.
    """
    name = str(facts.get("name", "picture"))
    size = source.numel() if isinstance(source, Tensor) else source.size
    if size > MOST_VALUES:
        raise ImageError(
            f"{name}: expected a picture of at most {MOST_VALUES} values, got {size}; crop it first"
        )
    if isinstance(source, np.ndarray):
        kind = "array"
        if source.dtype.kind not in "biuf":
            raise InputTypeError(f"{name}: expected real numbers, got an array of {source.dtype}")
        values = _from_numpy(source)
    else:
        kind = "tensor"
        if source.is_complex() or source.is_quantized:
            raise InputTypeError(f"{name}: expected real numbers, got {source.dtype}")
        values = source.detach().to_dense().cpu()
    values = _channels_first(values, name, last_allowed=kind == "array")
    given = str(source.dtype).removeprefix("torch.")
    facts = {"kind": kind, "source": "given", "name": name, "dtype": given, **facts}
    return Raw(values, full_range=_FULL_RANGES.get(values.dtype), **facts)


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor of the array's values, and a copy only of what torch cannot hold as it is."""
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    plain = array.dtype.isnative and array.flags.writeable and min(array.strides, default=0) >= 0
    if not plain:
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(array)


def _channels_first(values: Tensor, name: str, last_allowed: bool) -> Tensor:
    shape = tuple(values.shape)
    if values.ndim == 4 and shape[0] == 1:
        return values[0]
    if values.ndim == 2:
        return values.unsqueeze(0)
    if values.ndim != 3:
        raise ImageError(
            f"{name}: expected one picture of shape (H, W), (C, H, W) or (1, C, H, W), got {shape}"
        )
    first, last = (size in (1, 2, 3, 4) for size in (shape[0], shape[-1]))
    if first and last and last_allowed:
        raise ImageError(
            f"{name}: expected (C, H, W) or (H, W, C), got {shape}, which may be either; give "
            "(1, C, H, W): array[None], or array.transpose(2, 0, 1)[None]"
        )
    return values.permute(2, 0, 1) if last and not first and last_allowed else values


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; a pipe or device would block or never end.

    Raises
    ------
    ImageError
        When it is missing, a folder, a device, larger than any picture, or cannot be read.
    """
    try:
        fault = file_fault(path, _MOST_BYTES)
        if fault is not None:
            advice = "; name a file in it" if fault == "a folder" else ""
            raise ImageError(f"{path}: expected a picture file, got {fault}{advice}")
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise ImageError(
                f"{path}: expected a picture file, got a link to {path.readlink()}, which is gone"
            ) from None
        raise ImageError(f"{path}: expected a picture file, found none; check the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise ImageError(f"{path}: cannot be read: it does not fit in the memory left") from None


def read_file(path: Path) -> Raw:
    """Read a picture file by its kind.

    Raises
    ------
    ImageError
        When it is missing, a folder, unreadable, or holds no single picture.
    """
    content = read_regular(path)
    facts = {
        "source": str(path),
        "name": path.stem,
        "kind": "file",
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
    array, told = read_image_file(path, content)
    return read_array(array, **facts, **told)


def _numpy(path: Path, content: bytes) -> np.ndarray[Any, Any]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header shows as whatever its parser raises
        said = first_line(error) if content.startswith(b"\x93NUMPY") else f"got {kind_of(content)}"
        raise ImageError(f"{path}: expected a NumPy array file: {said}") from error
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
            f"{first_line(error)}"
        ) from error
    return _only_tensor(path, value)


def _safetensors(path: Path, content: bytes) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        value = load(content)
    except SafetensorError as error:
        raise ImageError(f"{path}: expected a safetensors file: {first_line(error)}") from error
    return _only_tensor(path, value)


def _only_tensor(path: Path, value: Any) -> Tensor:
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if not isinstance(value, Tensor):
        got = f"{len(value)} entries" if isinstance(value, dict) else type(value).__name__
        raise ImageError(f"{path}: expected one tensor, got {got}; save the picture alone")
    if larger_than_storage(value):
        raise ImageError(
            f"{path}: expected a picture, got a tensor of shape {tuple(value.shape)} that claims "
            "more values than the file holds; save its contiguous()"
        )
    return value
