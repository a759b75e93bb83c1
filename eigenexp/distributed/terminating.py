"""SIGTERM to any one process of a fit, where no callback hears signals."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from eigenexp.distributed.ranks import agree

__all__ = ["SigtermTogether"]


class SigtermTogether:
    """Ends a fit of several processes on SIGTERM to one of them, in all after the same turn.

    Lightning's own handler broadcasts from inside the handler, where the other processes may be in
    another exchange; they then wait for each other for ever. Where Lightning's is the handler, it
    is replaced by one that only takes a note; Lightning puts back what was there before the fit.
    A handler of anybody else, as of :class:`~eigenexp.GracefulStop`, stays.

    Parameters
    ----------
    every_n_turns
        Turns between agreements, which take an exchange each.
    """

    def __init__(self, every_n_turns: int) -> None:
        self._every = every_n_turns
        self._listens = self._received = False

    def listen(self, trainer: L.Trainer) -> None:
        """Replace Lightning's handler; call it when training has begun, in all processes."""
        self._listens = self._received = False
        if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGTERM)
        if type(handler).__module__.startswith("lightning."):
            signal.signal(signal.SIGTERM, self._take_note)
            self._listens = True

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def end_if_received(self, trainer: L.Trainer, advice: str) -> None:
        """End the fit as Lightning does on SIGTERM, where any process has received one.

        Raises
        ------
        SIGTERMException
            In all processes.
        RankLostError
            When another process is gone.
        """
        if not self._listens or trainer.global_step % self._every:
            return
        if agree(trainer, self._received, all_ranks=False, advice=advice):
            raise SIGTERMException
