"""Sends a run's spool to the tracking store, in a process of its own.

It outlives a killed run long enough to deliver what that had logged and to mark it FAILED.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from eigenexp.errors import TrackingError
from eigenexp.storage.processes import module_arguments, start_module
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.environment import QUIET_ENVIRONMENT
from eigenexp.tracking.spool import Spool
from eigenexp.tracking.store import Store
from eigenexp.tracking.watching import beside_parent, deliver

__all__ = ["SpoolWatch", "main", "start_sender"]

GRACE_SECONDS = 60.0


def start_sender(spool: Spool, store: Store, parent: int) -> subprocess.Popen[bytes]:
    """Start the process; the address with its password goes by the environment, not in ``ps``.

    Raises
    ------
    OSError
        When there is no process to be had.
    """
    return start_module(
        "eigenexp.tracking.sender",
        {"folder": str(spool.folder), "uri": store.uri, "parent": parent},
        output=spool.folder / "sender.log",
        environment=QUIET_ENVIRONMENT,
    )


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
        return parent_is_gone


def main() -> None:
    """Entry point of the process; its messages go to the spool's ``sender.log``."""
    given = module_arguments()
    folder = Path(given["folder"])
    with beside_parent(folder / "lock", GRACE_SECONDS * 2) as gone:
        if gone is None:
            return
        spool = Spool(folder)
        sender = Sender(spool, Store(spool.meta["root"], given["uri"]))
        with contextlib.suppress(TrackingError):
            deliver(SpoolWatch(sender, int(given["parent"])), gone, GRACE_SECONDS)


if __name__ == "__main__":
    main()
