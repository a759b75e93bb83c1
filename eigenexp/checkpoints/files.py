"""Checkpoint files that are whole or absent: atomic writing, verified reading, safe fallback.

A checkpoint is an ordinary ``torch.save`` archive (any tool can read it) whose zip comment is a
*seal*: step and SHA-256 of all that comes before. Seal and content are one file, so that no
instant exists at which they disagree. Written to a temporary file in the same folder, synced to
disk, then renamed over the old one; a process killed at any point leaves the old file or the new.

Reading never executes what a file holds (``weights_only``), and says what is wrong with it.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from eigenexp.checkpoints.compatibility import migrate_metadata
from eigenexp.checkpoints.seals import (
    Seal,
    Sealing,
    open_regular,
    sealed_step,
    verify,
    verify_checkpoint,
)
from eigenexp.errors import CheckpointError, one_line
from eigenexp.storage.archives import larger_than_storage, tensors_in
from eigenexp.storage.atomic import remove_orphans, replacing, write_json_atomic

__all__ = [
    "METADATA_KEY",
    "Checkpoint",
    "CheckpointWarning",
    "find_checkpoint",
    "load_checkpoint",
    "load_metadata",
    "metadata_path",
    "newest_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]

METADATA_KEY = "eigenexp"
"""Key of our part of a checkpoint; under its ``"metadata"`` the facts are kept."""


class CheckpointWarning(UserWarning):
    """A checkpoint was passed over, or is used without the proof that it is whole."""


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
            writer = Sealing(file)
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


# -- reading ---------------------------------------------------------------------------------------


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
    with open_regular(path) as file:
        seal = verify(file, Path(path))
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
