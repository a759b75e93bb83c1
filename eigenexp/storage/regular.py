"""Whether a path is a file that can be read to its end, before it is opened."""

from __future__ import annotations

import stat
from pathlib import Path

__all__ = ["file_fault"]


def file_fault(path: Path, most: int | None = None) -> str | None:
    """Return why ``path`` must not be read, or ``None``.

    A pipe would block, a device never end, a file of terabytes of holes fill the memory.

    Parameters
    ----------
    path
        The file; links are followed.
    most
        Bytes that are read at most; ``None``: any number.

    Raises
    ------
    OSError
        When there is none, or its folder cannot be read.
    """
    facts = path.stat()
    if stat.S_ISDIR(facts.st_mode):
        return "a folder"
    if not stat.S_ISREG(facts.st_mode):
        return "a device or pipe"
    if most is not None and facts.st_size > most:
        return f"a file of {facts.st_size / 1e9:.3g} GB, more than the {most / 1e9:.3g} GB allowed"
    return None
