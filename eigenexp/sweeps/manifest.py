"""A sweep on disk: its manifest, and of each job what is known of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eigenexp.errors import CheckpointError
from eigenexp.runs.naming import pick
from eigenexp.storage.atomic import write_json_atomic
from eigenexp.storage.json_files import read_json

__all__ = ["FINISHED", "Job", "SweepFolder", "find_sweep", "list_sweeps"]

SCHEMA_VERSION = 1

PENDING, RUNNING, LOST = "pending", "running", "lost"
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"

_USUAL: dict[str, Any] = {
    "hydra": [],
    "launcher": "basic",
    "experiment_name": "eigenexp",
    "logger": {"mlflow": False},
    "parent_run_id": None,
}

# Somebody who only looks whether a job lives holds its lock for a moment.
_LOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """One combination of settings and what became of it.

    Attributes
    ----------
    index
        Place in the sweep.
    overrides
        ``key=value`` each, composed with ``conf/fit.yaml``.
    swept
        Those of them in which the jobs differ.
    state
        ``pending``, ``running`` (its process lives), ``lost`` (its process died), ``finished``,
        ``failed``, ``stopped`` (by a signal; it saved first).
    facts
        What the job wrote: ``row`` (its line of the table), ``error``, ``run_id``.
    """

    index: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    state: str = PENDING
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What tells it from the other jobs."""
        return " ".join(self.swept)

    @property
    def is_over(self) -> bool:
        """Whether nobody is going to change its state without being asked to."""
        return self.state not in (PENDING, RUNNING)


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep under ``<root>/sweeps/<sweep_id>``."""

    root: Path
    sweep_id: str

    @property
    def path(self) -> Path:
        """The sweep's folder."""
        return self.root / "sweeps" / self.sweep_id

    @property
    def manifest_path(self) -> Path:
        """Every job, and how they are launched."""
        return self.path / "manifest.json"

    @property
    def table_path(self) -> Path:
        """The sweep's table."""
        return self.path / "table.csv"

    def create(self, jobs: Sequence[Sequence[str]], **facts: Any) -> None:
        """Write the manifest of ``jobs``, each a list of overrides, before any of them starts.

        ``facts`` are ``rows`` (of the table, one a job) and those that are not as usual: ``hydra``,
        ``launcher``, ``cwd``, ``experiment_name``, ``logger``, ``parent_run_id``.
        """
        (self.path / "jobs").mkdir(parents=True)
        self.update(
            schema_version=SCHEMA_VERSION,
            sweep_id=self.sweep_id,
            created=_now(),
            jobs=[list(overrides) for overrides in jobs],
            swept=sorted(swept_keys(jobs)),
            **{**_USUAL, "cwd": str(Path.cwd()), **facts},
        )

    def update(self, **facts: Any) -> None:
        """Add ``facts`` to the manifest, atomically."""
        before = self.manifest() if self.manifest_path.exists() else {}
        write_json_atomic(self.manifest_path, {**before, **facts, "updated": _now()})

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises
        ------
        CheckpointError
            When it is damaged or of a newer version.
        """
        manifest = read_json(self.manifest_path, "a sweep's file")
        version = manifest.get("schema_version")
        if version != SCHEMA_VERSION or not isinstance(manifest.get("jobs"), list):
            raise CheckpointError(
                f"{self.manifest_path}: expected a sweep's manifest of version {SCHEMA_VERSION}, "
                f"got version {version}; use the eigenexp that wrote it"
            )
        fault = _fault(manifest)
        if fault is not None:
            raise CheckpointError(
                f"{self.manifest_path}: expected a sweep's manifest, got a wrong {fault!r}; the "
                "file is damaged"
            )
        return manifest

    def jobs(self) -> list[Job]:
        """Return every job as it stands now."""
        manifest = self.manifest()
        return [self._job(index, manifest) for index in range(len(manifest["jobs"]))]

    def job(self, index: int) -> Job:
        """Return one job as it stands now."""
        return self._job(index, self.manifest())

    def _job(self, index: int, manifest: Mapping[str, Any]) -> Job:
        overrides, planned = tuple(manifest["jobs"][index]), {"row": manifest["rows"][index]}
        swept = tuple(o for o in overrides if o.partition("=")[0] in manifest["swept"])
        path = self.job_path(index)
        if not path.exists():
            return Job(index, overrides, swept, facts=planned)
        facts = _sound(read_json(path, "a sweep's file"))
        state = str(facts.get("state"))
        if state == RUNNING and not self._is_held(index):
            # It may have ended between the two looks.
            facts = _sound(read_json(path, "a sweep's file"))
            state = str(facts.get("state"))
            state = LOST if state == RUNNING else state
        return Job(index, overrides, swept, state, planned | facts)

    def job_path(self, index: int) -> Path:
        """Return the file of what is known of a job."""
        return self.path / "jobs" / f"{index:05d}.json"

    def write_job(self, index: int, state: str, **facts: Any) -> None:
        """Set a job's state, with ``facts``; done by the process that holds it."""
        own = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "updated": _now()}
        write_json_atomic(self.job_path(index), {**own, **facts})

    @contextlib.contextmanager
    def hold(self, index: int) -> Iterator[bool]:
        """Hold a job for the time of a ``with`` block; yield whether nobody else does.

        The operating system lets go when the process dies, however it dies.
        """
        lock = self._lock(index)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _is_held(self, index: int) -> bool:
        lock = self._lock(index)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _lock(self, index: int) -> FileLock:
        return FileLock(self.job_path(index).with_suffix(".lock"))


def _sound(facts: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a job's facts those that are not of their kind."""
    kinds: dict[str, Any] = {"row": dict, "error": str, "run_id": str, "seconds": (int, float)}
    return {
        key: value
        for key, value in facts.items()
        if value is None or isinstance(value, kinds.get(key, object))
    }


def _fault(manifest: Mapping[str, Any]) -> str | None:
    """Return the key of a manifest whose value is not of its kind, if any."""
    texts = {"hydra": manifest.get("hydra"), "swept": manifest.get("swept")}
    for key, value in texts.items():
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            return key
    jobs, rows = manifest["jobs"], manifest.get("rows")
    if not all(isinstance(job, list) and all(isinstance(o, str) for o in job) for job in jobs):
        return "jobs"
    if not isinstance(rows, list) or len(rows) != len(jobs):
        return "rows"
    if not all(isinstance(row, dict) for row in rows):
        return "rows"
    logger = manifest.get("logger")
    if not isinstance(logger, dict) or not isinstance(logger.get("mlflow"), bool):
        return "logger"
    for key in ("cwd", "launcher", "experiment_name"):
        if not isinstance(manifest.get(key), str):
            return key
    parent = manifest.get("parent_run_id")
    return None if parent is None or isinstance(parent, str) else "parent_run_id"


def swept_keys(jobs: Sequence[Sequence[str]]) -> set[str]:
    """Return the keys in which the overrides of jobs differ; all where there is one job."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            values.setdefault(override.partition("=")[0], set()).add(override)
    return {key for key, seen in values.items() if len(seen) > 1 or len(jobs) == 1}


def list_sweeps(root: str | Path) -> list[SweepFolder]:
    """Return the sweeps under ``root``, oldest first."""
    found = sorted(Path(root).absolute().glob("sweeps/*/manifest.json"))
    return [SweepFolder(path.parents[2], path.parent.name) for path in found]


def find_sweep(name: str, root: str | Path) -> SweepFolder:
    """Return the sweep a person means: an id, the start of one, ``last``, or its folder.

    Raises
    ------
    RunNotFoundError
        When none or several fit.
    """
    path = Path(name).absolute()
    if (path / "manifest.json").is_file() and path.parent.name == "sweeps":
        return SweepFolder(path.parent.parent, path.name)
    known = {found.sweep_id: found for found in list_sweeps(root)}
    return pick(name, known, kind="sweep", root=root)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
