"""One picture's solve as a run: begun, fitted, recorded however it ends."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from eigenexp.callbacks import (
    ConvergenceLogging,
    DistortionPictures,
    GracefulStop,
    ResultFiles,
)
from eigenexp.callbacks.sending import send_description, send_settings
from eigenexp.checkpoints.files import Checkpoint
from eigenexp.distributed.ranks import is_first_rank
from eigenexp.errors import CheckpointError, TrackingError, origin
from eigenexp.experiments.building import (
    build_callbacks,
    build_loggers,
    build_mlflow_logger,
    build_module,
    build_picture,
    build_trainer,
    own_callbacks,
    own_loggers,
)
from eigenexp.experiments.resuming import hold_run
from eigenexp.experiments.schema import FitConfig, plain_config
from eigenexp.experiments.session import check_settings, fit_to_the_end, name_run, set_threads
from eigenexp.experiments.shown import problem_row, shown_settings
from eigenexp.experiments.targets import build_model
from eigenexp.models.weights import weights_note
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.pictures.picture import Picture
from eigenexp.runs.folder import OUT_OF_TIME, RunFolder
from eigenexp.runs.overview import failed_description, model_name, result_row
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

    Attributes
    ----------
    run
        Held by the caller.
    checkpoint
        Where it goes on; ``None``: from its beginning.
    picture
        What is solved.
    force
        Also where model or picture differ from the checkpoint's.
    trust
        Build any class that the settings name.
    intended
        Fields of the checkpoint's metadata that were changed on purpose.
    """

    run: RunFolder
    checkpoint: Checkpoint | None
    picture: Picture
    force: bool = False
    trust: bool = True
    intended: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Solve:
    """One run from its first record to its last."""

    settings: FitConfig
    folder: RunFolder
    title: str
    picture: Picture
    module: EigendistortionModule
    checkpoint: Checkpoint | None
    mlflow: MLflowLogger | None
    own: tuple[list[Logger], list[L.Callback]]
    stop: GracefulStop


def solve_picture(
    settings: FitConfig,
    root: Path,
    start: Start | None = None,
    *,
    say: Callable[[str], None] = print,
) -> RunResult:
    """Solve in a new run, or go on with one that the caller holds."""
    set_threads(settings.threads)
    picture = build_picture(settings) if start is None else start.picture
    model = build_model(settings.model, trust=start is None or start.trust)
    module = build_module(settings, model, picture)
    check_settings(settings, module)
    own = own_loggers(settings), own_callbacks(settings)
    run = checkpoint = None
    if start is not None:
        run, checkpoint = start.run, start.checkpoint
        module.force_resume = start.force
        module.intended_changes += start.intended

    title = f"{model_name(settings.model)} at {picture.name}"
    stop = GracefulStop()
    with stop.listening():
        mlflow = build_mlflow_logger(settings, root, run, title)
        folder = RunFolder(root, name_run(run, mlflow))
        with nullcontext() if start is not None else hold_run(folder):
            solve = _Solve(settings, folder, title, picture, module, checkpoint, mlflow, own, stop)
            return _run(solve, say)


def _run(solve: _Solve, say: Callable[[str], None]) -> RunResult:
    """Run one solve in its folder and mark how it ended."""
    settings, folder, module = solve.settings, solve.folder, solve.module
    mlflow, checkpoint, stop = solve.mlflow, solve.checkpoint, solve.stop
    is_first = is_first_rank()
    module.run_metadata["run_id"] = folder.run_id
    results = ResultFiles(
        folder.results,
        title=solve.title,
        amplitude=settings.analysis.amplitude,
        card=settings.analysis.card,
    )
    loggers: list[Logger] = []
    begin = _Beginning(lambda: _record_start(solve, loggers))
    trainer: Any = None
    status, exit_code = "FAILED", 1
    try:
        loggers += [*build_loggers(settings, folder.run_id, mlflow), *solve.own[0]]
        if checkpoint is None:
            begin.now()
        ours = build_callbacks(settings, folder.checkpoints, results, stop)
        owed = [_LastStage(ours)] if checkpoint is not None and not _is_over(folder) else []
        trainer = build_trainer(settings, loggers, [begin, *ours, *owed, *solve.own[1]])
        if is_first:
            size = tuple(solve.picture.tensor.shape[1:])
            say(f"run {folder.run_id}: {solve.title}, {size}, files under {folder.root}")
            if note := weights_note(module.model):
                say(f"note: {note}")
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
            _record_end(solve, status, reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table below says it, pair by pair
        spectrum = module.spectrum()
    # Lightning kills a run of which a process ends with another code than 0: the first one tells.
    code = exit_code if is_first else 0
    # A resumed run that was over already writes nothing.
    paths = results.paths or {path.name: path for path in sorted(folder.results.glob("*.*"))}
    return RunResult(folder.run_id, status, code, spectrum, paths)


def _record_start(solve: _Solve, loggers: list[Logger]) -> None:
    settings, picture = solve.settings, solve.picture
    if is_first_rank():
        solve.folder.write_record(
            status="RUNNING",
            stop_reason=None,
            error=None,
            fetched=None,
            config=plain_config(settings),
            picture=picture.record,
            title=solve.title,
            row={**problem_row(settings), "picture": picture.name},
        )
    for logger in loggers:
        send_settings(logger, shown_settings(settings, picture.name))
    if solve.mlflow is not None:
        solve.mlflow.log_tags({"picture_sha256": picture.record["sha256"]})


def _record_end(solve: _Solve, status: str, reason: str) -> None:
    """Write down how the run ended, also while an error is on its way."""
    facts = _facts(solve, status)
    error = sys.exc_info()[1] if status == "FAILED" else None
    problem = None if error is None else " ".join(str(error).split())[:500]
    try:
        if is_first_rank():
            solve.folder.write_record(status=status, stop_reason=reason, row=facts, error=problem)
    except TrackingError as full:  # what ended the run is more worth telling
        log.warning("%s", full)
    mlflow = solve.mlflow
    if mlflow is None:
        return
    mlflow.log_tags({"stop_reason": reason, **_drift_tags(solve.module)})
    if error is not None:
        text = failed_description(solve.title, error)
        send_description(mlflow, text, {"error": problem or ""}, 0)
    mlflow.set_status(status)
    mlflow.close()


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


class _LastStage(L.Callback):
    """Lets callbacks do again what a process that died in a run's last stage may not have done.

    Where the checkpoint is at ``max_steps`` already Lightning trains nothing and calls neither the
    start nor the end of a training; whatever was done before is not done twice.

    Parameters
    ----------
    callbacks
        Among them those that write and log.
    """

    def __init__(self, callbacks: Sequence[L.Callback]) -> None:
        kinds = (ConvergenceLogging, DistortionPictures, ResultFiles)
        self._callbacks = [callback for callback in callbacks if isinstance(callback, kinds)]
        self._trained = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._trained:
            return
        for callback in self._callbacks:
            callback.on_train_start(trainer, pl_module)
        for callback in self._callbacks:
            callback.on_train_end(trainer, pl_module)


def _is_over(folder: RunFolder) -> bool:
    """Whether a run's end is recorded."""
    try:
        return folder.read_record().get("status") == "FINISHED"
    except CheckpointError:
        return False


def _facts(solve: _Solve, status: str) -> dict[str, Any]:
    """Return the run's line in a table of runs; without a result, what it was to be."""
    row = {**problem_row(solve.settings), "picture": solve.picture.name}
    try:
        spectrum = solve.module.solver.result()
    except Exception:
        if status != "FAILED":
            raise
        return row  # whatever went wrong, it is told where it is raised
    return {**row, **plain(result_row(spectrum))}


def _stop_reason(trainer: Any, module: EigendistortionModule, status: str, code: int) -> str:
    """Say why the run ended, also where the trainer and not the solver ended it."""
    if status == "FAILED":
        error = sys.exc_info()[1]
        return f"failed: {type(origin(error)).__name__}" if error is not None else "failed"
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
