"""A study from configuration to table: fit, resume, and what is said at the end."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from eigenexp.callbacks import GracefulStop
from eigenexp.callbacks.progress_lines import ProgressLines
from eigenexp.callbacks.sending import send_description, send_settings
from eigenexp.callbacks.study_progress import StudyLogging, StudyProgressBar
from eigenexp.distributed.ranks import is_first_rank
from eigenexp.errors import TrackingError, origin
from eigenexp.experiments.building import (
    build_loggers,
    build_mlflow_logger,
    build_trainer,
    operator_options,
    own_callbacks,
    own_loggers,
)
from eigenexp.experiments.schema import FitConfig, TrainerConfig, plain_config
from eigenexp.experiments.session import check_settings, fit_to_the_end, name_run
from eigenexp.experiments.shown import problem_row, shown_settings
from eigenexp.models.weights import weights_note
from eigenexp.modules.study import StudyModule
from eigenexp.pictures.sources import left_out
from eigenexp.runs.folder import OUT_OF_TIME, RunFolder
from eigenexp.runs.overview import model_name, records_row, study_description
from eigenexp.study.folder import StudyFolder
from eigenexp.tracking.children import ChildRuns
from eigenexp.tracking.mlflow_logger import MLflowLogger

__all__ = ["StudyResult", "fit_study", "is_study"]

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds the child runs may take at the end of an undisturbed study


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes
    ----------
    run_id, status, exit_code
        As of a :class:`~eigenexp.experiments.picture.RunResult`; the exit code is 1 where a
        picture failed.
    folder
        The study's folder, with ``table.csv`` and ``pictures/``.
    records
        The records of the finished pictures by position.
    num_pictures
        Of the whole study.
    """

    run_id: str
    status: str
    exit_code: int
    folder: Path
    records: Mapping[int, Mapping[str, Any]]
    num_pictures: int


def is_study(settings: FitConfig) -> bool:
    """Whether a configuration names many pictures, each of which is a problem of its own."""
    return settings.image.path is not None and settings.parallel in (None, "pictures")


def fit_study(
    settings: FitConfig,
    model: Any,
    *,
    root: Path,
    stop: GracefulStop,
    run: RunFolder | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> StudyResult:
    """Solve the configured pictures, tracked and resumable; unfinished ones where ``run`` is given.

    Parameters
    ----------
    settings
        Of the whole run.
    model
        Built from it.
    root
        The runs' folder, proven writable.
    stop
        Hears signals.
    run
        Go on with this study, which the caller holds.
    force
        Also where model or settings differ.
    say
        Receives the lines a person reads.

    Raises
    ------
    EigenexpError
        One line that says what to change.
    """
    is_first = is_first_rank()
    module = _build_module(settings, model, run)
    check_settings(settings, module)
    own = own_loggers(settings), own_callbacks(settings)
    title = f"{model_name(settings.model)} at {_short(settings.image.path)}"
    mlflow = build_mlflow_logger(settings, root, run, title) if is_first else None
    run_id = name_run(run, mlflow)
    place = RunFolder(root, run_id)
    module.folder = StudyFolder(place.results)
    module.run_metadata = {"config": plain_config(settings), "run_id": run_id}
    module.force_resume = force
    # From the first record on: without its lock a run that says RUNNING counts as dead.
    with place.hold() if run is None and is_first else nullcontext():
        return _run(settings, place, title, module, mlflow, own, stop, say)


def _run(
    settings: FitConfig,
    place: RunFolder,
    title: str,
    module: StudyModule,
    mlflow: MLflowLogger | None,
    own: tuple[list[Logger], list[L.Callback]],
    stop: GracefulStop,
    say: Callable[[str], None],
) -> StudyResult:
    """Solve the pictures of a study that is held, and mark how it ended."""
    is_first, source = is_first_rank(), _short(settings.image.path)
    study = settings.study
    if is_first:
        row = {**problem_row(settings), "picture": source}
        others = left_out(settings.image.path)
        place.write_record(
            config=module.run_metadata["config"],
            status="RUNNING",
            stop_reason=None,
            title=title,
            study=True,
            row=row,
            left_out=others,
        )
        module.folder.forget(failed=study.retry_failed, unproven=study.retry_unproven)
        say(f"run {place.run_id}: {title}, files under {place.results}")
        if note := weights_note(module.model):
            say(f"note: {note}")
        if others:
            more = ", …" if len(others) > 5 else ""
            files = "1 file" if len(others) == 1 else f"{len(others)} files"
            say(f"{files} left out: {', '.join(others[:5])}{more}")
    loggers = [*(build_loggers(settings, place.run_id, mlflow) if is_first else []), *own[0]]
    children = None
    if mlflow is not None:
        children = ChildRuns(mlflow.store, place.run_id, place.results)
    callbacks: list[L.Callback] = [stop, StudyLogging()]
    if settings.trainer.enable_progress_bar:
        callbacks.append(StudyProgressBar() if sys.stderr.isatty() else ProgressLines())
    callbacks += own[1]
    trainer = build_trainer(_endless(settings), loggers, callbacks, checkpointing=False)
    status, exit_code = "FAILED", 1
    try:
        for logger in loggers:
            send_settings(logger, shown_settings(settings, source))
        exit_code = fit_to_the_end(
            trainer,
            module,
            stop,
            mlflow,
            lambda: len(module.folder.records()) < module.num_pictures,
        )
        status = "KILLED" if exit_code else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        records = module.folder.records()
        if is_first:
            reason = _stop_reason(status, exit_code, len(records), module.num_pictures)
            progress = f"{len(records)}/{module.num_pictures}"
            patience = stop.patience if stop.received is not None else _PATIENCE
            facts = {**problem_row(settings), "picture": source, **records_row(records)}
            if mlflow is not None:
                _hand_over(place, {"stop_reason": reason, "pictures": progress}, mlflow)
                _describe(title, source, module, records, mlflow)
            if children is not None and not children.close(patience):
                log.warning("some pictures' child runs are still being made; see children.log")
            try:  # behind the child runs: a study that dies before it has them is gone on with
                place.write_record(status=status, stop_reason=reason, row=facts)
            except TrackingError as full:  # what ended the study is more worth telling
                log.warning("%s", full)
            if mlflow is not None:
                mlflow.set_status(status)
                mlflow.close()
    failed = any(record["status"] == "failed" for record in records.values())
    # Lightning kills a run of which a process ends with another code than 0: the first one tells.
    code = (exit_code or int(failed)) if is_first else 0
    return StudyResult(place.run_id, status, code, place.results, records, module.num_pictures)


def _build_module(settings: FitConfig, model: Any, run: RunFolder | None) -> StudyModule:
    """Return the module: of a new study, without its folder yet."""
    image, study = asdict(settings.image), settings.study
    path = image.pop("path")
    del image["source"]
    plan = None if run is None else StudyFolder(run.results).read_plan()
    return StudyModule(
        model,
        # Those the study began with, whatever has come to the folder since.
        path if plan is None else [entry["where"] for entry in plan["pictures"]],
        **asdict(settings.solver),
        batch_size=study.batch_size,
        cohort=study.cohort,
        checkpoint_seconds=study.checkpoint_seconds,
        image_options=image,
        figures=study.figures,
        operator_options=operator_options(settings),
    )


def _endless(settings: FitConfig) -> FitConfig:
    """Lift the default limit of steps, which is meant for one picture; one that was set stays."""
    if settings.trainer.max_steps != TrainerConfig.max_steps:
        return settings
    return replace(settings, trainer=replace(settings.trainer, max_steps=-1))


def _stop_reason(status: str, exit_code: int, done: int, total: int) -> str:
    error = sys.exc_info()[1]
    if status == "FAILED" and error is not None:
        return f"failed: {type(origin(error)).__name__}"
    if status == "KILLED":
        return "max_time" if exit_code == OUT_OF_TIME else "signal"
    return f"{done} of {total} pictures"


def _describe(
    title: str,
    source: str,
    module: StudyModule,
    records: Mapping[int, Mapping[str, Any]],
    mlflow: MLflowLogger,
) -> None:
    """Tell MLflow which pictures a study is of, and what it came to."""
    hashes = [str((record.get("picture") or {}).get("sha256")) for record in records.values()]
    digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    if len(records) == module.num_pictures:  # of some of them alone it would be another
        mlflow.log_dataset(source, digest, source, {"pictures": len(records)})
    text = study_description(title, records, module.num_pictures)
    send_description(mlflow, text, {}, 0)


def _hand_over(place: RunFolder, tags: Mapping[str, str], mlflow: MLflowLogger) -> None:
    for name in ("table.csv", "table.parquet", "study.json"):
        if (place.results / name).is_file():
            mlflow.log_artifact(place.results / name, "results")
    mlflow.log_tags(tags)


def _short(path: Any) -> str:
    text = str(path) if isinstance(path, str) else f"{len(path)} paths"
    return text if len(text) <= 60 else f"…{text[-59:]}"
