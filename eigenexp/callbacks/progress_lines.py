"""Progress where there is no terminal: a line now and then, which a log file can keep."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L

from eigenexp.callbacks.progress_bar import describe
from eigenexp.callbacks.stopping import solver_module
from eigenexp.callbacks.study_progress import study_module
from eigenexp.modules.study import StudyModule

__all__ = ["ProgressLines"]


class ProgressLines(L.Callback):
    """Print how far a solve or a study is, on standard error, first after ``every_seconds``.

    Parameters
    ----------
    every_seconds
        Seconds between lines.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._told = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self._told = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Print a line when one is due."""
        if not trainer.is_global_zero or time.monotonic() - self._told < self.every_seconds:
            return
        self._told = time.monotonic()
        if isinstance(pl_module, StudyModule):
            study = study_module(pl_module)
            text = f"{len(study.folder.records())} of {study.num_pictures} pictures"
        else:
            text = describe(solver_module(pl_module).solver.progress(), trainer.global_step)
        print(text, file=sys.stderr, flush=True)
