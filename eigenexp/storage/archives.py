"""Whether a zip archive is what ``torch.save`` writes, before anything in it is unpacked.

``torch.save`` stores its entries as they are. One that is compressed, or whose entries claim more
bytes than the file has, was made by somebody else, perhaps to fill the memory of whoever reads it.
"""

from __future__ import annotations

import os
import zipfile
from typing import IO

__all__ = ["archive_fault"]

_LOCAL_HEADER = 30  # the least that stands before an entry's content


def archive_fault(file: IO[bytes]) -> str | None:
    """Return what is wrong with an open archive, or ``None``; the position is kept.

    Anything that is no zip archive has no fault here: its reader will say what it thinks of it.
    """
    place = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        if not zipfile.is_zipfile(file):
            return None
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
