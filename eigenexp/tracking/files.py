"""Snapshots of files, and names that stay in their folder. Needs no torch."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from eigenexp.errors import TrackingError

__all__ = [
    "safe_relative",
    "snapshot",
    "sync_files",
]

_COMPONENT = re.compile(r"[^\x00-\x1f/\\:]{1,200}")


def snapshot(source: Path, folder: Path, name: str) -> Path:
    """Keep ``source`` as it is now under ``folder/name``: a hard link where possible, else a copy.

    A link costs nothing and holds the content, because checkpoints are replaced, not rewritten.
    """
    target = folder / name
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def sync_files(folder: Path) -> None:
    """Force a folder and the files in it to disk; those that lie there already cost little."""
    for path in (*folder.iterdir(), folder, folder.parent):
        if os.name == "nt" and path.is_dir():  # no handle of a folder to sync there
            continue
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def safe_relative(path: str) -> str:
    """Return ``path`` if it is a relative path without ``..``.

    Raises
    ------
    TrackingError
        When it is absolute, climbs, or holds control characters, backslashes or colons.
    """
    parts = path.split("/")
    if path and all(_COMPONENT.fullmatch(part) and part not in (".", "..") for part in parts):
        return path
    raise TrackingError(f"artifact path: expected a relative path without '..', got {path!r}")
