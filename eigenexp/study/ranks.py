"""What processes that work each for itself still have to say to each other.

A thread of each process meets those of the others every second, over a group of its own: a request
to stop reaches all of them, nobody leaves before all are done, and a process that dies is noticed.
The work itself never waits for this.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from eigenexp.errors import EigenexpError

__all__ = ["Heartbeat", "RankLostError"]

log = logging.getLogger(__name__)

# A process that was told of a loss and has not ended by itself by then is ended.
GRACE_SECONDS = 15.0


class RankLostError(EigenexpError, RuntimeError):
    """Another process of the run died or was lost."""


class Heartbeat:
    """Meets the other processes of a run every ``every`` seconds.

    Parameters
    ----------
    rank, world_size
        This process, and how many there are; the default process group must exist.
    every
        Seconds between meetings.
    patience
        Seconds a process may be silent; one that dies is noticed at once.
    """

    def __init__(
        self, rank: int, world_size: int, every: float = 0.5, patience: float = 120.0
    ) -> None:
        self._rank, self._size, self._every = rank, world_size, every
        self._patience = patience
        self._wants_stop = self._is_done = False
        self.stop_requested = False
        self._lost: str = ""
        self._all_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eigenexp-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; every process must call it."""
        # Each process makes the group at the same place in the program, as torch demands.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self._patience))
        self._thread.start()

    def request_stop(self) -> None:
        """Ask all processes to stop after their present turn."""
        self._wants_stop = True

    def check(self) -> None:
        """Raise when another process is lost.

        Raises
        ------
        RankLostError
            Saying so.
        """
        if self._lost:
            raise RankLostError(
                f"rank {self._rank}: expected {self._size} processes at work, lost one "
                f"({self._lost}); finished pictures are kept: go on with the same folder"
            )

    def finish(self) -> None:
        """Say that this process is done, and wait until all are.

        Raises
        ------
        RankLostError
            When one is lost before.
        """
        self._is_done = True
        while not self._all_done.wait(0.2):
            self.check()
        self._thread.join()

    def _run(self) -> None:
        while True:
            flags = torch.tensor([int(self._wants_stop), int(self._is_done)])
            try:
                dist.all_reduce(flags, group=self._group)
            except Exception as error:
                self._lost = " ".join(str(error).split())[:120] or type(error).__name__
                log.warning("another process was lost: %s", self._lost)
                time.sleep(GRACE_SECONDS)
                # A daemon thread: where the process ended by itself, this is never reached.
                os._exit(1)
            if int(flags[0]):
                self.stop_requested = True
            if int(flags[1]) == self._size:
                self._all_done.set()
                return
            time.sleep(self._every)
