"""The journal of an export: what is done stands in it, so that a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from eigenexp.errors import InputError
from eigenexp.stimuli.fields import read_fields
from eigenexp.stimuli.manifest import Passport
from eigenexp.storage.atomic import write_atomic
from eigenexp.storage.plain import plain
from eigenexp.storage.regular import file_fault

__all__ = ["JOURNAL_FILE", "Journal", "open_folder"]

JOURNAL_FILE = "export.jsonl"
_LOCK = ".export.lock"
_MOST_BYTES = 256 << 20

Entry = Passport | str
"""A stimulus that was written, or why it was left out."""


@contextmanager
def open_folder(folder: Path, key: str) -> Iterator[Journal]:
    """Hold a folder for this export alone and yield its journal.

    Parameters
    ----------
    folder
        Made where it is missing.
    key
        Hash of everything that decides the stimuli.

    Raises
    ------
    InputError
        When the folder cannot be written, holds something else or other stimuli, or another
        process exports into it.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.name != _LOCK]
    except OSError as error:
        raise InputError(
            f"{folder}: expected a folder that can be written, got {error.strerror or error}; "
            "choose another with --output"
        ) from error
    if others and JOURNAL_FILE not in others:
        raise InputError(
            f"{folder}: expected an empty folder, or one with stimuli of the same settings, got "
            f"{len(others)} other files ({sorted(others)[0]}, …); choose another with --output"
        )
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=1.0, poll_interval=0.05)
    except Timeout as error:
        raise InputError(
            f"{folder}: expected a folder that nobody writes to, got one that another export is "
            "at work in; wait for it, or choose another with --output"
        ) from error
    try:
        with Journal(folder, key) as journal:
            yield journal
    finally:
        lock.release()


class Journal:
    """Entries by the ids of stimuli, appended one by one; used as a context."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / JOURNAL_FILE
        self._key = key
        self._file: IO[bytes] | None = None
        self.entries = self._read()

    def __enter__(self) -> Journal:
        # Whole lines alone: the last one of a killed export may be torn.
        lines = [_line({"key": self._key})]
        lines += [_line(_facts(name, entry)) for name, entry in self.entries.items()]
        write_atomic(self._path, b"".join(lines))
        self._file = self._path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, entry: Entry) -> None:
        """Write down what became of a stimulus, its file written by now."""
        if self._file is None:
            raise RuntimeError("journal: expected to be used as a context")
        self.entries[name] = entry
        self._file.write(_line(_facts(name, entry)))
        self._file.flush()

    def _read(self) -> dict[str, Entry]:
        if not self._path.exists():
            return {}
        fault = file_fault(self._path, _MOST_BYTES)
        if fault is not None:
            raise InputError(f"{self._path}: expected the journal of an export, got {fault}")
        lines = self._path.read_bytes().split(b"\n")
        head = _parsed(lines[0])
        if head.get("key") != self._key:
            raise InputError(
                f"{self._path.parent}: expected an empty folder, or one with stimuli of the same "
                "runs and settings, got others; choose another with --output"
            )
        entries: dict[str, Entry] = {}
        for line in lines[1:]:
            facts = _parsed(line)
            name = facts.get("id")
            if not isinstance(name, str):
                continue
            if isinstance(facts.get("left_out"), str):
                entries[name] = str(facts["left_out"])
                continue
            try:
                entries[name] = read_fields(Passport, facts.get("passport"), name)
            except InputError:
                continue  # made again
        return entries


def _facts(name: str, entry: Entry) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"id": name, "left_out": entry}
    return {"id": name, "passport": plain(asdict(entry))}


def _line(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
