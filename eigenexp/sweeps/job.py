"""One job of a sweep, in whatever process a launcher put it: run or go on, and write down how."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenexp.errors import EigenexpError
from eigenexp.overview import problem_row, result_row, worst_status
from eigenexp.sweeps.manifest import FAILED, FINISHED, PENDING, RUNNING, STOPPED, SweepFolder

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

    Attributes
    ----------
    root, sweep_id
        Of the sweep's folder.
    threads
        Threads of a job that does not set its own; ``None``: as many as the scheduler gave it.
    parent_run_id
        MLflow run of the whole sweep, if there is one.
    in_process
        Whether the launcher runs the jobs one after another in the sweep's own process.
    """

    root: str
    sweep_id: str
    threads: int | None = None
    parent_run_id: str | None = None
    in_process: bool = False

    def __call__(self, config: Any) -> str:
        """Run one job; return its state. Errors are written down, not raised."""
        from hydra.core.hydra_config import HydraConfig

        from eigenexp.config import plain_config

        return self.run(int(HydraConfig.get().job.name), plain_config(config))

    def run(self, index: int, settings: dict[str, Any]) -> str:
        """Run job ``index`` with ``settings`` unless it is finished or another process has it."""
        folder = SweepFolder(Path(self.root), self.sweep_id)
        with folder.hold(index) as held:
            job = folder.job(index)
            if not held or job.state == FINISHED:
                return job.state
            began = time.perf_counter()
            spent = float(job.facts.get("seconds", 0.0))
            folder.write_job(index, RUNNING, seconds=spent)
            facts: dict[str, Any] = {}
            exit_code = 0
            try:
                with contextlib.chdir(folder.manifest()["cwd"]):
                    result = self._fit(index, settings, again=job.state != PENDING)
                exit_code = result.exit_code
                facts = {"run_id": result.run_id, "row": job_row(settings, result)}
                state = STOPPED if result.status == "KILLED" else FINISHED
                if state == FINISHED and exit_code:
                    state, facts["error"] = FAILED, "a picture of it failed; see its own table"
            except EigenexpError as error:
                state, facts = FAILED, {"error": " ".join(str(error).split())}
            except KeyboardInterrupt:
                state, exit_code = STOPPED, 130
            except Exception as error:  # a defect, or a model's own: kept whole, told in one line
                state, facts = FAILED, {"error": _one_line(error), "traceback": _trace(error)}
            seconds = spent + time.perf_counter() - began
            facts.setdefault("row", problem_row(settings))["seconds"] = round(seconds, 3)
            facts["threads"] = settings["threads"]
            folder.write_job(index, state, seconds=seconds, **facts)
        if state == STOPPED and self.in_process:
            raise SweepStoppedError(exit_code or 130)
        return state

    def _fit(self, index: int, settings: dict[str, Any], *, again: bool) -> Any:
        import eigenexp.run as runs
        from eigenexp.checkpoints import find_checkpoint
        from eigenexp.console import quiet
        from eigenexp.errors import CheckpointError

        tags = {SWEEP_TAG: self.sweep_id, JOB_TAG: str(index)}
        if self.parent_run_id is not None:
            tags[PARENT_TAG] = self.parent_run_id
        settings["tags"] = {**settings["tags"], **tags}
        settings["root"] = self.root
        if settings["threads"] is None:
            settings["threads"] = self.threads or _granted_threads()
        # Many at a time, on one screen or none.
        settings["trainer"]["enable_progress_bar"] = False
        quiet()
        run, checkpoint = self._begun(index) if again else None, None
        if run is not None:
            with contextlib.suppress(CheckpointError):  # killed before its first
                checkpoint = find_checkpoint(run.checkpoints)
        return runs.fit(settings, run=run, checkpoint=checkpoint, say=lambda line: None)

    def _begun(self, index: int) -> Any:
        """Return the run this job began before it was stopped, if it came so far."""
        from eigenexp.errors import CheckpointError
        from eigenexp.runs import list_runs

        for run in reversed(list_runs(self.root)):
            try:
                config = run.read_record().get("config")
            except CheckpointError:
                continue
            tags = config.get("tags") if isinstance(config, Mapping) else None
            if not isinstance(tags, Mapping) or tags.get(SWEEP_TAG) != self.sweep_id:
                continue
            if tags.get(JOB_TAG) == str(index):
                return run
        return None


def job_row(settings: Mapping[str, Any], result: Any) -> dict[str, Any]:
    """Return a finished job's line of the table; a job of many pictures has their worst."""
    if hasattr(result, "spectrum"):
        return {**problem_row(settings), **result_row(result.spectrum)}
    records = [record for record in result.records.values() if record.get("pairs")]
    pairs = [pair for record in records for pair in record["pairs"]]
    return {
        **problem_row(settings),
        "worst_residual": max((p["relative_residual"] for p in pairs), default=None),
        "status": worst_status([str(pair["status"]) for pair in pairs]),
        "products": sum(record["num_products"] for record in records),
    }


def _granted_threads() -> int | None:
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(granted) if granted.isdigit() and int(granted) > 0 else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
