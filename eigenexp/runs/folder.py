"""The folder of runs: where each run's files lie, its record, and how a person names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eigenexp.errors import CheckpointError, RunNotFoundError, TrackingError
from eigenexp.runs.naming import pick
from eigenexp.storage.json_files import read_json

__all__ = [
    "CONVERGENCE_FILE",
    "DIED",
    "OUT_OF_TIME",
    "RunFolder",
    "find_or_fetch",
    "find_run",
    "list_runs",
    "open_root",
]

CONVERGENCE_FILE = "convergence.csv"
"""Residuals and eigenvalues of a run over its products, among its results."""
OUT_OF_TIME = 124
"""Exit code of a run that ``trainer.max_time`` ended, as ``timeout`` has it."""
DIED = "died"
"""Why a run stopped whose process is gone without a word."""

# Somebody who only looks whether a run lives holds its lock for a moment.
_LOCK_SECONDS = 1.0


@dataclass(frozen=True)
class RunFolder:
    """Where one run's files lie under the root (``mlruns/``)."""

    root: Path
    run_id: str

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints and of the run's record."""
        return self.root / "checkpoints" / self.run_id

    @property
    def results(self) -> Path:
        """Folder of the result's files."""
        return self.root / "results" / self.run_id

    @property
    def record_path(self) -> Path:
        """File of the run's record: configuration and status."""
        return self.checkpoints / "run.json"

    @property
    def is_study(self) -> bool:
        """Whether the run is one of many pictures, also where its record is damaged."""
        try:
            return bool(self.read_record().get("study"))
        except CheckpointError:
            return (self.results / "study.json").is_file()

    @contextmanager
    def _released(self, lock: Any) -> Iterator[None]:
        try:
            yield
        finally:
            lock.release()

    def hold(self) -> AbstractContextManager[None]:
        """Take the run for this process alone, until the returned context ends.

        The operating system lets go of it when the process dies, however it does.

        Raises
        ------
        CheckpointError
            When another process holds it, or its folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock_path)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_LOCK_SECONDS, poll_interval=0.02)
        except Timeout as error:
            raise CheckpointError(
                f"run {self.run_id}: expected a run that nobody works on, got one that another "
                "process is solving; wait for it, or stop it first"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{self.checkpoints}: expected a folder that can be written, got "
                f"{error.strerror or error}"
            ) from error
        return self._released(lock)

    @property
    def _lock_path(self) -> Path:
        return self.checkpoints / ".lock"

    def _is_abandoned(self) -> bool:
        """Whether no process works on the run: where that cannot be known, one does."""
        from filelock import FileLock, Timeout

        if not self._lock_path.exists():
            return True
        lock = FileLock(self._lock_path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):
            return False
        lock.release()
        return True

    def write_record(self, **facts: Any) -> None:
        """Add ``facts`` to the run's record, atomically.

        Raises
        ------
        TrackingError
            When there is no room or permission.
        """
        from eigenexp.storage.atomic import write_json_atomic

        try:
            before = self._read() if self.record_path.exists() else {}
        except CheckpointError:  # damaged: what is known now replaces it
            before = {}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"created": now, **before, **facts, "updated": now, "run_id": self.run_id}
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.record_path, record)
        except OSError as error:
            raise TrackingError(
                f"{self.record_path}: expected room and permission to write the run's record, got "
                f"{error.strerror or error}; free space, or set root=… to another folder"
            ) from error

    def read_record(self) -> dict[str, Any]:
        """Return the run's record.

        One that says ``RUNNING`` was left by a process that died where nobody holds the run: its
        status comes as ``FAILED``, as the tracking store has it, and its ``stop_reason`` as
        :data:`DIED`. A run that was fetched from a server has the status that the server gave.

        Raises
        ------
        CheckpointError
            When the file is missing or damaged.
        """
        record = self._read()
        if not _seems_alive(record) or not self._is_abandoned():
            return record
        record = self._read()  # it may have ended between the two looks
        if not _seems_alive(record):
            return record
        why = record.get("error") or _DEATH
        return {**record, "status": "FAILED", "stop_reason": DIED, "error": why}

    def _read(self) -> dict[str, Any]:
        return read_json(self.record_path, "the run's record")


_DEATH = "its process ended without a word: kill -9, no memory left, or a power cut"


def _seems_alive(record: Mapping[str, Any]) -> bool:
    return record.get("status") == "RUNNING" and not record.get("fetched")


def open_root(root: str | Path) -> Path:
    """Return the root folder, made and proven writable.

    Raises
    ------
    TrackingError
        When it cannot be written.
    """
    from eigenexp.storage.atomic import write_atomic

    path = Path(root).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = write_atomic(path / ".writable", b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise TrackingError(
            f"{path}: expected a folder that can be written, got "
            f"{error.strerror or error}; set root=… or EIGENEXP_ROOT to another folder"
        ) from error
    return path


def list_runs(root: str | Path) -> list[RunFolder]:
    """Return the runs under ``root``, oldest first."""
    folder = Path(root) / "checkpoints"
    found = [p for p in folder.glob("*/run.json") if p.is_file()]
    found.sort(key=lambda path: path.stat().st_mtime)
    return [RunFolder(Path(root), path.parent.name) for path in found]


def find_run(name: str, root: str | Path) -> RunFolder:
    """Return the run a person means: an id, the start of one, ``last``, or a path into a run.

    Raises
    ------
    RunNotFoundError
        When none or several fit.
    """
    path = Path(name)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        folder = folder.absolute()
        run = RunFolder(folder.parent.parent, folder.name)
        if run.record_path.is_file() and folder in (run.checkpoints, run.results):
            return run
        raise RunNotFoundError(
            f"{name}: expected a run's folder under <root>/checkpoints or <root>/results, or a "
            "file in it, got a path without run.json; name the run by its id"
        )
    return pick(name, {run.run_id: run for run in list_runs(root)}, kind="run", root=root)


def find_or_fetch(name: str, root: str | Path, fetch: Callable[[], RunFolder | None]) -> RunFolder:
    """Return the run a person means, from elsewhere where none is here.

    ``last`` and paths mean this machine's runs alone.

    Parameters
    ----------
    name, root
        As for :func:`find_run`.
    fetch
        Brings the run under ``root``; returns None where there is nowhere to ask.

    Raises
    ------
    RunNotFoundError
        When neither has it.
    """
    try:
        return find_run(name, root)
    except RunNotFoundError as absent:
        if name == "last" or Path(name).exists() or "/" in name:
            raise
        try:
            fetched = fetch()
        except RunNotFoundError as error:
            raise RunNotFoundError(f"{absent}; {error}") from error
        if fetched is None:
            raise
        return fetched
