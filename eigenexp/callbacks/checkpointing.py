"""Checkpoints of the solver's whole state: last, best and a bounded history, safe at any kill."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from eigenexp.callbacks.pacing import Pace
from eigenexp.callbacks.stopping import solver_module
from eigenexp.checkpoints.files import metadata_path
from eigenexp.checkpoints.lightning_io import AtomicCheckpointIO
from eigenexp.checkpoints.seals import sealed_step
from eigenexp.distributed.ranks import agree
from eigenexp.errors import CheckpointError, InputError

__all__ = ["SolverCheckpoint"]

log = logging.getLogger(__name__)


class SolverCheckpoint(Checkpoint):
    """Write ``last.ckpt`` every n steps, at the end and at a graceful stop; keep the best one too.

    Each file is complete or absent (written beside its place, synced, renamed), has a
    ``.metadata.json`` with its sha256 beside it, and is handed to loggers that keep artifacts as
    ``checkpoints/last`` and ``checkpoints/best``. Loggers write out what they hold before each, so
    that no point from before a checkpoint is lost with the machine. A save that fails, on a full
    disk, is told and tried again; only one that fails at the end ends the run with an error.

    Parameters
    ----------
    dirpath
        Folder of the files; ``None`` for ``<trainer.default_root_dir>/checkpoints``.
    every_n_steps
        Steps between checkpoints: these are lost in a crash.
    every_seconds
        Also save when this much time has passed; ``None`` for steps alone. Never changes the
        numbers of a run, only which of its steps can be resumed from.
    max_share
        Part of the run's time that saving may take. Where a save takes longer than that part of
        the time since the one before (hundreds of megabytes, or very fast steps), it waits: a save
        of 1 s comes every 100 s at the default. The end and a graceful stop are always saved.
        ``None``: save whenever due, whatever it costs.
    keep
        Older checkpoints kept beside ``last`` and ``best``, to fall back on.
    upload
        Hand files to loggers that take artifacts.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_steps: int = 50,
        every_seconds: float | None = None,
        keep: int = 2,
        upload: bool = True,
        max_share: float | None = 0.01,
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or keep < 0:
            raise InputError(
                f"every_n_steps, keep: expected at least 1 and 0, got {every_n_steps} and {keep}"
            )
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.every_n_steps = every_n_steps
        self.every_seconds = every_seconds
        self.keep = keep
        self.upload = upload
        self.best_residual = math.inf
        self.best_step = -1
        self.pace = Pace(max_share, "max_share")
        self._is_due = False
        self._saved_step = -1
        self._saved_at = 0.0

    @property
    def last_path(self) -> Path:
        """The newest checkpoint's path."""
        return self._folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        """The path of the checkpoint with the smallest worst residual."""
        return self._folder / "best.ckpt"

    @property
    def _folder(self) -> Path:
        if self.dirpath is None:
            raise RuntimeError("SolverCheckpoint: expected trainer.fit first; it sets the folder")
        return self.dirpath

    # -- hooks -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the folder (the same on every rank) and make writes atomic."""
        if self.dirpath is None:
            folder = Path(trainer.default_root_dir).absolute() / "checkpoints"
            self.dirpath = Path(trainer.strategy.broadcast(str(folder)))
        if trainer.is_global_zero:
            self.dirpath.mkdir(parents=True, exist_ok=True)
        if not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting; a resumed run has its checkpoint already."""
        if trainer.is_global_zero:
            self._set_aside(trainer.global_step)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when due, as soon as the pace allows."""
        step = trainer.global_step
        # A step may be of several batches.
        if step % self.every_n_steps == 0 and step != self._saved_step:
            self._is_due = True
        if self._agree(trainer):
            self._save(trainer, pl_module)

    def _agree(self, trainer: L.Trainer) -> bool:
        """Decide on the first rank's clock: every rank takes part in saving."""
        late = self.every_seconds is not None and (
            time.monotonic() - self._saved_at >= self.every_seconds
        )
        if trainer.world_size == 1:
            return (self._is_due or late) and self.pace.is_ready
        if not self._is_due and self.every_seconds is None:
            return False
        ready = trainer.is_global_zero and (self._is_due or late) and self.pace.is_ready
        return agree(trainer, ready, all_ranks=False, advice="go on from the last checkpoint")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state, wherever the run stopped.

        Raises
        ------
        CheckpointError
            When it cannot be written; earlier ones are intact.
        """
        self._save(trainer, pl_module, at_end=True)

    # -- files -----------------------------------------------------------------------------------

    def _save(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, at_end: bool = False
    ) -> None:
        step = trainer.global_step
        # One rank may have failed to write what the others take for saved: at the end, all again.
        if step == self._saved_step and trainer.world_size == 1:
            return
        best = (self.best_residual, self.best_step)
        self._is_due = False
        self._saved_at = time.monotonic()
        try:
            with self.pace.measure():
                self.write(trainer, pl_module, step)
        except (CheckpointError, OSError) as error:
            self.best_residual, self.best_step = best
            if at_end:
                raise
            log.warning("%s. The solve goes on and tries again at the next save", error)
        else:
            self._saved_step = step

    def write(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Save the last checkpoint, and the best where this is it; every rank takes part."""
        worst = solver_module(pl_module).solver.progress().worst
        better = worst < self.best_residual
        if better:
            self.best_residual, self.best_step = worst, step
        for logger in trainer.loggers:
            logger.save()
        try:
            trainer.save_checkpoint(self.last_path, weights_only=False)  # every rank takes part
        except CheckpointError:
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
            raise
        if not trainer.is_global_zero:
            return
        kinds = ["last"]
        if self.keep:
            _link(self.last_path, self._folder / f"step-{step:09d}.ckpt")
            self._prune()
        if better:
            _link(self.last_path, self.best_path)
            kinds.append("best")
        if self.upload:
            self._upload(trainer, kinds)

    def _set_aside(self, step: int) -> None:
        """Move checkpoints of later steps, which this run did not come from, out of the way.

        Of another run in the same folder, or of the end that a run resumed from an earlier file
        gave up: the largest step would otherwise be taken for this run's newest.
        """
        later = []
        for path in self._folder.glob("*.ckpt"):
            sealed = sealed_step(path)
            if sealed is not None and sealed > step:
                later.append(path)
        if not later:
            return
        place = self._folder / f"superseded-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        place.mkdir(exist_ok=True)
        for path in later:
            for file in (metadata_path(path), path):
                if file.exists():
                    os.replace(file, place / file.name)
        if not self.best_path.exists():
            self.best_residual, self.best_step = math.inf, -1
        log.warning(
            "%s holds checkpoints of later steps than %d, where this run begins; they are kept in "
            "%s",
            self._folder,
            step,
            place,
        )

    def _prune(self) -> None:
        """Drop the oldest of the history; the newest one equals ``last``."""
        history = sorted(self._folder.glob("step-*.ckpt"))
        for path in history[: -(self.keep + 1)]:
            path.unlink(missing_ok=True)
            metadata_path(path).unlink(missing_ok=True)

    def _upload(self, trainer: L.Trainer, kinds: list[str]) -> None:
        for logger in trainer.loggers:
            log_checkpoint = getattr(logger, "log_checkpoint_files", None)
            if log_checkpoint is None:
                continue
            for kind in kinds:
                log_checkpoint(self._folder / f"{kind}.ckpt", f"checkpoints/{kind}")

    # -- state -----------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """One state a class: resuming under another interval keeps the best."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return the best residual and its step."""
        return {"best_residual": self.best_residual, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best residual and its step."""
        self.best_residual = state_dict["best_residual"]
        self.best_step = state_dict["best_step"]


def _link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, atomically; a copy where the filesystem has no links."""
    for origin, place in (
        (metadata_path(source), metadata_path(target)),
        (source, target),
    ):
        temporary = place.with_name(f".{place.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(origin, temporary)
        except OSError:
            shutil.copyfile(origin, temporary)
        os.replace(temporary, place)
