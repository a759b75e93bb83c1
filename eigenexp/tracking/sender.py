"""Sends the spools of runs to the tracking store, one after another, in a process of its own.

It outlives a killed run long enough to deliver what that had logged and to mark it FAILED. Which
spool comes next it is told through its standard input: a process of a sweep serves many runs, and
one that is started early has imported MLflow when the run begins.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigenexp.errors import EigenexpError, TrackingError
from eigenexp.storage.processes import (
    ARGUMENTS,
    Instructions,
    be_modest,
    live_beside_parent,
    module_arguments,
)
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.environment import quiet_mlflow
from eigenexp.tracking.spool import Spool
from eigenexp.tracking.store import Store
from eigenexp.tracking.watching import alone, deliver, scrub_messages

__all__ = ["SpoolWatch", "main"]

GRACE_SECONDS = 60.0
_FOR_SENDING = ("mlflow", "mlflow.entities", "filelock", "numpy", "PIL.Image")


class SpoolWatch:
    """A spool that is sent while its writer lives.

    Parameters
    ----------
    sender
        Sends it.
    parent
        Process number of the writer that started this process.
    """

    idle_seconds = 0.5

    def __init__(self, sender: Sender, parent: int) -> None:
        self.sender = sender
        self.parent = parent

    def step(self) -> bool:
        """Send a batch and an upload."""
        return self.sender.step()

    def fail(self, error: BaseException) -> None:
        """Note why, for whoever waits; end where MLflow goes on with a file that is gone.

        The writer starts another process when it saves, which makes the run anew.

        Raises
        ------
        BaseException
            The error itself, in that case.
        """
        self.sender.fail(error)
        if self.sender.store.was_replaced:
            raise error

    def is_over(self, parent_is_gone: bool) -> bool:
        """Whether the writer said so or is dead; a run that did not tell how it ended is FAILED."""
        sender = self.sender
        if not sender.is_drained:
            return False
        if sender.state.ended:
            with contextlib.suppress(Exception):  # `eigenexp sync` marks it
                sender.finish()
            return True
        if parent_is_gone and sender.state.session.get("pid") == self.parent:
            with contextlib.suppress(Exception):
                sender.mark_dead()
        return parent_is_gone and not sender.state.uploads


class _Stores:
    """The stores that this process has opened: MLflow keeps them open, and so do we."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, str], Store] = {}

    def open(self, root: str, uri: str) -> Store:
        if (root, uri) not in self._opened:
            self._opened[root, uri] = Store(root, uri)
        return self._opened[root, uri]

    @property
    def were_replaced(self) -> bool:
        return any(store.was_replaced for store in self._opened.values())


def main() -> None:
    """Entry point of the process; its messages go to the spool's ``sender.log``."""
    given = module_arguments()
    ready = given.get("ready")
    live_beside_parent(modest=ready is None)
    scrub_messages()
    stores = _Stores()
    if ready is not None:
        _get_ready(stores, ready)
        be_modest()
    told = Instructions()
    first = given.get("first")
    if first is not None and not _serve(first, stores, told.ended):
        return
    for each in told:
        if stores.were_replaced:
            # MLflow would go on with the files that it has open: only a new process sees the new.
            os.environ[ARGUMENTS] = json.dumps({"first": each})
            os.execv(sys.executable, [sys.executable, "-m", "eigenexp.tracking.sender"])
        if not _serve(each, stores, told.ended):
            return


def _get_ready(stores: _Stores, place: Mapping[str, Any]) -> None:
    """Import what sending takes, and open a database that is there; make nothing."""
    quiet_mlflow()
    for name in _FOR_SENDING:
        importlib.import_module(name)
    with contextlib.suppress(EigenexpError, OSError, ValueError):  # told where it is needed
        store = stores.open(place["root"], place["uri"])
        if store.is_local and store.database.is_file():
            store.client.get_experiment("0")


def _serve(given: Mapping[str, Any], stores: _Stores, ended: threading.Event) -> bool:
    """Send one spool until it is over; return whether this process is good for another one."""
    folder = Path(given["folder"])
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(given["environment"])
    with contextlib.suppress(OSError):
        log = os.open(folder / "sender.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
    with alone(folder / "lock", GRACE_SECONDS * 2) as is_alone, contextlib.suppress(TrackingError):
        if not is_alone:
            return False
        spool = Spool(folder)
        sender = Sender(spool, stores.open(str(spool.meta["root"]), given["uri"]))
        return deliver(SpoolWatch(sender, int(given["parent"])), ended, GRACE_SECONDS)
    return False


if __name__ == "__main__":
    main()
