"""Files that are whole or absent: written beside their place, synced to disk, then renamed."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from eigenexp.storage.plain import plain

if sys.platform != "win32":
    import fcntl

__all__ = ["copy_atomic", "remove_orphans", "replacing", "write_atomic", "write_json_atomic"]

_BUFFER = 1 << 20
_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.eigenexp-tmp\Z")
_counter = itertools.count()


def write_atomic(path: str | os.PathLike[str], content: bytes, *, sync: bool = True) -> Path:
    """Write ``content`` to ``path`` so that a reader, or a crash, sees all of it or none.

    Without ``sync`` a power cut may undo it: for files that can be made again.

    Raises
    ------
    OSError
        When the folder cannot be written or the disk is full; the old file is then untouched.
    """
    target = Path(path)
    with replacing(target, sync=sync) as file:
        file.write(content)
    return target


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is the old one or the whole new one; folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as out, source.open("rb") as file:
        shutil.copyfileobj(file, out, _BUFFER)


def write_json_atomic(path: str | os.PathLike[str], value: Any, *, sync: bool = True) -> Path:
    """Write ``value`` as strict JSON (NaN and infinities as strings), atomically."""
    text = json.dumps(_json_ready(plain(value)), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, text.encode() + b"\n", sync=sync)


@contextlib.contextmanager
def replacing(target: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Yield a temporary file beside ``target`` that replaces it when the block ends well."""
    file = _open_temporary(target)
    temporary = Path(file.name)
    try:
        yield file
        file.flush()
        if sync:
            os.fsync(file.fileno())
        if sys.platform == "win32":  # an open file cannot be renamed there
            file.close()
        os.replace(temporary, target)
        if sync:
            _sync_folder(target.parent)
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        file.close()


def _open_temporary(target: Path) -> IO[bytes]:
    """Create a temporary file, locked for as long as it is open (see :func:`remove_orphans`)."""
    while True:
        name = f".{target.name}.{os.getpid()}-{next(_counter)}.eigenexp-tmp"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        try:
            fd = os.open(target.with_name(name), flags, 0o666)
        except FileExistsError:  # left by a process with our number
            continue
        if sys.platform != "win32":
            # A filesystem without locks does not clean up either: nothing to protect from.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink == 0:  # a cleaner was faster than our lock
                os.close(fd)
                continue
        path = target.with_name(name)
        return open(path, "wb", buffering=_BUFFER, opener=lambda *_, fd=fd: fd)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # no handle of a folder to sync there
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_orphans(folder: str | os.PathLike[str], *, deep: bool = False) -> list[Path]:
    """Delete temporary files whose writer is dead; return them. Files being written stay.

    ``deep`` looks into the folders inside, too.
    """
    removed = []
    for path in list(Path(folder).glob(f"{'**/' if deep else ''}.*.eigenexp-tmp")):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # somebody writes it, or another cleaner was faster
            if sys.platform == "win32":  # an open file cannot be deleted there
                os.unlink(path)
            else:
                fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(fd)
            removed.append(path)
    return removed


def _json_ready(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_json_ready(entry) for entry in value]
    return value
