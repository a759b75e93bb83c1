"""How processes agree, and notice that one of them is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import lightning as L

from eigenexp.errors import EigenexpError

__all__ = ["RankLostError", "agree", "together"]

T = TypeVar("T")


class RankLostError(EigenexpError, RuntimeError):
    """Another process of the run died or does not answer."""


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
        if trainer.world_size == 1:
            raise
        text = " ".join(str(error).split())[:150]
        raise RankLostError(
            f"rank {trainer.global_rank}: expected {trainer.world_size} processes at work, lost "
            f"one ({text}); {advice}"
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
