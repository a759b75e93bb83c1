"""Sockets between processes: what is sent arrives, and what goes wrong is told, not waited for."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenexp.distributed.links import Links, LostError

MANY = 3_000_000  # bytes: no socket buffers that much


class Meeting:
    """What collectives are among processes, among threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


def together(size: int, work: Callable[[int, Links | None], Any]) -> list[Any]:
    """Connect ``size`` threads, as if they were processes, and let each do ``work``."""
    meeting = Meeting(size)

    def run(rank: int) -> Any:
        links = Links.connect(rank, size, lambda value: meeting.gather(rank, value))
        try:
            return work(rank, links)
        finally:
            if links is not None:
                links.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def exchange(links: Links | None, rank: int, size: int, count: int, note: int) -> tuple[Any, Any]:
    assert links is not None
    blocks = torch.full((size, count), -1, dtype=torch.uint8)
    blocks[rank] = rank
    views = {i: block.numpy().data for i, block in enumerate(blocks)}
    notes = links.exchange(views.pop(rank), views, note)
    return blocks[:, [0, -1]].tolist() if count else None, sorted(notes)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4096, MANY])
def test_every_process_receives_every_block_and_note(size: int, count: int) -> None:
    def work(rank: int, links: Links | None) -> Any:
        return [exchange(links, rank, size, count, 10 * turn + rank) for turn in range(3)]

    for rank, turns in enumerate(together(size, work)):
        for turn, (blocks, notes) in enumerate(turns):
            assert blocks == (None if count == 0 else [[i, i] for i in range(size)])
            assert notes == [10 * turn + i for i in range(size) if i != rank]


def test_one_that_leaves_is_missed_at_once() -> None:
    def work(rank: int, links: Links | None) -> Any:
        assert links is not None
        if rank == 1:
            return None
        with pytest.raises(LostError, match="process 1 is gone"):
            exchange(links, rank, 2, MANY, 0)
        return "missed"

    assert together(2, work) == ["missed", None]


def test_one_that_is_silent_is_not_waited_for_for_ever() -> None:
    over = threading.Event()

    def work(rank: int, links: Links | None) -> Any:
        assert links is not None
        if rank == 1:
            over.wait(30)
            return None
        links._patience = 0.2
        with pytest.raises(LostError, match="no answer"):
            exchange(links, rank, 2, 10, 0)
        over.set()
        return "told"

    assert together(2, work) == ["told", None]


def test_blocks_of_different_sizes_are_refused() -> None:
    def work(rank: int, links: Links | None) -> Any:
        with pytest.raises(ValueError, match=r"expected \d+ bytes of process"):
            exchange(links, rank, 2, 10 + rank, 0)
        return True

    assert together(2, work) == [True, True]


@pytest.mark.parametrize("reason", ["no sockets", "other machine"])
def test_where_one_cannot_connect_none_is_linked(
    reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if reason == "no sockets":
        monkeypatch.delattr(socket, "AF_UNIX")
    meeting = Meeting(2)

    def run(rank: int) -> Links | None:
        def gather(value: Any) -> list[Any]:
            if reason == "other machine" and rank == 0 and isinstance(value, str):
                value = str(tmp_path / "nowhere")
            return meeting.gather(rank, value)

        return Links.connect(rank, 2, gather)

    monkeypatch.setattr("eigenexp.distributed.links._CONNECTING", 0.5)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [None, None]


def test_nothing_is_left_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work(rank: int, links: Links | None) -> Any:
        return exchange(links, rank, 2, 10, 0)

    together(2, work)
    assert list(tmp_path.iterdir()) == []
