"""The processes that send for this one: got ready early, kept for the next run, let go.

Importing MLflow and opening its database take a process 2 s. A command that will track a run starts
one before it imports what it needs itself (:meth:`Senders.prepare`); the jobs of a sweep hand one
on (:meth:`Senders.staying`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from eigenexp.storage.processes import instruct, start_module
from eigenexp.tracking.environment import QUIET_ENVIRONMENT
from eigenexp.tracking.spool import Spool
from eigenexp.tracking.store import Store

__all__ = ["SENDERS", "Senders", "await_removal"]

_MODULE = "eigenexp.tracking.sender"
_MOST_STAYING = 4
_SETTLE_SECONDS = 30.0
_REMOVAL_SECONDS = 5.0


def await_removal(spool: Spool, process: subprocess.Popen[bytes]) -> None:
    """Wait, within bounds, until nothing of a run waits on disk any more.

    A sender removes a spool last, behind the run's fate; its own end takes a second more, for which
    nobody has to wait. One that ends without it leaves the spool to ``eigenexp sync``.
    """
    end = time.monotonic() + _REMOVAL_SECONDS
    while spool.folder.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


class Deferred(Protocol):
    """A run that has ended and of which not everything is sent yet."""

    @property
    def is_settled(self) -> bool:
        """Whether everything is sent."""
        ...

    def settle(self, timeout: float) -> bool:
        """Wait for that, within bounds; say where it stays."""
        ...


class Senders:
    """The processes of this process, which end with it.

    Attributes
    ----------
    defers
        Whether a run that ends need not wait until everything is sent (:meth:`staying`).
    """

    def __init__(self) -> None:
        self._ready: list[subprocess.Popen[bytes]] = []
        self._staying: list[tuple[subprocess.Popen[bytes], Spool]] = []
        self._outliving: list[subprocess.Popen[bytes]] = []
        self._deferred: list[Deferred] = []
        self._stay = False
        self.defers = False
        atexit.register(self._release_all)

    def prepare(self, root: str | os.PathLike[str], uri: str | None = None) -> None:
        """Start a process that gets ready for a run there; nothing is made until one begins."""
        with contextlib.suppress(Exception):  # told when the run begins
            store = Store(root, uri)
            place = {"root": str(store.root), "uri": store.uri}
            process = start_module(
                _MODULE,
                {"ready": place},
                output=Path(os.devnull),
                environment=QUIET_ENVIRONMENT,
            )
            self._ready.append(process)

    def start(self, spool: Spool, store: Store, parent: int) -> subprocess.Popen[bytes]:
        """Let a process send a spool; addresses and passwords go through its standard input.

        Raises
        ------
        OSError
            When there is no process to be had.
        """
        given = {
            "folder": str(spool.folder),
            "uri": store.uri,
            "parent": parent,
            "environment": {
                **QUIET_ENVIRONMENT,
                **{key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")},
            },
        }
        while (process := self._take()) is not None:
            with contextlib.suppress(OSError):
                instruct(process, given)
                return process
        process = start_module(
            _MODULE, {}, output=spool.folder / "sender.log", environment=QUIET_ENVIRONMENT
        )
        instruct(process, given)
        return process

    def _take(self) -> subprocess.Popen[bytes] | None:
        """Return a living process that has nothing to do."""
        while self._ready:
            process = self._ready.pop(0)
            if process.poll() is None:
                return process
        for place, (process, spool) in enumerate(self._staying):
            # What says of whom a spool is goes as soon as it is removed, the folder last.
            if process.poll() is None and not (spool.folder / "meta.json").exists():
                del self._staying[place]
                return process
        return None

    def end(self, process: subprocess.Popen[bytes], spool: Spool) -> None:
        """Let a process finish a run that has ended; it stays for another one where wanted."""
        if process.poll() is not None:
            self.release(process)
        elif self._stay:
            self._staying.append((process, spool))
            if len(self._staying) > _MOST_STAYING:  # a store that does not answer holds them up
                self.release(self._staying.pop(0)[0])
        elif process not in self._outliving:
            self._outliving.append(process)

    def release(self, process: subprocess.Popen[bytes]) -> None:
        """Tell a process that nothing follows."""
        self._forget_ended()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if process.poll() is None:  # held, for Python warns of a forgotten living process
            self._outliving.append(process)

    def _forget_ended(self) -> None:
        for process in [each for each in self._outliving if each.poll() is not None]:
            self._outliving.remove(process)
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def defer(self, run: Deferred) -> None:
        """Remember a run that ended, to wait for it when all have."""
        self._deferred = [each for each in self._deferred if not each.is_settled]
        self._deferred.append(run)

    @contextmanager
    def staying(self, *, defers: bool) -> Iterator[None]:
        """Keep processes from run to run within the block.

        Parameters
        ----------
        defers
            Let no run wait for its sending; all do at the end of the block, within bounds.
        """
        before = self._stay, self.defers
        self._stay, self.defers = True, defers or self.defers
        try:
            yield
        finally:
            self._stay, self.defers = before
            if not self._stay:
                self._settle()

    @property
    def stays(self) -> bool:
        """Whether processes are kept from run to run."""
        return self._stay

    def _settle(self) -> None:
        end = time.monotonic() + _SETTLE_SECONDS
        # Every one is asked, so that each says where it stays.
        all_sent = all([run.settle(max(0.0, end - time.monotonic())) for run in self._deferred])
        self._deferred.clear()
        staying = list(self._staying)
        self._staying.clear()
        for process, _ in staying:
            self.release(process)
        for process, spool in staying if all_sent else []:
            await_removal(spool, process)

    def _release_all(self) -> None:
        for process in self._ready:  # has made nothing
            process.kill()
            process.communicate()
        for process, _ in self._staying:
            self.release(process)
        for process in self._outliving:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            if process.poll() is None:
                process.returncode = 0  # let go on purpose: Python has nothing to warn of


SENDERS = Senders()
"""This process's own."""
