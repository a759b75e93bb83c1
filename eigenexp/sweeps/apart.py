"""Starting a job in a process of its own, and passing signals on to it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import eigenexp

if TYPE_CHECKING:
    from eigenexp.sweeps.job import SweepJob

__all__ = ["run_apart"]

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


def run_apart(job: SweepJob, index: int) -> int:
    """Run one job in a process of its own; return its exit code.

    Signals are passed on: the job saves and ends, and then this returns.
    """
    package = str(Path(eigenexp.__file__).parent.parent)
    paths = [package, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    facts = json.dumps({**dataclasses.asdict(job), "in_process": False})
    process = subprocess.Popen(
        [sys.executable, "-m", "eigenexp.sweeps.worker", facts, str(index)],
        stdin=subprocess.PIPE,
        env=environment,
        # Ctrl-C reaches every process of a terminal: this one passes it on, once.
        start_new_session=True,
    )
    with _passing_signals_to(process):
        return process.wait()


@contextmanager
def _passing_signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
