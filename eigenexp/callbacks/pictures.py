"""Pictures of the distortions, over time, to every logger that takes pictures."""

from __future__ import annotations

from typing import Any

import lightning as L

from eigenexp.callbacks.pacing import Pace
from eigenexp.callbacks.sending import enlarge, send_pictures
from eigenexp.callbacks.stopping import solver_module
from eigenexp.errors import InputError
from eigenexp.modules.metrics import pair_name

__all__ = ["DistortionPictures"]


class DistortionPictures(L.Callback):
    """Send each pair's distortion, mid-gray at zero, as a picture series.

    Parameters
    ----------
    every_n_steps
        Steps between pictures; 0 for the end only.
    max_pairs
        Pairs shown at the most, from both ends.
    max_share
        Part of the run's time that pictures may take; some are left out where drawing would take
        more. ``None`` for no limit.
    """

    def __init__(
        self, every_n_steps: int = 100, max_pairs: int = 8, max_share: float | None = 0.01
    ) -> None:
        if every_n_steps < 0 or max_pairs < 1:
            raise InputError(
                "every_n_steps, max_pairs: expected at least 0 and 1, "
                f"got {every_n_steps} and {max_pairs}"
            )
        self.every_n_steps = every_n_steps
        self.max_pairs = max_pairs
        self._pace = Pace(max_share, "max_share")
        self._last_sent = -1

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Send pictures when they are due."""
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and self._pace.is_ready:
            with self._pace.measure():
                self._send(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send the last pictures."""
        self._send(trainer, pl_module)

    def _send(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = solver_module(pl_module)
        step = module.solver.num_products
        if step <= self._last_sent or not trainer.is_global_zero or not trainer.loggers:
            return
        self._last_sent = step
        from eigenexp.plots import distortion_image

        spectrum = module.solver.result()
        shown = list(range(len(spectrum)))
        if len(shown) > self.max_pairs:
            half = self.max_pairs // 2
            shown = shown[: self.max_pairs - half] + shown[len(shown) - half :]
        pictures = {}
        for i in shown:
            pixels = distortion_image(spectrum, i, module.operator.image_shape)
            name = pair_name(int(spectrum.eigenindex[i]), module.solver.settings.n)
            pictures[f"distortion/{name}"] = enlarge(pixels)
        for logger in trainer.loggers:
            send_pictures(logger, pictures, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the step last shown."""
        return {"last_sent": self._last_sent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the step last shown."""
        self._last_sent = state_dict["last_sent"]
