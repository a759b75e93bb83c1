"""The one loop of processes that send beside a solve: try, wait, try again, end after the parent.

Such a process shares no interpreter lock with the solve, and imports MLflow while the solve
linearises the model. It ends when all is sent and the parent said so, or is gone; a store that does
not answer then has a time of grace.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from eigenexp.storage.processes import live_beside_parent, when_parent_closes
from eigenexp.tracking.texts import ScrubbedFormatter, one_line

__all__ = ["Watched", "alone", "beside_parent", "deliver", "scrub_messages"]

log = logging.getLogger(__name__)

_SHORTEST = 0.05
_LONGEST_FAILING = 15.0


class Watched(Protocol):
    """What is looked at for something to send."""

    @property
    def idle_seconds(self) -> float:
        """The longest pause between two looks."""
        ...

    def step(self) -> bool:
        """Send some; return whether there was anything. May raise, and be tried again."""
        ...

    def fail(self, error: BaseException) -> None:
        """Note why sending fails."""
        ...

    def is_over(self, parent_is_gone: bool) -> bool:
        """Whether nothing will follow, asked when a step found nothing to send."""
        ...


def deliver(watched: Watched, parent_gone: threading.Event, grace_seconds: float) -> bool:
    """Send until it is over; return whether it was before the time of grace was.

    Parameters
    ----------
    watched
        What is sent.
    parent_gone
        Set when the parent has ended.
    grace_seconds
        How long a store may fail, or a spool lack its end, after that.
    """
    pause, failures, gone_at = _SHORTEST, 0, None
    while True:
        is_gone = parent_gone.is_set()  # before the look: what it left behind is seen by it
        if is_gone and gone_at is None:
            gone_at = time.monotonic()
        try:
            moved = watched.step()
            failures = 0
        except Exception as error:
            log.warning("%s", one_line(error))
            failures, moved = failures + 1, False
            watched.fail(error)
        if not failures and not moved and watched.is_over(is_gone):
            return True
        if gone_at is not None and time.monotonic() - gone_at > grace_seconds:
            return False
        if moved:
            pause = _SHORTEST
        elif failures:
            pause = min(0.5 * 2.0 ** min(failures, 6), _LONGEST_FAILING)
        else:
            pause = min(pause * 2, watched.idle_seconds)
        if is_gone:
            time.sleep(min(pause, grace_seconds))
        else:
            parent_gone.wait(pause)


@contextmanager
def beside_parent(lock: Path, timeout: float) -> Iterator[threading.Event | None]:
    """Begin a process that sends, alone with its lock; yield the event of the parent's end.

    ``None`` where another process holds the lock for too long.
    """
    live_beside_parent()
    scrub_messages()
    gone = threading.Event()
    when_parent_closes(gone.set)
    with alone(lock, timeout) as is_alone:
        yield gone if is_alone else None


def scrub_messages() -> None:
    """Let no password get into what this process says."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(ScrubbedFormatter("%(asctime)s %(name)s: %(message)s"))


@contextmanager
def alone(lock: Path, timeout: float) -> Iterator[bool]:
    """Hold a lock between processes within the block; yield whether it was to be had in time."""
    from filelock import FileLock, Timeout

    held = FileLock(lock, timeout=timeout)
    try:
        held.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()
