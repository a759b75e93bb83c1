"""Checkpoint files that are whole or absent: atomic writing, verified reading, safe fallback.

A checkpoint is an ordinary ``torch.save`` archive (any tool can read it) whose zip comment is a
*seal*: step and SHA-256 of all that comes before. Seal and content are one file, so that no
instant exists at which they disagree. Written to a temporary file in the same folder, synced to
disk, then renamed over the old one; a process killed at any point leaves the old file or the new.

Reading never executes what a file holds (``weights_only``), and says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from eigenexp.checkpoints.compatibility import (
    migrate_metadata,
)
from eigenexp.errors import CheckpointError, one_line
from eigenexp.storage.archives import archive_fault, larger_than_storage, tensors_in
from eigenexp.storage.atomic import remove_orphans, replacing, write_json_atomic

__all__ = [
    "METADATA_KEY",
    "Checkpoint",
    "CheckpointWarning",
    "Seal",
    "find_checkpoint",
    "load_checkpoint",
    "load_metadata",
    "metadata_path",
    "newest_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "sealed_step",
    "verify_checkpoint",
]

METADATA_KEY = "eigenexp"
"""Key of our part of a checkpoint; under its ``"metadata"`` the facts are kept."""

_MAGIC = b"eigenexp-seal-1 step=%020d sha256="
_SEAL = re.compile(rb"eigenexp-seal-1 step=(\d{20}) sha256=([0-9a-f]{64})\Z")
_SEAL_LENGTH = len(_MAGIC % 0) + 64
_CHUNK = 1 << 20


class CheckpointWarning(UserWarning):
    """A checkpoint was passed over, or is used without the proof that it is whole."""


@dataclass(frozen=True)
class Seal:
    """What is known about a checkpoint file without unpacking it.

    ``step`` and ``sha256`` are ``None`` for a file some other writer made (it carries no seal; its
    zip checksums were verified instead).
    """

    step: int | None
    sha256: str | None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint file that was proven whole and read, once, in this process.

    Attributes
    ----------
    path
        Where it is.
    seal
        What its seal tells.
    content
        Its dictionary. Lightning changes it when it resumes from it.
    """

    path: Path
    seal: Seal
    content: dict[str, Any] = field(repr=False)

    @property
    def step(self) -> int:
        """The solver step it was saved at."""
        step = self.content.get("global_step") if self.seal.step is None else self.seal.step
        return step if isinstance(step, int) else 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The facts it carries, brought to the present schema.

        Raises
        ------
        CheckpointError
            When there are none, or their schema is newer.
        """
        metadata = _metadata(self.content)
        if "schema_version" not in metadata:
            raise CheckpointError(
                f"{self.path}: expected eigenexp's metadata in the checkpoint, got none; use a "
                "checkpoint written by an eigenexp run"
            )
        return migrate_metadata(metadata)


# -- writing ---------------------------------------------------------------------------------------


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Write a sealed checkpoint and ``<stem>.metadata.json``; return the file's SHA-256.

    The metadata file is a convenience for people and dashboards; the same dictionary is inside the
    checkpoint, which alone is believed.

    Raises
    ------
    CheckpointError
        When the folder cannot be written or the disk is full; the checkpoint before it is intact.
    """
    target = Path(path)
    step = checkpoint.get("global_step", 0)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            writer = _Sealing(file)
            torch.save(dict(checkpoint), cast("IO[bytes]", writer))
            file_sha256 = writer.seal(int(step))
        facts = {**_metadata(checkpoint), "file": target.name, "file_sha256": file_sha256}
        # Not worth its own wait for the disk: the checkpoint holds the same.
        write_json_atomic(metadata_path(target), facts, sync=False)
    except (OSError, RuntimeError) as error:
        # torch wraps a failing write in a RuntimeError; the cause is the OSError.
        cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{target}: expected room and permission to write a checkpoint, got "
            f"{cause.strerror or cause}; free space or choose another folder. Checkpoints written "
            "before are intact"
        ) from error
    return file_sha256


def _metadata(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts a checkpoint carries; how far it is comes from the checkpoint itself."""
    own = checkpoint.get(METADATA_KEY)
    own = own if isinstance(own, Mapping) else {}
    facts = own.get("metadata")
    metadata = dict(facts) if isinstance(facts, Mapping) else {}
    if isinstance(own.get("progress"), Mapping):
        metadata.update(own["progress"])
    if "global_step" in checkpoint:
        metadata["step"] = checkpoint["global_step"]
    return metadata


def metadata_path(path: str | os.PathLike[str]) -> Path:
    """Return ``<stem>.metadata.json`` beside a checkpoint."""
    return Path(path).with_suffix(".metadata.json")


class _Sealing:
    """A file for ``torch.save`` that hashes what passes and can append the seal.

    The archive ends with two zero bytes: the length of an empty zip comment. They are held back,
    and the real length and the seal written in their place.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._tail = b""

    def write(self, data: Any) -> int:
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


# -- reading ---------------------------------------------------------------------------------------


def verify_checkpoint(path: str | os.PathLike[str]) -> Seal:
    """Read the whole file once and prove that it is as it was written.

    Raises
    ------
    CheckpointError
        When it is missing, cut short, altered, or no checkpoint.
    """
    with _open_regular(path) as file:
        return _verify(file, Path(path))


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Verify a checkpoint and return its dictionary; nothing in it is executed.

    Raises
    ------
    CheckpointError
        As :func:`read_checkpoint`.
    """
    return read_checkpoint(path, map_location).content


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> Checkpoint:
    """Verify a checkpoint and read it from the same open file; nothing in it is executed.

    Raises
    ------
    CheckpointError
        When it is missing, damaged, foreign, or holds objects other than tensors and plain
        containers.
    """
    with _open_regular(path) as file:
        seal = _verify(file, Path(path))
        file.seek(0)
        try:
            loaded = torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: expected tensors and plain containers, got objects that would have to "
                "be executed to be read; refused. Use a checkpoint written by eigenexp"
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"{path}: expected a checkpoint, got an archive torch cannot read "
                f"({type(error).__name__}: {one_line(error, 200)}); use an earlier one"
            ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path}: expected a checkpoint's dictionary, got {type(loaded).__name__}"
        )
    size = os.path.getsize(path)
    for tensor in tensors_in(loaded):
        # A small repeated tensor is harmless; one that claims more than the whole file is not.
        if tensor.numel() * tensor.element_size() > size and larger_than_storage(tensor):
            raise CheckpointError(
                f"{path}: expected tensors that the file holds, got one of shape "
                f"{tuple(tensor.shape)} that claims more than the whole file; refused"
            )
    return Checkpoint(Path(path), seal, loaded)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata inside a checkpoint, brought to the present schema.

    Raises
    ------
    CheckpointError
        As :func:`load_checkpoint`, or when there is no metadata or its schema is newer.
    """
    return read_checkpoint(path).metadata


_T = TypeVar("_T")


def find_checkpoint(folder: str | os.PathLike[str], *, clean: bool = True) -> Path:
    """Return the newest valid checkpoint of a folder (or the file itself, if given one).

    Newest is the largest step; ``last.ckpt`` wins a tie. A damaged file is passed over with a
    :class:`CheckpointWarning`. Temporary files of dead writers are deleted if ``clean``.

    Raises
    ------
    CheckpointError
        When there is none.
    """
    return _newest(Path(folder), verify_checkpoint, clean)[0]


def newest_checkpoint(folder: str | os.PathLike[str], *, clean: bool = True) -> Checkpoint:
    """Return the newest valid checkpoint of a folder as :func:`find_checkpoint` does, read.

    Raises
    ------
    CheckpointError
        When there is none.
    """
    return _newest(Path(folder), read_checkpoint, clean)[1]


def _newest(place: Path, take: Callable[[Path], _T], clean: bool) -> tuple[Path, _T]:
    """Return the newest file that ``take`` accepts, and what it makes of it."""
    if not place.is_dir():
        return place, take(place)
    if clean:
        remove_orphans(place)
    damaged: list[str] = []

    def taken(path: Path) -> _T | None:
        try:
            return take(path)
        except CheckpointError as error:
            damaged.append(path.name)
            warnings.warn(f"{error}; trying an earlier one", CheckpointWarning, stacklevel=4)
            return None

    sealed = []
    best: tuple[tuple[float, bool], Path, _T] | None = None
    for path in place.iterdir():
        if path.suffix == ".ckpt":
            step = sealed_step(path)
            # A file without a seal may be the newest one, cut short: say so.
            if step is not None:
                sealed.append((step, path.name == "last.ckpt", path))
                continue
            found = taken(path)
            if found is None:  # a dead link has no age either
                continue
            age = (path.stat().st_mtime, path.name == "last.ckpt")
            if best is None or age > best[0]:
                best = (age, path, found)
    for *_, path in sorted(sealed, reverse=True):
        found = taken(path)
        if found is not None:
            return path, found
    if best is not None:
        return best[1:]
    got = f"only damaged ones ({', '.join(sorted(damaged))})" if damaged else "none"
    raise CheckpointError(
        f"{place}: expected a checkpoint, got {got}; start the run again or name another folder"
    )


def sealed_step(path: Path) -> int | None:
    """Return the step a file's seal tells, unverified; ``None`` where there is no seal."""
    try:
        with _open_regular(path) as file:
            seal = _read_seal(file)
    except CheckpointError:
        return None
    return None if seal is None else int(seal[1])


@contextlib.contextmanager
def _open_regular(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
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


def _verify(file: IO[bytes], path: Path) -> Seal:
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
