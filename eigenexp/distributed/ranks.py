"""How processes agree, and notice that one of them is gone."""

from __future__ import annotations

import atexit
import functools
import os
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import lightning as L
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from eigenexp.errors import EigenexpError

__all__ = [
    "RankLostError",
    "agree",
    "first_rank_only",
    "gather",
    "in_all_processes",
    "is_first_rank",
    "leave_at_exit",
    "lost",
    "together",
]

T = TypeVar("T")
E = TypeVar("E", bound=EigenexpError)
P = ParamSpec("P")

# How the back ends of torch.distributed say it; they raise plain RuntimeErrors.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out waiting", re.I)


class RankLostError(EigenexpError, RuntimeError):
    """Another process of the run died or does not answer."""


def is_first_rank() -> bool:
    """Whether this process speaks for all, known also before they have met."""
    # Before Lightning knows, the first process of every node takes itself for the first of all.
    node = os.environ.get("NODE_RANK", "0")
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0 and node in ("", "0")


def first_rank_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """Let a function do nothing, and return ``None``, in all processes but the first."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return function(*args, **kwargs) if is_first_rank() else None

    return called


def in_all_processes(error: E) -> E:
    """Mark an error that every process raises: the first one tells it, and all leave in order."""
    leave_at_exit()
    error.in_all_processes = True
    return error


def leave_at_exit() -> None:
    """Let this process leave the others when it exits, after a fit that ended in order for all.

    Where nobody does, threads of gloo that let go of a collective's tensors while the interpreter
    is shutting down abort the process: a few in a hundred runs end with code 134.
    """
    global leaving
    if not leaving and dist.is_available() and dist.is_initialized():
        leaving = True
        atexit.register(_leave)


leaving = False
"""Whether this process leaves the others when it exits."""


def _leave() -> None:
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def together(trainer: L.Trainer, exchange: Callable[[], T], advice: str) -> T:
    """Return what ``exchange``, in which all processes take part, gives.

    Raises
    ------
    RankLostError
        When another process is gone; ``advice`` says how to go on.
    """
    try:
        return exchange()
    except RuntimeError as error:
        if trainer.world_size == 1 or not _LOST.search(" ".join(str(error).split())):
            raise
        raise lost(trainer, error, advice) from error


def lost(trainer: L.Trainer, error: Exception, advice: str) -> RankLostError:
    """Return the error that says which process misses another one, and how to go on."""
    text = " ".join(str(error).split())
    return RankLostError(
        f"rank {trainer.global_rank}: expected {trainer.world_size} processes at work, lost "
        f"one ({text[:150]}); {advice}"
    )


def agree(trainer: L.Trainer, here: bool, *, all_ranks: bool, advice: str) -> bool:
    """Return whether ``here`` holds on all processes, or on any of them.

    Raises
    ------
    RankLostError
        When another process is gone.
    """
    if trainer.world_size == 1:
        return here

    def exchange() -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(here, all=all_ranks))

    return together(trainer, exchange, advice)


def gather(trainer: L.Trainer, own: Any, advice: str) -> list[Any]:
    """Return what each of several processes passes, in the order of ranks.

    Raises
    ------
    RankLostError
        When another process is gone.
    """
    everything = [own] * trainer.world_size
    together(trainer, lambda: dist.all_gather_object(everything, own), advice)
    return everything
