"""A run's spool together with the process that sends it: what the solving process holds."""

from __future__ import annotations

import atexit
import logging
import math
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eigenexp.errors import TrackingError
from eigenexp.tracking.files import safe_relative, snapshot, sync_files
from eigenexp.tracking.names import check_run_id
from eigenexp.tracking.records import Record, session_record
from eigenexp.tracking.senders import SENDERS, await_removal
from eigenexp.tracking.spool import Spool, SpoolState, find_spools
from eigenexp.tracking.store import Store
from eigenexp.tracking.texts import printable

__all__ = ["Outbox"]

log = logging.getLogger(__name__)

_HELD_BACK = 10_000
_PATIENCE = 3.0


class Outbox:
    """Takes records and files, keeps them on disk, and sees that a sender process lives.

    No method raises for the sake of the store or of a full disk.

    Parameters
    ----------
    store
        Where the run is kept.
    experiment, run_name, tags
        Of a new run.
    run_id
        Continue this run.

    Raises
    ------
    TrackingError
        When the store's folder cannot be written.

    Attributes
    ----------
    process
        The process that sends; None before there is one, and in a copy.
    """

    def __init__(
        self,
        store: Store,
        *,
        experiment: str,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._held_back: deque[Record] = deque(maxlen=_HELD_BACK)
        self._warned = False
        self._open = True
        self._store = store
        # Moment after which nothing waits any more, whoever waits already.
        self.deadline = math.inf
        spool = None if run_id is None else _find_spool(store, run_id)
        if spool is None:
            meta = {
                "root": str(store.root),
                "uri": store.address,
                "experiment": experiment,
                "run_name": run_name,
                "tags": dict(tags or {}),
                "run_id": run_id,
            }
            spool = Spool.create(store.root, meta)
        self.spool = spool
        self._local_id = str(spool.meta["local_id"])
        self._run_id: str | None = None
        self._rival = spool.read_state().rival  # told to whoever was here before
        self.append(session_record(resume=run_id is not None, run_id=run_id))
        if run_id is not None and tags:
            self.append({"k": "t", "v": dict(tags)})
        self._launch()
        atexit.register(self._end)

    def await_run_id(self, timeout: float) -> str:
        """Return the store's id of the run, or the provisional one when it gives none in time."""
        end = time.monotonic() + timeout
        while True:
            state = self._read_state()
            if self._run_id is not None:
                return check_run_id(self._run_id)
            stopped = self.process is None or self.process.poll() is not None
            late = time.monotonic() > end
            if state.error or stopped or late:
                reason = "the sender stopped" if stopped else f"no answer in {timeout:.0f} s"
                log.warning(
                    "the tracking store %s does not answer (%s); the run goes on as %s and is "
                    "sent when the store is back",
                    self._store.address,
                    printable(state.error or reason),
                    self._local_id,
                )
                return self._local_id
            time.sleep(0.02)

    def _read_state(self) -> SpoolState:
        state = self.spool.read_state()
        self._run_id = state.run_id or self._run_id
        if state.rival is not None and state.rival != self._rival:
            self._rival = state.rival
            log.warning("run %s: %s", self._run_id or self._local_id, printable(state.rival))
        return state

    def append(self, record: Record) -> None:
        """Add a record to the journal; held in memory while the disk is full."""
        if not self._open:
            return
        try:
            if self._held_back:
                self._flush_held_back()
            self.spool.append(record)
        except OSError as error:
            self._held_back.append(record)
            self._tell_once(error)

    def append_files(
        self, record: Record, files: list[tuple[Path, str]], artifact_path: str
    ) -> None:
        """Take snapshots of ``(path, name)`` files and append the record that names them.

        Raises
        ------
        TrackingError
            When a name or ``artifact_path`` climbs out of its folder.
        """
        if artifact_path:
            safe_relative(artifact_path)
        for _, name in files:
            safe_relative(name)

        def keep(folder: Path) -> list[tuple[Record, list[Path]]]:
            kept = [snapshot(source, folder, name) for source, name in files]
            return [({**record, "to": artifact_path}, kept)]

        self.append_made(keep)

    def append_made(self, make: Callable[[Path], list[tuple[Record, list[Path]]]]) -> None:
        """Append records, each of the files that ``make`` writes for it in the folder it is given.

        A full disk loses them, not the solve.
        """
        if not self._open:
            return
        try:
            folder = self.spool.new_file_folder()
            made = make(folder)
            sync_files(folder)  # before a record names them: a power cut may keep that alone
        except OSError as error:
            self._tell_once(error)
            return
        for record, paths in made:
            names = [str(path.relative_to(self.spool.folder)) for path in paths]
            self.append({**record, "files": names})

    def sync(self) -> None:
        """Force the journal to disk, and start the sender again if it died."""
        if not self._open:
            return
        try:
            self._flush_held_back()
            self.spool.sync()
        except OSError as error:
            self._tell_once(error)
        self._read_state()  # tells of a rival
        if self.process is None or self.process.poll() is not None:
            self._launch()

    def wait(self, timeout: float) -> bool:
        """Return whether the store has everything, once it has or there is no hope in time.

        In a sweep that sends beside the next solve it does not wait.
        """
        if SENDERS.defers:
            return self.is_settled
        return self._wait(timeout)

    @property
    def is_settled(self) -> bool:
        """Whether the store has everything, or nothing waits any more."""
        if not self.spool.folder.exists():
            return True
        state = self._read_state()
        return (state.segment, state.offset) >= self.spool.position and not state.uploads

    def settle(self, timeout: float) -> bool:
        """Wait, after :meth:`close`, until the store has everything; tell of what it refused."""
        done = self._wait(timeout)
        self._tell_refused()
        return done

    def _wait(self, timeout: float) -> bool:
        begin = time.monotonic()
        spool, troubled = self.spool, None
        while spool.folder.exists():
            state = self._read_state()
            if (state.segment, state.offset) >= spool.position and not state.uploads:
                return True
            now, end = time.monotonic(), min(begin + timeout, self.deadline)
            troubled = (troubled or now) if state.error else None
            if now > end or (troubled is not None and now - troubled > _PATIENCE):
                log.warning(
                    "the tracking store does not have everything of run %s yet (%s); it waits in "
                    "%s, `eigenexp sync` sends it",
                    state.run_id or self._local_id,
                    printable(state.error or f"not done after {now - begin:.0f} s"),
                    spool.folder,
                )
                return False
            time.sleep(0.02)
        return True

    def close(self, timeout: float) -> bool:
        """Say that nothing follows and wait within bounds; the sender goes on by itself."""
        if not self._open:
            return True
        if SENDERS.defers:
            self.append({"k": "end"})
            SENDERS.defer(self)
            self._end(say_so=False)
            return self.is_settled
        done = self._wait(timeout)  # still there to tell the run's id
        self.append({"k": "end"})
        self._tell_refused()
        if done and self.process is not None and not SENDERS.stays:
            SENDERS.release(self.process)  # it need not wait for our end
            await_removal(self.spool, self.process)
        self._end(say_so=False)
        return done

    def _tell_refused(self) -> None:
        refused = self._read_state().rejected
        if refused:
            log.warning(
                "the tracking store does not take %d points or records of run %s; they are kept "
                "in %s",
                refused,
                self._run_id or self._local_id,
                self.spool.refused_path,
            )

    def _end(self, say_so: bool = True) -> None:
        atexit.unregister(self._end)
        if self._open and say_so:
            self.append({"k": "end"})
        self._open = False
        self.spool.close()
        if self.process is not None:
            SENDERS.end(self.process, self.spool)

    def _launch(self) -> None:
        if self.process is not None:
            SENDERS.release(self.process)
        try:
            self.process = SENDERS.start(self.spool, self._store, os.getpid())
        except OSError as error:
            self._tell_once(error)

    def _flush_held_back(self) -> None:
        while self._held_back:
            self.spool.append(self._held_back[0])
            self._held_back.popleft()

    def _tell_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "tracking: cannot write %s (%s); the solve goes on, the newest %d records are "
                "held in memory until there is room",
                self.spool.folder,
                error.strerror or error,
                _HELD_BACK,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process; a copy in another one appends to the spool."""
        return {**self.__dict__, "process": None, "spool": Spool(self.spool.folder)}


def _find_spool(store: Store, run_id: str) -> Spool | None:
    """Return what an earlier process left of this run, to go on in the same journal."""
    for spool in find_spools(store.root):
        try:
            meta = spool.meta
        except TrackingError as error:  # of some other run, for all that can be known
            log.debug("passed over: %s", error)
            continue
        state = spool.read_state()
        names = (meta["local_id"], meta.get("run_id"), state.run_id, state.former)
        if meta["uri"] == store.address and run_id in names:
            return spool
    return None
