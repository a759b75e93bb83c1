"""What runs and studies share: settings are checked, the trainer fits, an exit code comes out."""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from eigenexp.callbacks import GracefulStop
from eigenexp.checkpoints.files import Checkpoint
from eigenexp.checkpoints.lightning_io import AtomicCheckpointIO
from eigenexp.errors import (
    CheckpointError,
    ConfigError,
    EigenexpError,
    ModelError,
    one_line,
    summary,
)
from eigenexp.experiments.building import build_trainer
from eigenexp.experiments.schema import FitConfig
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.modules.study import StudyModule
from eigenexp.operators.blocks import out_of_memory
from eigenexp.runs.folder import OUT_OF_TIME, RunFolder
from eigenexp.storage.addresses import userinfo, without_userinfo
from eigenexp.tracking.mlflow_logger import MLflowLogger

__all__ = ["check_settings", "fit_to_the_end", "name_run", "set_threads", "without_credentials"]

log = logging.getLogger(__name__)


_ADDRESS = "MLFLOW_TRACKING_URI"
_MOST_THREADS = 1024  # OpenMP dies of more than the system gives it


def without_credentials(settings: FitConfig) -> FitConfig:
    """Take name and password out of the tracking store's address, here and in the environment.

    They go to the variables that MLflow reads them from, and so to no file, argument list, page or
    message that an address gets into.
    """
    given, inherited = settings.logger.tracking_uri, os.environ.get(_ADDRESS)
    found = userinfo(given or inherited or "")
    if found is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = found
    if inherited is not None:
        os.environ[_ADDRESS] = without_userinfo(inherited)
    if given is None:
        return settings
    return replace(settings, logger=replace(settings.logger, tracking_uri=without_userinfo(given)))


def check_settings(settings: FitConfig, module: EigendistortionModule | StudyModule) -> None:
    """Raise what is wrong with the trainer's and the solver's settings, before a run is begun.

    Raises
    ------
    EigenexpError
        One line that says what to change.
    """
    module.check(build_trainer(settings, [], [], checkpointing=False))


def set_threads(threads: int | None) -> None:
    """Let this process compute with so many threads; warn where they are more than its cores.

    Raises
    ------
    ConfigError
        When it is to have none.
    """
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(
            f"threads: expected 1 to {_MOST_THREADS}, or null for the machine's, got {threads}"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = torch.get_num_threads()
    if cores is not None and used > cores:
        log.warning("%d threads on %d cores: set threads=%d", used, cores, cores)


def name_run(run: RunFolder | None, mlflow: MLflowLogger | None) -> str:
    """Return the id of the run that goes on, or the store's, or one of our own."""
    if run is not None:
        return run.run_id
    return (mlflow and mlflow.version) or uuid.uuid4().hex


_KINDS: dict[str, type[Any]] = {
    "pytorch-lightning_version": str,
    "state_dict": Mapping,
    "loops": Mapping,
    "callbacks": Mapping,
}


def _check_kinds(checkpoint: Checkpoint) -> None:
    """Refuse what Lightning would stumble over without saying what is wrong."""
    for key, kind in _KINDS.items():
        value = checkpoint.content.get(key)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{checkpoint.path}: expected a checkpoint of a run, got {type(value).__name__} "
                f"for {key!r}; use an earlier one"
            )


def _tell_unmonitored(trainer: L.Trainer) -> None:
    """Warn of a person's checkpoints that waited for a metric nobody logs: Lightning says none."""
    there = sorted(trainer.callback_metrics)
    for callback in trainer.checkpoint_callbacks:
        wanted = callback.monitor if isinstance(callback, ModelCheckpoint) else None
        if wanted is not None and wanted not in there:
            log.warning(
                "ModelCheckpoint(monitor=%r) saved nothing: expected one of %s",
                wanted,
                ", ".join(there),
            )


def _is_lightnings_own(error: BaseException) -> bool:
    """Whether Lightning raised it itself: a setting it refuses, a metric that nobody logs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return name.startswith("lightning.pytorch.")


def fit_to_the_end(
    trainer: L.Trainer,
    module: L.LightningModule,
    stop: GracefulStop,
    mlflow: MLflowLogger | None,
    is_unfinished: Callable[[], bool],
    checkpoint: Checkpoint | None = None,
) -> int:
    """Fit, and return the exit code: 0, 128 + a signal's number, or 124 at ``max_time``.

    Parameters
    ----------
    trainer, module, checkpoint
        What is fitted, and where it goes on.
    stop
        Hears signals; from the end of the fit on they only shorten the wait for ``mlflow``.
    mlflow
        The run's logger, if any.
    is_unfinished
        Whether something was left to do, asked after the fit: then time had run out, unless the
        limit of steps was reached.
    """
    with warnings.catch_warnings():
        # Lightning's hints on data loading do not apply to a loader of solver steps.
        warnings.filterwarnings("ignore", module=r"lightning\.")
        path = None
        if checkpoint is not None:
            _check_kinds(checkpoint)
            path = str(checkpoint.path)
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(checkpoint)
        try:
            trainer.fit(module, ckpt_path=path)
        except SystemExit as error:
            # Lightning turns Ctrl-C outside the loop into sys.exit(1), which hides the cause.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        except (MisconfigurationException, RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise ModelError(
                    f"memory: expected room for the solve, got none left ({summary(error)}); go on "
                    "from the last checkpoint with operator.recompute=true, a smaller picture, or "
                    "on a machine with more"
                ) from error
            if isinstance(error, EigenexpError) or not _is_lightnings_own(error):
                raise
            raise ConfigError(f"callbacks or trainer: {one_line(error)}") from error
    _tell_unmonitored(trainer)
    if mlflow is not None:
        stop.over(partial(mlflow.limit, stop.patience))
    if stop.exit_code:
        return stop.exit_code
    at_max_steps = trainer.global_step >= trainer.max_steps >= 0
    return OUT_OF_TIME if is_unfinished() and not at_max_steps else 0
