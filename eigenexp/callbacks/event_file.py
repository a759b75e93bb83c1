"""A TensorBoard event file without a thread, and what a folder of them has already."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

__all__ = ["EventFile"]

log = logging.getLogger(__name__)

_NAME = re.compile(r"events\.out\.tfevents\.(\d{10,})\.")
_HEADER = struct.Struct("<QI")  # length of the data, its checksum; another checksum behind it


class EventFile:
    """A TensorBoard event file written by whoever has an event, at once.

    Beside TensorBoard's own writer, which hands events to a thread and flushes every 120 s, for
    three reasons. A point of 15 values beside a solve that keeps its processor busy, on two
    cores: median 0.2 ms and 99th percentile 0.3 ms here, 0.15 and 11 ms there (the thread loses
    its processor while it holds the interpreter's lock), 0.4 and 14 ms with a flush after each.
    Every event is with the system when ``add_event`` returns, so ``kill -9`` loses none. And the
    file's name is ours to choose: TensorBoard reads the files of a folder in the order of their
    names, which are times, and does not go back to one that a clock set back has made early.

    The file is made by the first event that is new: a run that is over leaves none.

    Parameters
    ----------
    folder
        The run's folder of event files.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: io.FileIO | None = None
        self._records: Any = None
        self._is_closed = False
        self._start: Event | None = None
        self._step = -1
        self._present: set[str] = set()

    def get_logdir(self) -> str:
        """Return the folder."""
        return self._folder

    def go_on_from(self, step: int) -> None:
        """Go on with a run whose checkpoint is at ``step``: what lies behind is forgotten.

        Values at ``step`` itself that the folder has are not written twice: those of the last
        stage of a run come after its checkpoint.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._step, self._present = step, _tags_at(Path(self._folder), step)
        self._start = Event(
            session_log=SessionLog(status=SessionLog.START), step=step + 1, wall_time=time.time()
        )

    def add_event(self, event: Event) -> None:
        """Write an event; a full disk loses it, not the solve."""
        if self._is_closed:
            return
        if event.step == self._step and event.HasField("summary") and self._present:
            new = [value for value in event.summary.value if value.tag not in self._present]
            if not new:
                return
            event = _with_values(event, new)
        try:
            if self._file is None:
                self._open()
            if self._start is not None:
                self._records.write(self._start.SerializeToString())
                self._start = None
            self._records.write(event.SerializeToString())
        except OSError as error:
            log.warning("TensorBoard: cannot write to %s (%s)", self._folder, error.strerror)

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = Path(self._folder)
        names = (_NAME.match(path.name) for path in _event_files(folder))
        newest = max((int(match[1]) for match in names if match), default=0)
        stamp = max(int(time.time()), newest + 1)
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.direct"
        self._file = io.FileIO(folder / name, "ab")
        self._records = RecordWriter(self._file)
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        self._records.write(first.SerializeToString())

    def flush(self) -> None:
        """Do nothing: everything is written."""

    def close(self) -> None:
        """Close the file."""
        self._is_closed = True
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        self.close()


def _with_values(event: Event, values: list[Any]) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=values))


def _event_files(folder: Path) -> list[Path]:
    """Return a folder's event files in the order in which TensorBoard reads them."""
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())


def _tags_at(folder: Path, step: int) -> set[str]:
    """Return the tags that have a value at ``step``, of those that TensorBoard still shows."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    tags: set[str] = set()
    for path in _event_files(folder):
        for data in _records_of(path):
            try:
                event = Event.FromString(data)
            except Exception:  # protobuf's own kind, of a package that is not ours to import
                break
            if event.session_log.status == SessionLog.START and event.step <= step:
                tags.clear()
            elif event.step == step:
                tags.update(value.tag for value in event.summary.value)
    return tags


def _records_of(path: Path) -> Iterator[bytes]:
    """Yield a file's records; its last one may be torn.

    TensorBoard's own reader checks sums in Python: 3.4 s where this takes 0.07 s, of 7500 points of
    15 values and 100 pictures.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, _ = _HEADER.unpack(header)
            if file.tell() + length > size:
                return
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)
