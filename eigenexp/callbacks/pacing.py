"""Keeps what costs time, as saving does, to a small share of a run's time."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator

from eigenexp.errors import InputError

__all__ = ["Pace"]


class Pace:
    """Says when a costly act may be done again, by what it cost the last times.

    Only the clock decides, so it may decide nothing that changes a result.

    Parameters
    ----------
    share
        Largest part of the wall time the act may take, in (0, 1]; ``None`` for no limit.
    name
        The setting's name, for the error.
    clock
        Seconds since whenever.
    """

    def __init__(
        self,
        share: float | None,
        name: str = "share",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if share is not None and not 0 < share <= 1:
            raise InputError(f"{name}: expected a part of the time in (0, 1] or None, got {share}")
        self.share, self._clock = share, clock
        # The median of three: one hiccup of a disk does not space out what follows.
        self._costs: deque[float] = deque(maxlen=3)
        self._began = 0.0

    @property
    def interval(self) -> float:
        """Seconds from one act to the next, at the least."""
        if self.share is None or not self._costs:
            return 0.0
        return statistics.median(self._costs) / self.share

    @property
    def is_ready(self) -> bool:
        """Whether the act may be done now."""
        return self._clock() - self._began >= self.interval

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Take the time of one act."""
        self._began = self._clock()
        try:
            yield
        finally:
            self._costs.append(self._clock() - self._began)
