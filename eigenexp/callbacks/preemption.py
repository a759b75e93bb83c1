"""SIGINT, SIGTERM and SIGUSR1 finish the step, save, and end the run with a code that says so."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L

__all__ = ["GracefulStop"]

log = logging.getLogger(__name__)

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class GracefulStop(L.Callback):
    """Turn a signal into a clean stop after the current step, agreed across ranks.

    The handler only sets a flag, so nothing is saved in mid-step. A second SIGINT raises
    ``KeyboardInterrupt`` at once. The handlers are in place during ``trainer.fit`` only.

    Parameters
    ----------
    every_n_steps
        Steps between agreements across ranks; a single process looks at every step.

    Attributes
    ----------
    received
        The signal that stopped the run, or ``None``.
    """

    def __init__(self, every_n_steps: int = 5) -> None:
        self.every_n_steps = every_n_steps
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number, as shells and schedulers expect."""
        return 0 if self.received is None else 128 + self.received

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handlers in place (signals reach Python's main thread only)."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop where a signal was received; under several ranks, where any of them received one."""
        stop = self.received is not None
        if trainer.world_size > 1:
            if trainer.global_step % self.every_n_steps:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            if stop and self.received is None:
                self.received = int(signal.SIGTERM)
        if stop and not trainer.should_stop:
            trainer.should_stop = True
            name = signal.Signals(self.received or signal.SIGTERM).name
            log.warning("%s: stopping after step %d and saving", name, trainer.global_step)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the previous handlers back."""
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Put the previous handlers back."""
        self._restore()
