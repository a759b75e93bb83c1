"""Start a module of ours as a process, and what such a process does first.

Arguments travel in one environment variable: the argument list of a process is there for every user
of the machine to read, and an address or token in it would be too. Processes that the started one
starts by its own command (Lightning does, one for each device) read the same arguments.

The started process holds the reading end of a pipe as its standard input: that it closes says that
the parent is done, or dead. What is written to it are instructions, a line each, for a process that
stays (:func:`instruct`, :class:`Instructions`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from eigenexp.errors import InputError

__all__ = [
    "ARGUMENTS",
    "STOP_FLAG",
    "STOP_SIGNALS",
    "Instructions",
    "StopFlag",
    "be_modest",
    "instruct",
    "live_beside_parent",
    "module_arguments",
    "passing_signals_to",
    "start_module",
    "when_parent_closes",
]

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""What a run stops on, with a checkpoint."""


class StopFlag:
    """Remembers a signal over many runs in one process, whichever of them hears it first.

    It listens within :meth:`listening`; a handler that a run puts in its place in the meantime
    tells it (:meth:`set`). A second Ctrl-C that finds no run raises ``KeyboardInterrupt``.

    Attributes
    ----------
    received
        The first signal; ``None`` so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._listens = False

    def set(self, number: int) -> None:
        """Say that a signal came; forgotten where nobody listens."""
        if self._listens and self.received is None:
            self.received = number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.set(number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals within the block; in the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self._listens = None, True
        before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            self._listens = False
            for number, handler in before.items():
                signal.signal(number, handler)


STOP_FLAG = StopFlag()
"""The process's own: signals belong to a process."""

ARGUMENTS = "EIGENEXP_ARGUMENTS"
"""Environment variable that holds what a process of ours is given."""
_HOME = Path(__file__).absolute().parents[2]  # where the package lies: it may not be installed


def start_module(
    module: str,
    arguments: Mapping[str, Any],
    *,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` in a session of its own.

    Parameters
    ----------
    module
        Dotted name; its ``main`` calls :func:`module_arguments`.
    arguments
        Plain values, for JSON; secrets may be among them.
    output
        File that takes what the process prints, at its end; ``None``: this process's own output.
    environment
        Variables that are set where this process's environment does not set them.

    Returns
    -------
    subprocess.Popen
        Its ``stdin`` is a pipe: closing it tells the process to end, as the death of this process
        does (:func:`when_parent_closes`).

    Raises
    ------
    OSError
        When there is no process or file to be had.
    """
    paths = [str(_HOME), os.environ.get("PYTHONPATH", "")]
    variables = {
        **(environment or {}),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        ARGUMENTS: json.dumps(dict(arguments)),
    }
    with contextlib.nullcontext() if output is None else output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=variables,
            # Ctrl-C reaches every process of a terminal; what it is to do is the parent's to say.
            start_new_session=True,
        )


def module_arguments() -> dict[str, Any]:
    """Return what :func:`start_module` was given, in the process that it started.

    Raises
    ------
    InputError
        When the process was started by other means.
    """
    try:
        found = json.loads(os.environ[ARGUMENTS])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{ARGUMENTS}: expected the arguments that eigenexp starts this process with, got "
            f"{'none' if isinstance(error, KeyError) else 'no JSON'}; it is not meant to be "
            "started by hand"
        ) from error
    return dict(found)


def when_parent_closes(call: Callable[[], object]) -> None:
    """Call ``call`` once, from a thread, when the parent closes our standard input or dies."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1024):
                pass
        call()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def instruct(process: subprocess.Popen[bytes], arguments: Mapping[str, Any]) -> None:
    """Hand a process that stays what it is to do next; secrets may be among it.

    Raises
    ------
    OSError
        When it has ended.
    """
    if process.stdin is None:
        raise BrokenPipeError("no pipe to the process")
    process.stdin.write(json.dumps(dict(arguments)).encode() + b"\n")
    process.stdin.flush()


class Instructions:
    """What the parent hands on, one after another, until it closes our standard input or dies.

    Attributes
    ----------
    ended
        Set when nothing more follows.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._read: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._hear, name="parent", daemon=True).start()

    def _hear(self) -> None:
        rest = b""
        # Not by sys.stdin: its lock would be held while the interpreter ends.
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(sys.stdin.fileno(), 1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._read.put(json.loads(line))
        self.ended.set()
        self._read.put(None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (given := self._read.get()) is not None:
            yield given


def live_beside_parent(*, modest: bool = True) -> None:
    """Serve a solve from this process: its signals are not ours, its processor time is its own.

    Parameters
    ----------
    modest
        Leave the processor to others from now on; a process that gets ready while its parent does
        can do so later.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if modest:
        be_modest()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")


def be_modest() -> None:
    """Leave the processor to others where they want it."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)


@contextmanager
def passing_signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand signals on to ``process`` within the block, whose end decides; main thread alone."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
