"""One job of a sweep, in whatever process a launcher put it: run or go on, and write down how."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eigenexp.distributed.ranks import is_first_rank
from eigenexp.distributed.rendezvous import decided_by_first, started_by_scheduler
from eigenexp.errors import EigenexpError, one_line, summary
from eigenexp.experiments.schema import FitConfig
from eigenexp.experiments.shown import problem_row
from eigenexp.runs.folder import OUT_OF_TIME
from eigenexp.runs.overview import records_row, result_row
from eigenexp.storage.processes import STOP_FLAG, passing_signals_to, start_module
from eigenexp.sweeps.apart import as_if_alone
from eigenexp.sweeps.manifest import FAILED, FINISHED, PENDING, RUNNING, STOPPED, Job, SweepFolder
from eigenexp.sweeps.resources import granted_threads, num_processes, take_gpu

if TYPE_CHECKING:
    from eigenexp.experiments.picture import RunResult
    from eigenexp.experiments.study import StudyResult

__all__ = ["JOB_TAG", "SWEEP_TAG", "SweepJob", "SweepStoppedError"]

SWEEP_TAG = "eigenexp.sweep"
JOB_TAG = "eigenexp.sweep_job"
PARENT_TAG = "mlflow.parentRunId"


class SweepStoppedError(KeyboardInterrupt):
    """A signal stopped a job in the sweep's own process: the others are not begun."""

    def __init__(self, exit_code: int = 130) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True)
class SweepJob:
    """What a Hydra launcher calls with a job's configuration; ``hydra.job.name`` is its index.

    A job whose trainer takes several processes gets a process of its own, for Lightning starts the
    others by the same command; under ``srun`` each of its tasks calls this, and the first one tells
    the others what they take part in.

    Attributes
    ----------
    root, sweep_id
        Of the sweep's folder.
    threads
        Threads of a job that does not set its own, over all its processes here; ``None``: as many
        as the scheduler gave it.
    parent_run_id
        MLflow run of the whole sweep, if there is one.
    in_process
        Whether the launcher runs the jobs one after another in the sweep's own process.
    gpus
        Names that CUDA knows GPUs by, of which each process that a launcher starts takes one.
    """

    root: str
    sweep_id: str
    threads: int | None = None
    parent_run_id: str | None = None
    in_process: bool = False
    gpus: tuple[str, ...] = ()

    def __call__(self, config: Any) -> str:
        """Run one job; return its state. Errors are written down, not raised."""
        from hydra.core.hydra_config import HydraConfig

        from eigenexp.experiments.config import checked

        index, settings = int(HydraConfig.get().job.name), checked(config)
        count = num_processes(settings)
        if count > 1 and not started_by_scheduler():
            return self._run_apart(index)
        if count == 1 and self.gpus:
            take_gpu(self.gpus)
        return self.run(index, settings)

    def run(self, index: int, settings: FitConfig) -> str:
        """Run job ``index`` with ``settings`` unless it is finished or another process has it.

        Of several processes the first one holds the job and writes down what becomes of it.

        Raises
        ------
        SweepStoppedError
            When a signal stopped it, or came before it, in the sweep's own process.
        """
        if self.in_process and STOP_FLAG.received is not None:
            raise SweepStoppedError(128 + STOP_FLAG.received)
        folder = SweepFolder(Path(self.root), self.sweep_id)
        if not is_first_rank():
            begun = decided_by_first(lambda: None)
            if begun is not None:
                with contextlib.chdir(folder.manifest()["cwd"]):
                    self._fit(index, settings, begun)
            return RUNNING
        with folder.hold(index) as held:
            job = folder.job(index)
            if not held or job.state == FINISHED:
                decided_by_first(lambda: None)
                return job.state
            state, exit_code = self._run(folder, job, settings)
        if state == STOPPED and self.in_process:
            raise SweepStoppedError(exit_code or 130)
        return state

    def _run(self, folder: SweepFolder, job: Job, settings: FitConfig) -> tuple[str, int]:
        """Run a job that this process holds; return its state and exit code."""
        began = time.perf_counter()
        spent = float(job.facts.get("seconds", 0.0))
        folder.write_job(job.index, RUNNING, seconds=spent)
        facts: dict[str, Any] = {}
        exit_code = 0
        try:
            begun = decided_by_first(lambda: "" if job.state == PENDING else self._begun(job.index))
            with contextlib.chdir(folder.manifest()["cwd"]), as_if_alone():
                result = self._fit(job.index, settings, begun)
            exit_code = result.exit_code
            facts = {"run_id": result.run_id, "row": job_row(settings, result)}
            state = STOPPED if result.status == "KILLED" else FINISHED
            if state == STOPPED:
                facts["error"] = _why_stopped(exit_code)
            elif exit_code:
                state, facts["error"] = FAILED, "a picture of it failed; see its own table"
        except EigenexpError as error:
            state, facts = FAILED, {"error": one_line(error)}
        except KeyboardInterrupt:
            state, exit_code = STOPPED, 130
            facts = {"error": _why_stopped(exit_code)}
        except Exception as error:  # a defect, or a model's own: kept whole, told in one line
            state, facts = FAILED, {"error": summary(error, whole=True), "traceback": _trace(error)}
        seconds = spent + time.perf_counter() - began
        facts.setdefault("row", problem_row(settings))["seconds"] = round(seconds, 3)
        facts |= {"threads": self.threads_for(settings), "exit_code": exit_code}
        folder.write_job(job.index, state, seconds=seconds, **facts)
        return state, exit_code

    def _run_apart(self, index: int) -> str:
        """Run a job in a process of its own, and wait for it: on a signal it saves and ends."""
        folder = SweepFolder(Path(self.root), self.sweep_id)
        facts = {**dataclasses.asdict(self), "in_process": False}
        process = start_module("eigenexp.sweeps.worker", {"job": facts, "index": index})
        with passing_signals_to(process):
            process.wait()
        job = folder.job(index)
        if job.state == STOPPED and self.in_process:
            raise SweepStoppedError(int(job.facts.get("exit_code") or 130))
        return job.state

    def _fit(self, index: int, settings: FitConfig, begun: str) -> RunResult | StudyResult:
        """Fit in a new run, or go on with the run ``begun`` where that names one."""
        import eigenexp.experiments.experiment as runs
        from eigenexp.console import quiet
        from eigenexp.runs.folder import RunFolder

        tags = {SWEEP_TAG: self.sweep_id, JOB_TAG: str(index)}
        if self.parent_run_id is not None:
            tags[PARENT_TAG] = self.parent_run_id
        given = replace(
            settings,
            tags={**settings.tags, **tags},
            root=self.root,
            threads=self.threads_for(settings),
            # Many at a time, on one screen or none.
            trainer=replace(settings.trainer, enable_progress_bar=False),
        )
        quiet()
        run = RunFolder(Path(self.root), begun) if begun else None
        return runs.fit(given, run=run, say=lambda line: None)

    def threads_for(self, settings: FitConfig) -> int | None:
        """Return the threads each process of a job of these settings takes."""
        if settings.threads is not None:
            return settings.threads
        if self.threads is None:
            return granted_threads()
        here = num_processes(settings) // settings.trainer.num_nodes
        return max(1, self.threads // max(1, here))

    def _begun(self, index: int) -> str:
        """Return the id of the run this job began before it was stopped; empty where it did not."""
        from eigenexp.errors import CheckpointError
        from eigenexp.runs.folder import list_runs

        for run in reversed(list_runs(self.root)):
            try:
                config = run.read_record().get("config")
            except CheckpointError:
                continue
            tags = config.get("tags") if isinstance(config, Mapping) else None
            if not isinstance(tags, Mapping) or tags.get(SWEEP_TAG) != self.sweep_id:
                continue
            if tags.get(JOB_TAG) == str(index):
                return run.run_id
        return ""


def _why_stopped(exit_code: int) -> str:
    if exit_code == OUT_OF_TIME:
        return "stopped at trainer.max_time"
    number = exit_code - 128
    return f"stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}"


def job_row(settings: FitConfig, result: Any) -> dict[str, Any]:
    """Return a finished job's line of the table; a job of many pictures has their worst."""
    if hasattr(result, "spectrum"):
        return {**problem_row(settings), **result_row(result.spectrum)}
    return {**problem_row(settings), **records_row(result.records)}


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
