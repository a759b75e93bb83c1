"""How processes agree, exchange blocks, and notice that one of them is gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from eigenexp.errors import EigenexpError

__all__ = ["RankLostError", "agree", "gather_columns", "is_first_rank", "mean_of_ranks", "together"]

T = TypeVar("T")

# How the back ends of torch.distributed say it; they raise plain RuntimeErrors.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out waiting", re.I)


class RankLostError(EigenexpError, RuntimeError):
    """Another process of the run died or does not answer."""


def is_first_rank() -> bool:
    """Whether this process speaks for all, known also before they have met."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


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
        text = " ".join(str(error).split())
        if trainer.world_size == 1 or not _LOST.search(text):
            raise
        raise RankLostError(
            f"rank {trainer.global_rank}: expected {trainer.world_size} processes at work, lost "
            f"one ({text[:150]}); {advice}"
        ) from error


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


def gather_columns(trainer: L.Trainer, own: Tensor, share: int, advice: str) -> Tensor:
    """Return the columns of all processes side by side, each process's padded to ``share``.

    Parameters
    ----------
    own
        ``(n, b)`` with b ≤ ``share``, the same n everywhere.

    Raises
    ------
    RankLostError
        When another process is gone.
    """
    ranks, length = trainer.world_size, len(own)
    # As rows: each process's part is then one piece of the result, and nothing is copied twice.
    rows = own.new_zeros(share, length)
    rows[: own.shape[1]] = own.mT
    gathered = own.new_empty(ranks * share, length)
    parts = list(torch.split(gathered, share))
    together(trainer, lambda: torch.distributed.all_gather(parts, rows), advice)
    return gathered.mT


def mean_of_ranks(trainer: L.Trainer, own: Tensor, advice: str) -> Tensor:
    """Return the mean of ``own`` over all processes; it may be overwritten.

    Raises
    ------
    RankLostError
        When another process is gone.
    """
    if trainer.world_size == 1:
        return own
    own = own.contiguous()
    together(trainer, lambda: torch.distributed.all_reduce(own), advice)
    return own.div_(trainer.world_size)
