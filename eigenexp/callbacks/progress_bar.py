"""A progress bar that shows step, products, worst residual and how far it is to the tolerance."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from eigenexp.callbacks.stopping import solver_module
from eigenexp.eigensolvers.progress import Progress

__all__ = ["SolverProgressBar", "describe", "digits_done"]


def digits_done(worst: float, tol: float) -> float:
    """Return the part of the way to ``tol`` in [0, 1], on the log scale on which residuals fall."""
    if not math.isfinite(worst) or worst >= 1:
        return 0.0
    if worst <= tol:
        return 1.0
    return math.log(worst) / math.log(tol) if tol < 1 else 1.0


def describe(progress: Progress, step: int) -> str:
    """Return one line: step, products, worst residual, tolerance, phase."""
    worst = f"{progress.worst:.1e}" if math.isfinite(progress.worst) else "–"
    return (
        f"step {step} · {progress.num_products} products · worst residual/λmax {worst} "
        f"(tol {progress.tol:.0e}) · {progress.phase}"
    )


class SolverProgressBar(TQDMProgressBar):
    """tqdm bar whose length is the way from residual 1 to the tolerance, on a log scale.

    Parameters
    ----------
    refresh_rate
        Steps between refreshes; 0 switches the bar off.
    """

    def __init__(self, refresh_rate: int = 5) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._furthest = 0.0

    def init_train_tqdm(self) -> Tqdm:
        """Return a bar of 100 units; its length is what is done of the way to the tolerance."""
        return Tqdm(
            total=100,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar:20}| {desc} [{elapsed}]",
        )

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Keep the bar as it is: an epoch has no length here."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Redraw when due."""
        if not self.is_disabled and trainer.global_step % max(1, self.refresh_rate) == 0:
            self._draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last state."""
        if not self.is_disabled:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last state and close the bar."""
        if not self.is_disabled:
            self._draw(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        solver = solver_module(pl_module).solver
        progress = solver.progress()
        # Residuals of a restarted method may rise for a while; a bar that runs back helps nobody.
        share = 1.0 if solver.done else min(0.99, digits_done(progress.worst, progress.tol))
        self._furthest = max(self._furthest, share)
        bar = self.train_progress_bar
        bar.n = round(100 * self._furthest)
        bar.set_description_str(describe(progress, trainer.global_step), refresh=False)
        bar.refresh()
