"""Small files written whole, snapshots, and names that stay in their folder. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from eigenexp.errors import TrackingError

__all__ = [
    "copy_atomic",
    "remove_leftovers",
    "safe_relative",
    "snapshot",
    "sync_files",
    "write_text_atomic",
]

_COMPONENT = re.compile(r"[^\x00-\x1f/\\:]{1,200}")


def write_text_atomic(path: Path, text: str) -> None:
    """Replace ``path``; not synced to disk (what is kept so can be derived again)."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is the old one or the whole new one, also after a kill."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=".incoming-", suffix=".tmp")
    try:
        with open(fd, "wb") as out, source.open("rb") as file:
            shutil.copyfileobj(file, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what copies cut off by a kill left under ``folder``; nobody may be copying there."""
    for path in folder.rglob(".incoming-*.tmp"):
        path.unlink(missing_ok=True)


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
