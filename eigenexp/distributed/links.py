"""Sockets between the processes of one machine, for what they exchange at every step.

A collective of torch.distributed passes through two threads more in each process. Where every core
computes, the scheduler lets these wait for milliseconds; processes that write to each other's
sockets from the threads that compute wait for no other thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Links", "LostError"]

# Bytes that follow, and a number beside them.
_HEADER = struct.Struct("<qq")
_RANK = struct.Struct("<q")
# Seconds that a process may take to answer at the start; all have just met then.
_CONNECTING = 20.0


class LostError(ConnectionError):
    """A process at another end is gone, or has not answered for long."""


class Links:
    """A socket to each of the other processes of a machine.

    Parameters
    ----------
    sockets
        By the number of the process at the other end.
    patience
        Seconds to wait for a process that does not answer: more than a step of it takes.
    """

    def __init__(self, sockets: dict[int, socket.socket], patience: float = 1800.0) -> None:
        self._sockets = sockets
        self._patience = patience
        for each in sockets.values():
            each.setblocking(False)

    @classmethod
    def connect(cls, rank: int, size: int, gather: Callable[[Any], list[Any]]) -> Links | None:
        """Connect ``size`` processes, of which this is ``rank``; ``None`` where they cannot.

        They cannot where they are on several machines, or where there are no Unix sockets.

        Parameters
        ----------
        gather
            Returns what each process passes to it, in the order of processes.
        """
        sockets: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as stack:
            try:
                listener, place = _listen(stack, size)
            except (OSError, AttributeError):
                place = None
            places = gather(place)
            works = None not in places
            if works:
                try:
                    _meet(rank, places, listener, sockets)
                except (OSError, struct.error):
                    works = False
            # A folder of one machine is missing on another: then all of them do without.
            if not all(gather(works)):
                for each in sockets.values():
                    each.close()
                return None
        return cls(sockets)

    def close(self) -> None:
        """Close this end of all sockets, by which the others know that nothing more will come."""
        for each in self._sockets.values():
            each.close()
        self._sockets = {}

    def exchange(self, own: memoryview, into: Mapping[int, memoryview], note: int) -> list[int]:
        """Send ``own`` and ``note`` to every process, and receive theirs.

        Parameters
        ----------
        own
            The bytes to send.
        into
            By process, where its bytes go; it must send as many.
        note
            A number to send with them.

        Returns
        -------
        list
            The notes of the others.

        Raises
        ------
        LostError
            When a process is gone, or silent for ``patience`` seconds.
        ValueError
            When a process sends another number of bytes than fit.
        """
        head = memoryview(_HEADER.pack(len(own), note))
        ends = [
            _End(each, process, [head, own], into[process])
            for process, each in self._sockets.items()
        ]
        waiting = ends
        while waiting := [end for end in waiting if end.move()]:
            poll = select.poll()
            for end in waiting:
                poll.register(end.socket, end.wants)
            if not poll.poll(self._patience * 1000):
                raise LostError(f"no answer for {self._patience:.0f} s")
        return [end.note for end in ends]


class _End:
    """What is still to be sent to one process, and received from it."""

    def __init__(
        self, to: socket.socket, process: int, outgoing: list[memoryview], into: memoryview
    ) -> None:
        self.socket = to
        self.note = 0
        self._process = process
        self._outgoing = outgoing
        self._head = bytearray(_HEADER.size)
        self._into = into
        self._missing = [memoryview(self._head), into]

    @property
    def wants(self) -> int:
        """What to wait for."""
        return (select.POLLOUT if self._outgoing else 0) | (select.POLLIN if self._missing else 0)

    def move(self) -> bool:
        """Send and receive what can be at once; return whether something is left."""
        try:
            self._send()
            self._receive()
        except OSError as error:
            raise LostError(f"process {self._process} is gone: {error}") from error
        return bool(self._outgoing or self._missing)

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._outgoing:
                _advance(self._outgoing, self.socket.sendmsg(self._outgoing))

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._missing:
                count = self.socket.recv_into(self._missing[0])
                if count == 0:
                    raise ConnectionResetError("its end was closed")
                in_head = len(self._missing) == 2
                _advance(self._missing, count)
                if in_head and len(self._missing) < 2:
                    self._read_head()

    def _read_head(self) -> None:
        length, note = _HEADER.unpack(self._head)
        if length != len(self._into):
            raise ValueError(
                f"expected {len(self._into)} bytes of process {self._process}, got {length}"
            )
        self.note = note


def _advance(views: list[memoryview], count: int) -> None:
    """Drop the first ``count`` bytes of ``views``, and empty ones."""
    while views and count >= len(views[0]):
        count -= len(views.pop(0))
    if count:
        views[0] = views[0][count:]


def _listen(stack: contextlib.ExitStack, size: int) -> tuple[socket.socket, str]:
    """Return a socket to connect to, in a folder that only this user may enter, and its path."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="eigenexp-"))
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    path = str(Path(folder) / "socket")
    listener.bind(path)
    listener.listen(size)
    listener.settimeout(_CONNECTING)
    return listener, path


def _meet(
    rank: int, places: list[str], listener: socket.socket, sockets: dict[int, socket.socket]
) -> None:
    """Connect to the processes before this one, and wait for those after it."""
    for other in range(rank):
        sockets[other] = to = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        to.settimeout(_CONNECTING)
        to.connect(places[other])
        to.sendall(_RANK.pack(rank))
    while len(sockets) < len(places) - 1:
        to, _ = listener.accept()
        with contextlib.ExitStack() as stack:
            stack.callback(to.close)
            to.settimeout(_CONNECTING)
            (other,) = _RANK.unpack(to.recv(_RANK.size, socket.MSG_WAITALL))
            stack.pop_all()
        sockets[other] = to
