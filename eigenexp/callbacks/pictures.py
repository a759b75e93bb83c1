"""Pictures of the distortions, over time, to every logger that takes pictures."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from eigenexp.callbacks.convergence_logging import pair_name
from eigenexp.callbacks.stopping import solver_module
from eigenexp.errors import InputError

__all__ = ["DistortionPictures", "send_picture"]


def send_picture(logger: Logger, key: str, pixels: npt.NDArray[np.uint8], step: int) -> bool:
    """Hand a uint8 ``(H, W[, 3])`` picture to ``logger``; ``False`` if it takes none."""
    if isinstance(logger, TensorBoardLogger):
        layout = "HWC" if pixels.ndim == 3 else "HW"
        logger.experiment.add_image(key, pixels, step, dataformats=layout)
        return True
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, key=key, step=step)
        return True
    log_image = getattr(logger, "log_image", None)
    if log_image is None:
        return False
    if hasattr(logger, "log_pictures_by_key"):
        log_image(key, pixels, step)
    else:  # the signature of Lightning's other loggers
        log_image(key=key, images=[pixels], step=step)
    return True


class DistortionPictures(L.Callback):
    """Send each pair's distortion, mid-gray at zero, as a picture series.

    Parameters
    ----------
    every_n_steps
        Steps between pictures; 0 for the end only.
    max_pairs
        Pairs shown at the most, from both ends.
    """

    def __init__(self, every_n_steps: int = 100, max_pairs: int = 8) -> None:
        if every_n_steps < 0 or max_pairs < 1:
            raise InputError(
                "every_n_steps, max_pairs: expected at least 0 and 1, "
                f"got {every_n_steps} and {max_pairs}"
            )
        self.every_n_steps = every_n_steps
        self.max_pairs = max_pairs
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
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
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
        for i in shown:
            pixels = distortion_image(spectrum, i, module.operator.image_shape)
            name = pair_name(int(spectrum.eigenindex[i]), module.solver.settings.n)
            for logger in trainer.loggers:
                send_picture(logger, f"distortion/{name}", pixels, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the step last shown."""
        return {"last_sent": self._last_sent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the step last shown."""
        self._last_sent = state_dict["last_sent"]
