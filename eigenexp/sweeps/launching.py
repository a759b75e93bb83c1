"""Run a sweep, or what is left of one, from the process a person started."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eigenexp.errors import ConfigError, summary
from eigenexp.experiments.config import (
    CONFIG_DIR,
    compose_config,
    own_folder,
    plain_config,
    with_own_model,
)
from eigenexp.experiments.schema import FitConfig
from eigenexp.experiments.session import without_credentials
from eigenexp.experiments.shown import problem_row
from eigenexp.experiments.summary import NOT_PROVEN
from eigenexp.runs.folder import open_root
from eigenexp.runs.overview import sweep_description
from eigenexp.storage.addresses import without_userinfo
from eigenexp.storage.processes import STOP_FLAG
from eigenexp.sweeps.expanding import expand, split_hydra
from eigenexp.sweeps.job import SWEEP_TAG, SweepJob, SweepStoppedError
from eigenexp.sweeps.launchers import Launch, check_launcher, job_gpus, job_threads
from eigenexp.sweeps.manifest import FINISHED, RUNNING, Job, SweepFolder, find_sweep
from eigenexp.sweeps.table import format_table, write_tables
from eigenexp.sweeps.trust import check_sweep_trusted

__all__ = ["retry", "show", "sweep"]

Say = Callable[[str], object]
_POLL_SECONDS = 0.5
# From here on composing all takes a person's notice.
MANY = 50


def sweep(overrides: Sequence[str], *, say: Say = print) -> int:
    """Run every combination of the overrides; return the exit code.

    Parameters
    ----------
    overrides
        ``key=value``, ``key=a,b,c`` to sweep, and Hydra's own: ``hydra/launcher=joblib``.
    say
        Receives the lines a person reads.

    Returns
    -------
    int
        0 when every job finished with every pair proven, 3 when one has a pair that is not, 1 when
        one failed, 128 + the signal's number when stopped.

    Raises
    ------
    ConfigError
        When a combination does not compose; nothing was started then.
    """
    hydra_overrides, own = split_hydra(overrides)
    launcher = check_launcher(hydra_overrides)
    jobs = expand(own)
    if len(jobs) >= MANY:
        say(f"checking {_count(jobs)} before the first starts")
    settings = [compose_config(job) for job in jobs]
    first = without_credentials(settings[0])
    for key in ("root", "experiment_name"):
        if len({getattr(each, key) for each in settings}) > 1:
            raise ConfigError(f"{key}: expected one value for the whole sweep, got several")
    root = open_root(first.root)
    sweep_id = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    folder = SweepFolder(root, sweep_id)
    if first.logger.mlflow:
        _prepare_senders(first, 1 + (min(len(jobs), 2) if launcher == "basic" else 0))
    launch = Launch(launcher, hydra_overrides, str(folder.path))
    folder.create(
        [[without_userinfo(override) for override in job] for job in jobs],
        hydra=hydra_overrides,
        launcher=launcher,
        cwd=str(Path.cwd()),
        config_dir=None if (groups := own_folder()) is None else str(groups),
        rows=[problem_row(each) for each in settings],
        experiment_name=first.experiment_name,
        logger=plain_config(first)["logger"],
        parent_run_id=None,
    )
    say(f"sweep {sweep_id}: {_count(jobs)} by {launcher}, files under {folder.path}")
    return _run(folder, launch, folder.jobs(), say)


def retry(
    name: str,
    overrides: Sequence[str] = (),
    *,
    root: str | Path,
    trust: bool = False,
    say: Say = print,
) -> int:
    """Run again what a sweep has not finished, each from its last checkpoint; return the exit code.

    Parameters
    ----------
    name
        The sweep's id, the start of one, ``last``, or its folder.
    overrides
        Changes to how jobs are launched (``hydra/launcher=…``); the jobs stay what they were.
    root
        Folder of the runs.
    trust
        Build any class that the sweep's files name, start jobs and send points as they say.
    say
        Receives the lines a person reads.

    Raises
    ------
    RunNotFoundError, ConfigError
        When there is no such sweep, an override would change its jobs, or it is not trusted.
    """
    hydra_overrides, own = split_hydra(overrides)
    if own:
        raise ConfigError(
            f"{own[0]}: expected only hydra/… and hydra.… beside --retry-failed, whose jobs keep "
            "their settings; start a new sweep to change them"
        )
    folder = find_sweep(name, root)
    manifest = folder.manifest()
    if any(o.startswith("hydra/launcher=") for o in hydra_overrides):
        chosen = hydra_overrides
    else:
        chosen = [*manifest["hydra"], *hydra_overrides]
    launcher = check_launcher(chosen)
    with _own_folder(manifest):
        return _retry(folder, manifest, launcher, chosen, hydra_overrides, trust, say)


def _retry(
    folder: SweepFolder,
    manifest: Mapping[str, Any],
    launcher: str,
    chosen: Sequence[str],
    given: Sequence[str],
    trust: bool,
    say: Say,
) -> int:
    if not trust:
        check_sweep_trusted(manifest, given)
    jobs = folder.jobs()
    alive = [job for job in jobs if job.state == RUNNING]
    todo = [job for job in jobs if job.state not in (FINISHED, RUNNING)]
    if alive:
        numbers = ", ".join(str(job.index) for job in alive)
        say(f"still running in another process, left alone: {_count(alive)} ({numbers})")
    if not todo:
        say(f"sweep {folder.sweep_id}: nothing to run again")
        # A process that died behind its last job has left the sweep's own run open.
        owed = None if alive or manifest.get("parent_ended") is not False else _Parent(folder)
        code = _finish(folder, jobs, say, in_flight=bool(alive))
        if owed is not None:
            owed.close(folder, stopped=False, failed=code not in (0, NOT_PROVEN))
        return code
    launch = Launch(launcher, chosen, str(folder.path))
    say(f"sweep {folder.sweep_id}: {_count(todo)} of {len(jobs)} by {launcher}")
    return _run(folder, launch, todo, say)


@contextlib.contextmanager
def _own_folder(manifest: Mapping[str, Any]) -> Iterator[None]:
    """Let the sweep's own groups be found again, from wherever it is retried."""
    before, saved = os.environ.get(CONFIG_DIR), manifest.get("config_dir")
    if before is None and saved is not None and Path(str(saved)).is_dir():
        os.environ[CONFIG_DIR] = str(saved)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CONFIG_DIR, None)


def show(folder: SweepFolder, *, say: Say = print) -> None:
    """Say how a sweep stands: its table and what is not finished."""
    jobs = folder.jobs()
    say(f"sweep {folder.sweep_id}: {_count(jobs)} by {folder.manifest()['launcher']}")
    _finish(folder, jobs, say, in_flight=any(job.state == RUNNING for job in jobs))


def _run(folder: SweepFolder, launch: Launch, todo: Sequence[Job], say: Say) -> int:
    parent = _Parent(folder)
    task = SweepJob(
        root=str(folder.root),
        sweep_id=folder.sweep_id,
        threads=job_threads(launch.name, launch.settings, len(todo)),
        parent_run_id=parent.run_id,
        in_process=launch.name == "basic",
        gpus=job_gpus(launch.name),
    )
    overrides = [[*with_own_model(job.overrides), f"hydra.job.name={job.index}"] for job in todo]
    stopped = 0
    hears = STOP_FLAG.listening() if task.in_process else _terminating()
    try:
        with hears, _sending(task), _Watch(folder, todo, say):
            launch.run(task, overrides)
    except SweepStoppedError as signal:
        stopped = signal.exit_code
    except KeyboardInterrupt:
        stopped = 130
    except Exception as error:
        # The launcher lost a job or could not start; every job's own end is on disk.
        say(f"{launch.name}: {summary(error, whole=True)[:300]}")
    code = _finish(folder, folder.jobs(), say, stopped=stopped)
    parent.close(folder, stopped=bool(stopped), failed=code not in (0, NOT_PROVEN))
    return code


def _prepare_senders(settings: FitConfig, count: int) -> None:
    """Let the processes get ready that send for the sweep's own run and for two jobs in turn."""
    from eigenexp.tracking.senders import SENDERS

    for _ in range(count):
        SENDERS.prepare(settings.root, settings.logger.tracking_uri)


def _sending(task: SweepJob) -> contextlib.AbstractContextManager[None]:
    """Send what a job of this process logged beside the next one's solve."""
    from eigenexp.tracking.senders import SENDERS

    return SENDERS.staying(defers=True) if task.in_process else contextlib.nullcontext()


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM end the launcher as Ctrl-C does: its jobs are in processes of its own."""

    def end(number: int, frame: object) -> None:
        raise SweepStoppedError(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(
    folder: SweepFolder, jobs: list[Job], say: Say, *, stopped: int = 0, in_flight: bool = False
) -> int:
    """Write the tables, print them and what is left, and return the exit code."""
    paths = write_tables(folder, jobs)
    left = [job for job in jobs if job.state != FINISHED]
    alive = [job for job in left if job.state == RUNNING]
    failed = [job for job in left if job.state != RUNNING]
    say("")
    say(format_table(jobs))
    say("")
    say(f"table:     {paths[0]}")
    if failed:
        say(f"{_count(failed)} of {len(jobs)} not finished:")
        for job in failed:
            say(f"  [{job.index}] {job.title}: {job.facts.get('error') or job.state}")
        say(f"run them again: eigenexp fit --retry-failed {folder.sweep_id}")
    elif not in_flight:
        say("dashboard: eigenexp ui")
    status = "stopped" if stopped else "running" if alive else "failed" if failed else "finished"
    folder.update(status=status)
    if stopped or failed:
        return stopped or 1
    # Of several pictures and pairs a row has the status that is furthest from a proof.
    rows = [job.facts.get("row") or {} for job in jobs if job.state == FINISHED]
    return NOT_PROVEN if any(row.get("status") != "converged" for row in rows) else 0


class _Parent:
    """The sweep's own MLflow run, under which the jobs' runs are listed."""

    def __init__(self, folder: SweepFolder) -> None:
        manifest = folder.manifest()
        self._logger: Any = None
        self.run_id: str | None = manifest["parent_run_id"]
        if not manifest["logger"]["mlflow"]:
            return
        from eigenexp.console import quiet
        from eigenexp.tracking.mlflow_logger import MLflowLogger

        jobs = len(manifest["jobs"])
        self._logger = MLflowLogger(
            experiment_name=manifest["experiment_name"],
            run_name=f"sweep {folder.sweep_id}",
            run_id=self.run_id,
            root=folder.root,
            tracking_uri=manifest["logger"]["tracking_uri"],
            tags={SWEEP_TAG: folder.sweep_id, "eigenexp.sweep_jobs": jobs},
        )
        self.run_id = self._logger.version
        quiet()
        folder.update(parent_run_id=self.run_id, parent_ended=False)

    def close(self, folder: SweepFolder, *, stopped: bool, failed: bool) -> None:
        """Keep the table and the numbers of jobs in the run, and end it."""
        if self._logger is None:
            return
        jobs = folder.jobs()
        finished = sum(job.state == FINISHED for job in jobs)
        self._logger.log_metrics(
            {"jobs_finished": finished, "jobs_unfinished": len(jobs) - finished}, step=finished
        )
        from eigenexp.callbacks.sending import send_description  # Lightning is there by now

        rows = [(job.title, job.facts.get("row") or {}) for job in jobs]
        send_description(self._logger, sweep_description(f"sweep {folder.sweep_id}", rows), {}, 0)
        for path in (folder.table_path, folder.path / "table.parquet", folder.manifest_path):
            self._logger.log_artifact(path, "sweep")
        self._logger.set_status("KILLED" if stopped else "FAILED" if failed else "FINISHED")
        folder.update(parent_ended=True)  # what is left is in its spool
        self._logger.close()


class _Watch:
    """Say of each job that it ended, whoever ran it, by looking at its file."""

    def __init__(self, folder: SweepFolder, jobs: Sequence[Job], say: Say) -> None:
        self._folder = folder
        self._open = {job.index: _stamp(folder.job_path(job.index)) for job in jobs}
        self._total = len(jobs)
        self._say = say
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._end.wait(_POLL_SECONDS)
            for index, seen in list(self._open.items()):
                stamp = _stamp(self._folder.job_path(index))
                if stamp == seen:
                    continue
                job = self._folder.job(index)
                if job.is_over:
                    del self._open[index]
                    self._say(self._line(job))
                elif not last:
                    # Alive: a death leaves no trace in the file, so look at the lock again.
                    self._open[index] = stamp

    def _line(self, job: Job) -> str:
        done = self._total - len(self._open)
        row = job.facts.get("row") or {}
        if job.state == FINISHED:
            said = f"{row['status']}, {row['products']} products, {row['seconds']:.1f} s"
        else:
            said = f"{job.state} ({job.facts.get('error', 'no reason known')})"
        line = f"[{done}/{self._total}] {job.title}: {said}"
        if self._open and done > 1:
            # By the throughput so far, whatever ran at a time.
            left = (time.monotonic() - self._began) / done * len(self._open)
            line += f"; about {_duration(left)} left"
        return line


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _count(jobs: Sequence[object]) -> str:
    return f"{len(jobs)} job" + ("" if len(jobs) == 1 else "s")
