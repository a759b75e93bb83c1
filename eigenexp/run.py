"""One run from configuration to result: fit, resume, and what is said at the end."""

from __future__ import annotations

import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eigenexp.building import (
    build_callbacks,
    build_loggers,
    build_model,
    build_module,
    build_trainer,
    check_trusted,
)
from eigenexp.callbacks import GracefulStop, ResultFiles
from eigenexp.checkpoints import find_checkpoint, load_metadata
from eigenexp.config import override_config, plain_config
from eigenexp.errors import CheckpointError
from eigenexp.lightning_module import EigendistortionModule
from eigenexp.ranks import is_first_rank
from eigenexp.runs import RunFolder, find_run, open_root
from eigenexp.spectrum import Spectrum, StopReason
from eigenexp.study.running import StudyResult, fit_study, is_study, study_summary
from eigenexp.tracking import MLflowLogger

__all__ = ["RunResult", "fit", "resume", "summary"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes
    ----------
    run_id
        Names the run in MLflow, TensorBoard and under ``<root>/checkpoints``.
    status
        ``FINISHED``, ``KILLED`` (a signal) or ``FAILED``, as MLflow says it.
    exit_code
        0, or 128 + the signal's number.
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


def fit(
    config: Any,
    *,
    run: RunFolder | None = None,
    checkpoint: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> RunResult | StudyResult:
    """Run the configured solve, tracked and resumable.

    Parameters
    ----------
    config
        From :func:`eigenexp.config.compose_config`, or a plain mapping of the same keys.
    run, checkpoint, force
        Continue this run from this checkpoint; ``force`` also where model or picture differ.
    say
        Receives the lines a person reads.

    Raises
    ------
    EigenexpError
        One line that says what to change; a run already begun is marked FAILED.
    """
    settings = dict(config) if isinstance(config, dict) else plain_config(config)
    root = open_root(settings["root"])
    settings["root"] = str(root)
    _set_threads(settings["threads"])
    if is_study(settings):

        def parent(title: str) -> MLflowLogger | None:
            return _mlflow_logger(settings, root, run, title)

        return fit_study(settings, root=root, mlflow_logger=parent, run=run, force=force, say=say)
    model = build_model(settings["model"])
    module, picture = build_module(settings, model)
    module.force_resume = force

    title = f"{_model_name(settings)} at {picture.name}"
    mlflow = _mlflow_logger(settings, root, run, title)
    run_id = run.run_id if run is not None else (mlflow and mlflow.version) or uuid.uuid4().hex
    folder = RunFolder(root, run_id)
    is_first = is_first_rank()
    if is_first:
        folder.write_record(config=settings, status="RUNNING", picture=picture.record, title=title)
    module.run_metadata["run_id"] = run_id
    loggers = build_loggers(settings, run_id, mlflow)
    results = ResultFiles(folder.results, title=title)
    callbacks = build_callbacks(settings, folder.checkpoints, results)
    trainer = build_trainer(settings, loggers, callbacks)
    if is_first:
        say(f"run {run_id}: {title}, {tuple(picture.tensor.shape[1:])}, files under {root}")
    status = "FAILED"
    try:
        for logger in loggers:
            logger.log_hyperparams(_parameters(settings, picture.record))
        _fit(trainer, module, checkpoint)
        stop = next(c for c in callbacks if isinstance(c, GracefulStop))
        status = "KILLED" if stop.received is not None else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        reason = _stop_reason(trainer, module, status)
        if is_first:
            folder.write_record(status=status, stop_reason=reason)
        if mlflow is not None:
            mlflow.log_tags({"stop_reason": reason})
            mlflow.set_status(status)
            mlflow.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table below says it, pair by pair
        spectrum = module.spectrum()
    # Lightning kills a run of which a process ends with another code than 0: the first one tells.
    code = stop.exit_code if is_first else 0
    return RunResult(run_id, status, code, spectrum, results.paths)


def resume(
    name: str,
    overrides: Sequence[str] = (),
    *,
    root: str | Path = "mlruns",
    force: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = print,
) -> RunResult | StudyResult:
    """Continue a run in its own place, ending as it would have without the break.

    Parameters
    ----------
    name
        Run id, the start of one, ``last``, or a path into a run's folder.
    overrides
        ``key=value`` changes, for instance ``solver.tol=1e-6`` or ``trainer.max_steps=9000``.
    root
        Folder of the runs.
    force
        Go on although model or picture differ from the saved ones.
    trust
        Build ``_target_`` of any package from the saved configuration.

    Raises
    ------
    EigenexpError
        When there is no such run or checkpoint, or it does not fit.
    """
    run = find_run(name, root)
    record = run.read_record()
    if record.get("study"):
        config = plain_config(
            override_config({**record["config"], "root": str(run.root)}, overrides)
        )
        if not trust:
            check_trusted(config["model"])
        say(f"resuming {run.results}")
        return fit(config, run=run, force=force, say=say)
    given = Path(name)
    checkpoint = find_checkpoint(given if given.is_file() else run.checkpoints)
    saved = load_metadata(checkpoint).get("config")
    if not isinstance(saved, Mapping):
        raise CheckpointError(
            f"{checkpoint}: expected the run's configuration in the checkpoint, got none; "
            "continue it from your script with trainer.fit(module, ckpt_path=…)"
        )
    # The folder may have moved since; a changed root would start another store.
    config = plain_config(override_config({**saved, "root": str(run.root)}, overrides))
    if not trust:
        check_trusted(config["model"])
    say(f"resuming from {checkpoint}")
    return fit(config, run=run, checkpoint=checkpoint, force=force, say=say)


# -- pieces ----------------------------------------------------------------------------------------


def _fit(trainer: Any, module: EigendistortionModule, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        # Lightning's hints on data loading do not apply to a loader of solver steps.
        warnings.filterwarnings("ignore", module=r"lightning\.")
        try:
            trainer.fit(module, ckpt_path=None if checkpoint is None else str(checkpoint))
        except SystemExit as error:
            # Lightning turns Ctrl-C outside the loop into sys.exit(1), which hides the cause.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = torch.get_num_threads()
    if cores is not None and used > cores:
        log.warning("%d threads on %d cores: set threads=%d", used, cores, cores)


def _model_name(settings: Mapping[str, Any]) -> str:
    name = str(settings["model"]["_target_"]).rpartition(".")[2]
    layer = settings["model"].get("layer")
    return name if layer is None else f"{name}.{layer}"


def _mlflow_logger(
    settings: Mapping[str, Any], root: Path, run: RunFolder | None, title: str
) -> MLflowLogger | None:
    if not settings["logger"]["mlflow"]:
        return None
    return MLflowLogger(
        experiment_name=settings["experiment_name"],
        run_name=settings["run_name"] or title,
        run_id=None if run is None else run.run_id,
        root=root,
        tracking_uri=settings["logger"]["tracking_uri"],
        tags=settings["tags"],
    )


def _parameters(settings: Mapping[str, Any], picture: Mapping[str, Any]) -> dict[str, Any]:
    groups = ("model", "image", "solver", "trainer")
    parameters: dict[str, Any] = {group: settings[group] for group in groups}
    parameters["picture_sha256"] = picture["sha256"]
    return parameters


def _stop_reason(trainer: Any, module: EigendistortionModule, status: str) -> str:
    """Say why the run ended, also where the trainer and not the solver ended it."""
    if status == "FAILED":
        error = sys.exc_info()[1]
        return f"failed: {type(error).__name__}" if error is not None else "failed"
    if status == "KILLED":
        return "signal"
    reason = module.solver.stop_reason
    if reason is not StopReason.RUNNING:
        return str(reason.value)
    return "max_steps" if trainer.global_step >= trainer.max_steps >= 0 else "max_time"


# -- what a person reads ---------------------------------------------------------------------------


def summary(result: RunResult | StudyResult) -> list[str]:
    """Return the closing lines of a run."""
    if not is_first_rank():
        return []
    if isinstance(result, StudyResult):
        return study_summary(result)
    lines = ["", str(result.spectrum), ""]
    if "distortions.png" in result.paths:
        lines.append(f"picture:   {result.paths['distortions.png']}")
        lines.append(f"results:   {result.paths['distortions.png'].parent}")
    if result.status == "KILLED":
        lines.append(f"stopped by a signal; go on with: eigenexp resume {result.run_id}")
    elif not (len(result.spectrum) and bool(result.spectrum.converged.all())):
        lines.append(f"not every pair is proven; go on with: eigenexp resume {result.run_id} …")
    lines.append("dashboard: eigenexp ui")
    return lines
