"""One call of ``trainer.fit`` under a command, and the exit code that it comes to."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L

from eigenexp.callbacks import GracefulStop
from eigenexp.runs import OUT_OF_TIME, RunFolder
from eigenexp.tracking import MLflowLogger

__all__ = ["fit_to_the_end", "name_run"]


def name_run(run: RunFolder | None, mlflow: MLflowLogger | None) -> str:
    """Return the id of the run that goes on, or the store's, or one of our own."""
    if run is not None:
        return run.run_id
    return (mlflow and mlflow.version) or uuid.uuid4().hex


def fit_to_the_end(
    trainer: L.Trainer,
    module: L.LightningModule,
    stop: GracefulStop,
    mlflow: MLflowLogger | None,
    is_unfinished: Callable[[], bool],
    checkpoint: Path | None = None,
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
        try:
            trainer.fit(module, ckpt_path=None if checkpoint is None else str(checkpoint))
        except SystemExit as error:
            # Lightning turns Ctrl-C outside the loop into sys.exit(1), which hides the cause.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
    if mlflow is not None:
        stop.over(partial(mlflow.limit, stop.patience))
    if stop.exit_code:
        return stop.exit_code
    at_max_steps = trainer.global_step >= trainer.max_steps >= 0
    return OUT_OF_TIME if is_unfinished() and not at_max_steps else 0
