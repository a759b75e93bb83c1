"""Sends a spool to the tracking store, in a process of its own.

``python -m eigenexp.tracking.sender SPOOL_FOLDER PARENT_PID`` lives beside a run: it shares no
interpreter lock with the solve, imports MLflow while the solve linearises the model, and outlives a
killed run long enough to deliver what it had logged and to mark it FAILED.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.spool import Spool
from eigenexp.tracking.store import one_line

__all__ = ["main", "run_sender"]

log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0


def run_sender(folder: Path, parent: int) -> None:
    """Deliver a spool until its writer has ended, or is dead and the time of grace is over."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock", timeout=GRACE_SECONDS * 2)
    try:
        lock.acquire()
    except Timeout:
        return
    try:
        _serve(Sender(Spool(folder)), parent)
    finally:
        lock.release()


def _serve(sender: Sender, parent: int) -> None:
    pause, died = 0.05, None
    failures = 0
    while True:
        orphaned = os.getppid() != parent
        if orphaned and died is None:
            died = time.monotonic()
        try:
            moved = sender.step()
            failures = 0
        except Exception as error:
            log.warning("%s", one_line(error))
            failures += 1
            sender.fail(error)
            moved = False
        drained = failures == 0 and not moved and sender.is_drained
        if drained and sender.state.ended:
            with contextlib.suppress(Exception):  # ended without telling how
                sender.mark_dead()
            if sender.spool.folder.exists() and not sender.state.rejected:
                sender.spool.remove()
            return
        if orphaned and died is not None:
            if drained and sender.state.session.get("pid") == parent:
                with contextlib.suppress(Exception):
                    sender.mark_dead()
            if drained or time.monotonic() - died > GRACE_SECONDS:
                return
        if moved:
            pause = 0.05
        elif failures:
            pause = min(0.5 * 2.0 ** min(failures, 6), 15.0)
        else:
            pause = min(pause * 2, 0.5)
        _sleep(pause, parent if not orphaned else None)


def _sleep(seconds: float, parent: int | None) -> None:
    """Sleep, but wake when the parent goes."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if parent is not None and os.getppid() != parent:
            return
        time.sleep(min(left, 0.25))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process; its messages go to the spool's ``sender.log``."""
    folder, parent = arguments or sys.argv[1:3]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # meant for the solve; we end when it has ended
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    run_sender(Path(folder), int(parent))


if __name__ == "__main__":
    main()
