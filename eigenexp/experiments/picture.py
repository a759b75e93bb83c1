"""One picture's solve as a run: begun, fitted, recorded however it ends."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from eigenexp.callbacks import GracefulStop, ResultFiles
from eigenexp.callbacks.sending import send_description, send_settings
from eigenexp.distributed.ranks import is_first_rank
from eigenexp.errors import TrackingError
from eigenexp.experiments.building import (
    build_callbacks,
    build_loggers,
    build_mlflow_logger,
    build_model,
    build_module,
    build_picture,
    build_trainer,
)
from eigenexp.experiments.config import shown_settings
from eigenexp.experiments.resuming import hold_run
from eigenexp.experiments.session import check_settings, fit_to_the_end, name_run, set_threads
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.pictures.picture import Picture
from eigenexp.runs.folder import OUT_OF_TIME, RunFolder
from eigenexp.runs.overview import failed_description, model_name, problem_row, result_row
from eigenexp.spectrum import Spectrum, StopReason
from eigenexp.storage.plain import plain
from eigenexp.tracking.mlflow_logger import MLflowLogger

__all__ = ["RunResult", "Start", "solve_picture"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes
    ----------
    run_id
        Names the run in MLflow, TensorBoard and under ``<root>/checkpoints``.
    status
        ``FINISHED``, ``KILLED`` (a signal, or ``max_time``) or ``FAILED``, as MLflow says it.
    exit_code
        0, 128 + the signal's number, or 124 at ``max_time``, as ``timeout`` has it.
    spectrum
        The pairs with their certificates.
    paths
        The result's files by file name.
    """

    run_id: str
    status: str
    exit_code: int
    spectrum: Spectrum
    paths: Mapping[str, Path]


@dataclass(frozen=True)
class Start:
    """What a resumed run begins with.

    ``force`` also where model or picture differ; ``trust`` any class the configuration names;
    ``intended`` fields of the checkpoint's metadata that were changed on purpose.
    """

    run: RunFolder
    checkpoint: Path | None
    picture: Picture
    force: bool = False
    trust: bool = True
    intended: tuple[str, ...] = ()


def solve_picture(
    settings: dict[str, Any],
    root: Path,
    start: Start | None = None,
    *,
    say: Callable[[str], None] = print,
) -> RunResult:
    """Solve in a new run, or go on with one that the caller holds."""
    set_threads(settings["threads"])
    picture = build_picture(settings) if start is None else start.picture
    model = build_model(settings["model"], trust=start is None or start.trust)
    module = build_module(settings, model, picture)
    check_settings(settings, module)
    run = checkpoint = None
    if start is not None:
        run, checkpoint = start.run, start.checkpoint
        module.force_resume = start.force
        module.intended_changes += start.intended

    title = f"{model_name(settings['model'])} at {picture.name}"
    stop = GracefulStop()
    with stop.listening():
        mlflow = build_mlflow_logger(settings, root, run, title)
        folder = RunFolder(root, name_run(run, mlflow))
        with nullcontext() if start is not None else hold_run(folder):
            return _run(folder, settings, module, picture, mlflow, checkpoint, title, stop, say)


def _run(
    folder: RunFolder,
    settings: dict[str, Any],
    module: EigendistortionModule,
    picture: Picture,
    mlflow: MLflowLogger | None,
    checkpoint: Path | None,
    title: str,
    stop: GracefulStop,
    say: Callable[[str], None],
) -> RunResult:
    """Run one solve in its folder and mark how it ended."""
    run_id, root = folder.run_id, folder.root
    is_first = is_first_rank()
    module.run_metadata["run_id"] = run_id
    results = ResultFiles(folder.results, title=title)
    loggers: list[Any] = []

    def record_start() -> None:
        if is_first:
            row = {**problem_row(settings), "picture": picture.name}
            facts = {"config": settings, "picture": picture.record, "title": title, "row": row}
            folder.write_record(status="RUNNING", **facts)
        for logger in loggers:
            send_settings(logger, shown_settings(settings, picture.name))
        if mlflow is not None:
            mlflow.log_tags({"picture_sha256": picture.record["sha256"]})

    begin = _Beginning(record_start)
    trainer: Any = None
    status, exit_code = "FAILED", 1
    try:
        loggers += build_loggers(settings, run_id, mlflow)
        if checkpoint is None:
            begin.now()
        callbacks = [begin, *build_callbacks(settings, folder.checkpoints, results, stop)]
        trainer = build_trainer(settings, loggers, callbacks)
        if is_first:
            say(f"run {run_id}: {title}, {tuple(picture.tensor.shape[1:])}, files under {root}")
        exit_code = fit_to_the_end(
            trainer,
            module,
            stop,
            mlflow,
            lambda: module.solver.stop_reason is StopReason.RUNNING,
            checkpoint,
        )
        status = "KILLED" if exit_code else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if begin.done or checkpoint is None:
            reason = _stop_reason(trainer, module, status, exit_code)
            facts = _facts(settings, picture, module, status)
            error = sys.exc_info()[1] if status == "FAILED" else None
            problem = None if error is None else " ".join(str(error).split())[:500]
            try:
                if is_first:
                    folder.write_record(status=status, stop_reason=reason, row=facts, error=problem)
            except TrackingError as full:  # what ended the run is more worth telling
                log.warning("%s", full)
            if mlflow is not None:
                mlflow.log_tags({"stop_reason": reason, **_drift_tags(module)})
                if error is not None:
                    text = failed_description(title, error)
                    send_description(mlflow, text, {"error": problem or ""}, 0)
                mlflow.set_status(status)
                mlflow.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table below says it, pair by pair
        spectrum = module.spectrum()
    # Lightning kills a run of which a process ends with another code than 0: the first one tells.
    code = exit_code if is_first else 0
    # A resumed run that was over already writes nothing.
    paths = results.paths or {path.name: path for path in sorted(folder.results.glob("*.*"))}
    return RunResult(run_id, status, code, spectrum, paths)


class _Beginning(L.Callback):
    """Records that a run has begun, once; a resumed one when its checkpoint has proven to fit.

    Until then nothing of the run is touched: one that is refused stays as it was.
    """

    def __init__(self, record: Callable[[], None]) -> None:
        self._record = record
        self.done = False

    def now(self) -> None:
        if not self.done:
            self.done = True
            self._record()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now()


def _facts(
    settings: Mapping[str, Any], picture: Picture, module: EigendistortionModule, status: str
) -> dict[str, Any]:
    """Return the run's line in a table of runs; without a result, what it was to be."""
    row = {**problem_row(settings), "picture": picture.name}
    try:
        spectrum = module.solver.result()
    except Exception:
        if status != "FAILED":
            raise
        return row  # whatever went wrong, it is told where it is raised
    return {**row, **plain(result_row(spectrum))}


def _stop_reason(trainer: Any, module: EigendistortionModule, status: str, code: int) -> str:
    """Say why the run ended, also where the trainer and not the solver ended it."""
    if status == "FAILED":
        error = sys.exc_info()[1]
        return f"failed: {type(error).__name__}" if error is not None else "failed"
    if status == "KILLED":
        return "max_time" if code == OUT_OF_TIME else "signal"
    reason = module.solver.stop_reason
    return str(reason.value) if reason is not StopReason.RUNNING else "max_steps"


def _drift_tags(module: EigendistortionModule) -> dict[str, str]:
    """Return what differed from the checkpoint; changed settings are told with the parameters."""
    return {
        f"drift.{difference.field}": f"{difference.saved} → {difference.current}"
        for difference in module.resume_differences
        if not difference.field.startswith("config.")
    }
