"""What a run has to tell, on disk before it is sent: an append-only journal a run.

The solving process only appends (one ``write`` a record, so that a killed process loses nothing it
logged); a separate process reads, sends and notes how far it came. Points carry their time stamp
from here on, which makes sending one twice harmless.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eigenexp.errors import CheckpointError, TrackingError
from eigenexp.storage.atomic import write_atomic
from eigenexp.storage.json_files import read_json
from eigenexp.storage.regular import file_fault
from eigenexp.tracking.names import sqlite_uri
from eigenexp.tracking.records import Record, parse_record

__all__ = ["Spool", "SpoolState", "find_spools", "spool_folder"]

SEGMENT_BYTES = 4 << 20
_MOST_BYTES = 64 << 20  # of a segment, whose last record may be a long one
_SEGMENT = re.compile(r"journal-(\d{6})\.jsonl")


def spool_folder(root: str | os.PathLike[str]) -> Path:
    """Return where the spools of a store's runs lie."""
    return Path(root) / "spool"


def find_spools(root: str | os.PathLike[str]) -> list[Spool]:
    """Return every spool under ``root``, oldest first."""
    folder = spool_folder(root)
    if not folder.is_dir():
        return []
    return [Spool(path) for path in sorted(folder.iterdir()) if (path / "meta.json").is_file()]


@dataclass
class SpoolState:
    """How far the sender is; written by it alone.

    Attributes
    ----------
    run_id
        The server's id; ``None`` before the run exists there.
    creating
        A creation was begun; look for its traces before the next one.
    segment, offset
        Everything in the journal before this place is dealt with.
    steps
        Last step sent, by metric (pictures as ``image:<key>``).
    floor
        ``steps`` when the present session began: a resumed run repeats those, they are dropped.
    uploads
        Upload records read from the journal and not done.
    params
        Parameters the server has.
    status
        Last status sent.
    session
        The last session record.
    ended
        The writer has said that nothing follows.
    points
        Metric points delivered.
    rejected
        Points and records that are for nobody: refused by the server for good, or damaged.
    former
        The server's id of the run that a lost store had; it was made anew under another.
    rival
        Who else works on the run, in words.
    error
        Why sending fails at present, in one line.
    lost
        The file was damaged: ask the store what it has before sending.
    """

    run_id: str | None = None
    creating: bool = False
    segment: int = 1
    offset: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    floor: dict[str, int] = field(default_factory=dict)
    uploads: list[Record] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    session: Record = field(default_factory=dict)
    ended: bool = False
    points: int = 0
    rejected: int = 0
    former: str | None = None
    rival: str | None = None
    error: str | None = None
    lost: bool = False


class Spool:
    """One run's folder: ``meta.json``, ``journal-*.jsonl``, ``state.json``, ``files/``.

    Parameters
    ----------
    folder
        The run's own folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._file: int | None = None
        self._segment = 0
        self._size = 0
        self._count = 0

    @classmethod
    def create(cls, root: str | os.PathLike[str], meta: Mapping[str, Any]) -> Spool:
        """Make a new spool; its ``local_id`` names the run until a server does.

        Raises
        ------
        TrackingError
            When ``root`` cannot be written.
        """
        local_id = f"offline-{uuid.uuid4().hex}"
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = spool_folder(root) / f"{stamp}-{local_id}"
        try:
            (folder / "files").mkdir(parents=True)
            text = json.dumps({**meta, "version": 1, "local_id": local_id})
            write_atomic(folder / "meta.json", text.encode(), sync=False)
        except OSError as error:
            raise TrackingError(
                f"{root}: expected a folder that can be written, got {error.strerror or error}; "
                "choose another with root=… or make room"
            ) from error
        return cls(folder)

    @property
    def meta(self) -> dict[str, Any]:
        """What the run is: store, experiment, name, tags, ``local_id``.

        Where the folder of runs was moved, root and store are those where the spool lies now.

        Raises
        ------
        TrackingError
            When the file is damaged.
        """
        path = self.folder / "meta.json"
        try:
            meta = read_json(path, "what run this is")
        except CheckpointError as error:
            raise TrackingError(f"{error}; nothing of it can be sent") from error
        texts = ("root", "uri", "experiment", "local_id")
        if not all(isinstance(meta.get(k), str) for k in texts):
            raise TrackingError(
                f"{path}: expected a mapping with {', '.join(texts)}, got another kind; nothing "
                "of it can be sent"
            )
        root = self.folder.absolute().parents[1]
        if meta["uri"] == sqlite_uri(meta["root"]):
            meta["uri"] = sqlite_uri(root)
        return {**meta, "root": str(root)}

    @property
    def files(self) -> Path:
        """Snapshots of what waits to be uploaded."""
        return self.folder / "files"

    def new_file_folder(self) -> Path:
        """Return a new folder under :attr:`files`."""
        self._count += 1
        folder = self.files / f"{time.time_ns():020d}-{os.getpid()}-{self._count}"
        folder.mkdir(parents=True)
        return folder

    # -- state -----------------------------------------------------------------------------------

    def read_state(self) -> SpoolState:
        """Return how far the sender is; the beginning, when it has not begun.

        Where the file is damaged all is read once more, and the store asked what it has.
        """
        path = self.folder / "state.json"
        with contextlib.suppress(CheckpointError):
            try:
                facts = read_json(path, "how far the sender is")
            except CheckpointError as error:
                if isinstance(error.__cause__, FileNotFoundError) and not path.is_symlink():
                    return SpoolState()
                raise
            known = asdict(SpoolState())
            facts = {key: value for key, value in facts.items() if key in known}
            if all(_is_like(value, known[key]) for key, value in facts.items()):
                return SpoolState(**facts)
        return SpoolState(creating=True, segment=self.first_segment, lost=True)

    def write_state(self, state: SpoolState) -> None:
        """Keep how far the sender is. Lost in a power cut, it only makes points sent twice."""
        text = json.dumps(asdict(state))
        write_atomic(self.folder / "state.json", text.encode(), sync=False)

    # -- writing ---------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a record; one system call, complete for a reader or absent.

        Raises
        ------
        OSError
            When the disk is full.
        """
        data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        fd = self._open_segment() if self._file is None or self._is_full else self._file
        written = os.write(fd, data)
        if written != len(data):  # a full disk: take the torn line back
            os.ftruncate(fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    @property
    def _is_full(self) -> bool:
        return self._size >= SEGMENT_BYTES

    def _open_segment(self) -> int:
        existing = self._segments()
        newest = max(existing, default=0)
        fresh = self._file is not None or newest == 0
        number = newest + 1 if fresh else newest
        self.close()
        path = self._segment_path(number)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o666)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # the writer before died in mid-line
            whole = path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(fd, whole)
            size = whole
        self._file, self._segment, self._size = fd, number, size
        return fd

    def sync(self) -> None:
        """Force what was appended to disk, against power cuts; call before a checkpoint."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the journal; the next ``append`` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def position(self) -> tuple[int, int]:
        """Segment and offset behind the last record written by this object."""
        return (self._segment, self._size)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, state: SpoolState, limit: int) -> Iterator[tuple[Record, int, int]]:
        """Yield up to ``limit`` records from ``state``'s place on, with the place behind each.

        A line that is no record comes as ``{"k": "damaged", "line": …}``.
        """
        segment, offset = state.segment, state.offset
        while limit > 0:
            path = self._segment_path(segment)
            if path.exists():
                fault = file_fault(path, _MOST_BYTES)
                if fault is not None:
                    raise TrackingError(f"{path}: expected a journal, got {fault}")
                with path.open("rb") as file:
                    file.seek(offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        offset += len(line)
                        limit -= 1
                        yield parse_record(line), segment, offset
                        if limit <= 0:
                            return
            if not self._segment_path(segment + 1).exists():
                return
            segment, offset = segment + 1, 0

    def has_more(self, state: SpoolState) -> bool:
        """Whether whole records lie behind ``state``'s place."""
        return next(self.read(state, 1), None) is not None

    @property
    def first_segment(self) -> int:
        """The first that is still there."""
        return min(self._segments(), default=1)

    def drop_segments(self, before: int) -> None:
        """Delete segments that are dealt with."""
        for number in self._segments():
            if number < before:
                self._segment_path(number).unlink(missing_ok=True)

    @property
    def refused_path(self) -> Path:
        """Where what is for nobody is kept, a JSON line a record; it outlives the spool."""
        return self.folder.parent / f"{self.folder.name}.refused.jsonl"

    def set_aside(self, record: Record, reason: str) -> None:
        """Keep a record that cannot be sent, so that the others can."""
        line = json.dumps({"why": reason, "record": record})
        with contextlib.suppress(OSError), self.refused_path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def remove(self) -> None:
        """Delete the spool; everything in it was delivered."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _segments(self) -> list[int]:
        names = (_SEGMENT.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def _segment_path(self, number: int) -> Path:
        return self.folder / f"journal-{number:06d}.jsonl"


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value of the state is of its default's kind; texts may be absent."""
    if default is None:
        return value is None or isinstance(value, str)
    return type(value) is type(default)
