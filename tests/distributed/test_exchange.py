"""Blocks between real processes over gloo, and one of them killed or stopped in between."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eigenexp.distributed.exchange import PATIENCE, Exchange
from eigenexp.distributed.ranks import RankLostError

# One process imports all of it once; the ranks are its forks.
STARTING = multiprocessing.get_context("forkserver")
STARTING.set_forkserver_preload([__name__])


def meet(rank: int, size: int, place: Path, patience: timedelta) -> Exchange:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
    here: Any = SimpleNamespace(global_rank=rank, world_size=size)
    return Exchange(here, "start again", patience)


def blocks(rank: int, size: int, exchange: Exchange, tell: Connection) -> None:
    own = torch.full((2, 5), float(rank)).mT  # not contiguous
    mean = exchange.mean(own)
    # Seven columns, three a process: the last one has one of its own.
    whole = torch.arange(21.0).reshape(3, 7)
    gathered = exchange.gather_columns(whole[:, 3 * rank : 3 * rank + 3], 3)
    tell.send((mean.tolist(), own.tolist(), gathered[:, :7].equal(whole)))
    exchange.close()
    dist.destroy_process_group()


def turns(rank: int, size: int, exchange: Exchange, tell: Connection) -> None:
    own = torch.ones(10, 1)
    for turn in range(10_000_000):
        try:
            exchange.mean(own)
        except RankLostError as error:
            tell.send(str(error))
            break
        if turn == 3:
            tell.send("at work")
    exchange.close()


def run(
    what: Callable[..., None], rank: int, size: int, place: Path, patience: timedelta, tell: Any
) -> None:
    what(rank, size, meet(rank, size, place, patience), tell)


class Ranks:
    """Processes at the same work, and what they say."""

    def __init__(self, what: Callable[..., None], size: int, folder: Path, patience: Any) -> None:
        self.processes: list[BaseProcess] = []
        self.ears: list[Connection] = []
        for rank in range(size):
            ear, mouth = STARTING.Pipe(duplex=False)
            arguments = (what, rank, size, folder / "meeting", patience, mouth)
            process = STARTING.Process(target=run, args=arguments, daemon=True)
            process.start()
            mouth.close()
            self.processes.append(process)
            self.ears.append(ear)

    def hear(self, rank: int) -> Any:
        assert self.ears[rank].poll(120), f"rank {rank} says nothing"
        return self.ears[rank].recv()

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid or 0, number)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    started: list[Ranks] = []

    def start(what: Callable[..., None], size: int, patience: timedelta = PATIENCE) -> Ranks:
        started.append(Ranks(what, size, tmp_path, patience))
        return started[-1]

    yield start
    for each in started:
        for process in each.processes:
            process.kill()
            process.join()


def test_blocks_reach_all_processes_and_arguments_stay(ranks: Callable[..., Ranks]) -> None:
    three = ranks(blocks, 3)
    for rank in range(3):
        mean, own, is_whole = three.hear(rank)
        assert mean == [[1.0, 1.0]] * 5
        assert own == [[float(rank)] * 2] * 5
        assert is_whole


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_noticed_at_once(victim: int, ranks: Callable[..., Ranks]) -> None:
    both = ranks(turns, 2)
    assert {both.hear(rank) for rank in (0, 1)} == {"at work"}
    began = time.monotonic()
    both.signal(victim, signal.SIGKILL)
    told = both.hear(1 - victim)
    assert time.monotonic() - began < 10  # not PATIENCE
    assert told.startswith(f"rank {1 - victim}: expected 2 processes at work, lost one")
    assert told.endswith("start again")


def test_a_silent_process_is_given_up_after_the_patience(ranks: Callable[..., Ranks]) -> None:
    both = ranks(turns, 2, timedelta(seconds=2))
    assert {both.hear(rank) for rank in (0, 1)} == {"at work"}
    began = time.monotonic()
    both.signal(1, signal.SIGSTOP)
    assert "lost one" in both.hear(0)
    assert 1.5 < time.monotonic() - began < 20


def test_one_process_exchanges_with_nobody() -> None:
    alone: Any = SimpleNamespace(global_rank=0, world_size=1)
    exchange = Exchange(alone, "")
    own = torch.rand(4, 3)
    assert exchange.mean(own) is own
    assert torch.equal(exchange.gather_columns(own, 3), own)
    exchange.close()
