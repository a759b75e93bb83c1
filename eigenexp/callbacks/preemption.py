"""SIGINT, SIGTERM and SIGUSR1 finish the step, save, and end the run with a code that says so."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from eigenexp.distributed.ranks import agree
from eigenexp.errors import InputError
from eigenexp.storage.processes import STOP_FLAG, STOP_SIGNALS

__all__ = ["GracefulStop"]

log = logging.getLogger(__name__)


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class GracefulStop(L.Callback):
    """Turn a signal into a clean stop after the current step, agreed across ranks.

    The handler only sets a flag, so nothing is saved in mid-step; a signal to any one rank stops
    all. Loggers that take a status are told ``KILLED``, and to wait for their store no longer than
    ``patience``: schedulers kill what lingers. A second SIGINT raises ``KeyboardInterrupt`` at
    once. The handlers are in place until everything is written, and gone after ``trainer.fit``;
    :meth:`listening` hears signals before and after it too.

    Parameters
    ----------
    every_n_steps
        Steps between agreements across ranks, which cost something; a single process looks at every
        step.
    patience
        Seconds that sending may take in all, from the stop on. SLURM leaves 30.

    Attributes
    ----------
    received
        The signal that stopped the run, or ``None``.
    """

    def __init__(self, every_n_steps: int = 5, patience: float = 15.0) -> None:
        if every_n_steps < 1 or patience < 0:
            raise InputError(
                "every_n_steps, patience: expected at least 1 and 0, "
                f"got {every_n_steps} and {patience}"
            )
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.received: int | None = None
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}
        self._listens = False
        self._is_late: Callable[[], None] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals within the block, also before the first step and after the last one.

        One that arrives during set-up ends the run after its first step, with a checkpoint. One
        that finds the interpreter on its way out no longer changes the exit code.
        """
        self.received = self._pending = None
        self._listens = True
        self._install()
        try:
            yield
        finally:
            self._listens = False
            self._is_late = None
            if self._previous:
                atexit.unregister(_ignore_signals)  # once, before what others do at exit
                atexit.register(_ignore_signals)
            self._restore()

    def over(self, hurry: Callable[[], None]) -> None:
        """Say that the run is over: what a signal can still do is call ``hurry``."""
        self._is_late = hurry
        if self.received is None and self._pending is not None:
            hurry()

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number, as shells and schedulers expect."""
        return 0 if self.received is None else 128 + self.received

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handlers in place; Lightning has just put its own."""
        if not self._listens:
            self.received = self._pending = None
        self._install()

    def _install(self) -> None:
        """Put the handlers in place (signals reach Python's main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        STOP_FLAG.set(number)  # also one that comes too late for this run
        if self._pending is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._pending = number
        if self._is_late is not None:
            self._is_late()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop where a signal was received; under several ranks, where any of them received one."""
        if self.received is not None:
            return
        agreed = self._agree(trainer)
        if agreed is None:
            return
        self.received = agreed
        trainer.should_stop = True
        name = signal.Signals(agreed).name
        log.warning("%s: stopping after step %d and saving", name, trainer.global_step)
        for logger in trainer.loggers:
            hurry = getattr(logger, "hurry", None)
            if hurry is not None:
                hurry("KILLED", self.patience)

    def _agree(self, trainer: L.Trainer) -> int | None:
        """Return a signal that any rank received, the same one on all."""
        pending = self._pending
        if trainer.world_size == 1:
            return pending
        if trainer.global_step % self.every_n_steps:
            return None

        def anywhere(here: bool) -> bool:
            return agree(trainer, here, all_ranks=False, advice="go on from the last checkpoint")

        if not anywhere(pending is not None):
            return None
        heard = [anywhere(pending == number) for number in STOP_SIGNALS]
        return STOP_SIGNALS[heard.index(True)] if any(heard) else None

    def _restore(self) -> None:
        if self._listens:
            return
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:  # else Lightning was here before us
                signal.signal(number, handler)
        self._previous.clear()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Put the previous handlers back: the last checkpoint and the results are written."""
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Put the previous handlers back."""
        self._restore()
