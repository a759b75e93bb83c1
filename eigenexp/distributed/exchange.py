"""What the processes of one solve exchange at every turn: blocks, by torch.distributed alone."""

from __future__ import annotations

from datetime import timedelta

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from eigenexp.distributed.ranks import together

__all__ = ["PATIENCE", "Exchange"]

PATIENCE = timedelta(minutes=5)
"""How long a turn waits for a process that is silent but not known to be gone."""


class Exchange:
    """Exchanges blocks between the processes of a fit.

    One that dies is noticed by the others when they next exchange: at once over gloo, whose
    connections to it are reset. One that is only silent (its machine lost power) is given up after
    ``patience``.

    Parameters
    ----------
    trainer
        Whose processes have met.
    advice
        How to go on when one of them is lost.
    patience
        More than one process may be late at a turn.
    """

    def __init__(self, trainer: L.Trainer, advice: str, patience: timedelta = PATIENCE) -> None:
        self._trainer, self._advice = trainer, advice
        self._rank, self._size = trainer.global_rank, trainer.world_size
        # A group of its own, for its time limit; Lightning's waits for half an hour.
        self._group = dist.new_group(timeout=patience) if self._size > 1 else None

    def close(self) -> None:
        """Leave: the others, should they still wait for something, are told."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def gather_columns(self, own: Tensor, share: int) -> Tensor:
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
        length = len(own)
        # As rows: each process's part is then one piece of the result, and nothing is copied twice.
        gathered = own.new_empty(self._size, share, length)
        parts = list(gathered.unbind())
        rows = parts[self._rank]
        rows[: own.shape[1]] = own.mT
        rows[own.shape[1] :] = 0
        if self._size > 1:
            together(
                self._trainer,
                lambda: dist.all_gather(parts, rows, group=self._group),
                self._advice,
            )
        return gathered.view(-1, length).mT

    def mean(self, own: Tensor) -> Tensor:
        """Return the mean of ``own`` over all processes, the same bits in all; ``own`` is kept.

        Raises
        ------
        RankLostError
            When another process is gone.
        """
        if self._size == 1:
            return own
        total = own.clone(memory_format=torch.contiguous_format)
        together(self._trainer, lambda: dist.all_reduce(total, group=self._group), self._advice)
        return total.div_(self._size)
