"""The seal of a checkpoint file: step and SHA-256 of all before it, in the archive's comment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from eigenexp.errors import CheckpointError, one_line
from eigenexp.storage.archives import archive_fault

__all__ = ["Seal", "Sealing", "open_regular", "sealed_step", "verify", "verify_checkpoint"]

_MAGIC = b"eigenexp-seal-1 step=%020d sha256="
_SEAL = re.compile(rb"eigenexp-seal-1 step=(\d{20}) sha256=([0-9a-f]{64})\Z")
_SEAL_LENGTH = len(_MAGIC % 0) + 64
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Seal:
    """What is known about a checkpoint file without unpacking it.

    ``step`` and ``sha256`` are ``None`` for a file some other writer made (it carries no seal; its
    zip checksums were verified instead).
    """

    step: int | None
    sha256: str | None


class Sealing:
    """A file for ``torch.save`` that hashes what passes and can append the seal.

    The archive ends with two zero bytes: the length of an empty zip comment. They are held back,
    and the real length and the seal written in their place.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._tail = b""

    def write(self, data: Any) -> int:
        """Take what the archive is next made of."""
        view = memoryview(data).cast("B")
        if len(view) < 2:
            joined = self._tail + bytes(view)
            self._pass(joined[:-2])
            self._tail = joined[-2:]
        else:
            self._pass(self._tail)
            self._pass(view[:-2])
            self._tail = bytes(view[-2:])
        return len(view)

    def _pass(self, part: bytes | memoryview[Any]) -> None:
        self._hash.update(part)
        self._file.write(part)

    def flush(self) -> None:
        """Hand on what the file holds back."""
        self._file.flush()

    def seal(self, step: int) -> str:
        """Append the seal; return the SHA-256 of the whole file."""
        if self._tail != b"\0\0":
            raise RuntimeError("torch.save: expected a zip archive that ends without a comment")
        magic = _MAGIC % step
        whole = self._hash.copy()
        self._hash.update(magic)
        comment = magic + self._hash.hexdigest().encode()
        end = struct.pack("<H", len(comment)) + comment
        whole.update(end)
        self._file.write(end)
        return whole.hexdigest()


def verify_checkpoint(path: str | os.PathLike[str]) -> Seal:
    """Read the whole file once and prove that it is as it was written.

    Raises
    ------
    CheckpointError
        When it is missing, cut short, altered, or no checkpoint.
    """
    with open_regular(path) as file:
        return verify(file, Path(path))


def sealed_step(path: Path) -> int | None:
    """Return the step a file's seal tells, unverified; ``None`` where there is no seal."""
    try:
        with open_regular(path) as file:
            seal = _read_seal(file)
    except CheckpointError:
        return None
    return None if seal is None else int(seal[1])


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a regular file; a pipe or device would block or lie."""
    try:
        # O_NONBLOCK: opening a named pipe returns at once instead of waiting for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(path, flags)
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable checkpoint, got {error.strerror or error}"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: expected a checkpoint file, got a folder or device")
    with open(fd, "rb") as file:
        yield file


def _read_seal(file: IO[bytes]) -> re.Match[bytes] | None:
    size = file.seek(0, os.SEEK_END)
    if size < _SEAL_LENGTH + 22:
        return None
    file.seek(size - _SEAL_LENGTH)
    return _SEAL.fullmatch(file.read(_SEAL_LENGTH))


def verify(file: IO[bytes], path: Path) -> Seal:
    """Prove that an open file is as it was written; ``path`` is what errors call it.

    Raises
    ------
    CheckpointError
        When it is not.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise CheckpointError(f"{path}: expected a checkpoint, got a file of another kind")
    fault = archive_fault(file)
    if fault is not None:
        raise CheckpointError(
            f"{path}: expected a whole checkpoint written by torch.save, got {fault}; refused"
        )
    seal = _read_seal(file)
    if seal is None:
        return _verify_unsealed(file, path)
    left = file.tell() - _SEAL_LENGTH - 2
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            break
        left -= len(chunk)
        digest.update(chunk)
    length = file.read(2)
    digest.update(_MAGIC % int(seal[1]))
    if digest.hexdigest().encode() != seal[2] or length != struct.pack("<H", _SEAL_LENGTH):
        raise CheckpointError(
            f"{path}: expected the content its SHA-256 was taken of, got altered bytes; "
            "the file is damaged"
        )
    return Seal(step=int(seal[1]), sha256=seal[2].decode())


def _verify_unsealed(file: IO[bytes], path: Path) -> Seal:
    # torch.save ends a file with an empty zip comment; anything else is a seal cut short.
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22))
    end = file.read(22)
    if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):
        raise CheckpointError(f"{path}: expected a whole checkpoint, got a file cut short")
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a whole checkpoint, got a file cut short or altered "
            f"({one_line(error, 200)})"
        ) from error
    if bad is not None:
        raise CheckpointError(f"{path}: expected a whole checkpoint, got altered bytes in {bad}")
    return Seal(step=None, sha256=None)
