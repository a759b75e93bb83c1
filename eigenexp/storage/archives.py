"""Whether a zip archive is what ``torch.save`` writes, before anything in it is unpacked.

``torch.save`` stores its entries as they are. One that is compressed, or whose entries claim more
bytes than the file has, was made by somebody else, perhaps to fill the memory of whoever reads it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["archive_fault", "larger_than_storage", "tensors_in"]

_LOCAL_HEADER = 30  # the least that stands before an entry's content


def archive_fault(file: IO[bytes]) -> str | None:
    """Return what is wrong with an open archive, or ``None``; the position is kept.

    What is no zip archive may be a pickle, as old versions of torch wrote them: its reader will say
    what it thinks of it. The tar archives of still older ones, which are unpacked to a folder, are
    refused.
    """
    place = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        if not zipfile.is_zipfile(file):
            file.seek(0)
            start = file.read(2)
            if start == b"PK":
                return "an archive that is cut short"
            return None if start[:1] in (b"", b"\x80") else "neither an archive nor a pickle"
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "an archive whose directory cannot be read"
    finally:
        file.seek(place)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "compressed entries, which torch.save does not write"
    if sum(entry.file_size + _LOCAL_HEADER for entry in entries) > size:
        return "entries that claim more bytes than the file has"
    return None


def larger_than_storage(tensor: Tensor) -> bool:
    """Tell whether a loaded tensor repeats its storage, so that a copy would take more than it.

    ``torch.save`` keeps the strides of an expanded tensor: a kilobyte may claim gigabytes. A
    sparse tensor claims as much as its dense shape and is never written by eigenexp.
    """
    import torch

    if tensor.layout is not torch.strided:
        return True
    if tensor.device.type == "meta":
        return tensor.numel() > 0
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of nested containers, in their order."""
    import torch

    found: list[Tensor] = []
    left = [value]
    while left:
        entry = left.pop()
        if isinstance(entry, torch.Tensor):
            found.append(entry)
        elif isinstance(entry, Mapping):
            left.extend(reversed(list(entry.values())))
        elif isinstance(entry, (list, tuple, set)):
            left.extend(reversed(list(entry)))
    return found
