"""The processes that take every step of one solve together: what they exchange, and agree on."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import lightning as L
import torch.distributed as dist
from torch import Tensor

from eigenexp.distributed.links import Links, LostError
from eigenexp.distributed.ranks import gather, lost, together

__all__ = ["Team", "Topic", "any_process", "talks"]

# Each sends its part to every other one: with more of them a collective sends less.
_MOST_LINKED = 8


class Topic(enum.IntFlag):
    """What a process can say to the others beside its part of a block."""

    TERMINATED = enum.auto()
    """Lightning has received SIGTERM."""
    SAVE = enum.auto()
    """A checkpoint is due."""
    SIGINT = enum.auto()
    SIGTERM = enum.auto()
    SIGUSR1 = enum.auto()


class Team:
    """Exchanges blocks between the processes of a fit, and what each has to say beside them.

    Processes of one machine are linked by sockets; others, and accelerators, use collectives.

    Parameters
    ----------
    trainer
        Whose processes have met.
    advice
        How to go on when one of them is lost.

    Attributes
    ----------
    talks
        Whether every step is an exchange through sockets, so that what is said reaches the others
        at no cost. Set by whoever takes the steps.
    """

    def __init__(self, trainer: L.Trainer, advice: str) -> None:
        self._trainer, self._advice = trainer, advice
        self._rank, self._size = trainer.global_rank, trainer.world_size
        self._links: Links | None = None
        if 1 < self._size <= _MOST_LINKED and dist.get_backend() == "gloo":
            self._links = Links.connect(
                self._rank, self._size, lambda own: gather(trainer, own, advice)
            )
        self.talks = False
        self._saying = self._heard = Topic(0)
        self._is_terminated = False

    @property
    def is_linked(self) -> bool:
        """Whether there are sockets between the processes."""
        return self._links is not None

    def close(self) -> None:
        """Leave: the others, should they still wait for something, are told."""
        self.talks = False
        if self._links is not None:
            self._links.close()
            self._links = None

    # -- blocks ----------------------------------------------------------------------------------

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
        rows = gathered[self._rank]
        rows[: own.shape[1]] = own.mT
        rows[own.shape[1] :] = 0
        self._exchange(gathered.unbind())
        return gathered.view(-1, length).mT

    def mean(self, own: Tensor) -> Tensor:
        """Return the mean of ``own`` over all processes; it may be overwritten.

        Raises
        ------
        RankLostError
            When another process is gone.
        """
        if self._size == 1:
            return own
        own = own.contiguous()
        if self._links is None:
            together(self._trainer, lambda: dist.all_reduce(own), self._advice)
            return own.div_(self._size)
        parts = list(own.new_empty(self._size, *own.shape).unbind())
        parts[self._rank] = own
        self._exchange(parts)
        # In the order of ranks, so that all have the same to the last bit.
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total.div_(self._size)

    def meet(self, like: Tensor) -> None:
        """Exchange nothing but what is said, where a step has no block to exchange.

        Raises
        ------
        RankLostError
            When another process is gone.
        """
        if self.talks:
            self._exchange([like.new_empty(0)] * self._size)

    def _exchange(self, parts: Sequence[Tensor]) -> None:
        """Fill ``parts``, of which this process has its own, with those of all others."""
        if self._links is None:
            own = parts[self._rank]
            together(self._trainer, lambda: dist.all_gather(list(parts), own), self._advice)
            return
        views = [part.numpy().data.cast("B") for part in parts]
        others = {rank: view for rank, view in enumerate(views) if rank != self._rank}
        saying = self._saying | (Topic.TERMINATED if self._is_terminated else Topic(0))
        try:
            notes = self._links.exchange(views[self._rank], others, saying)
        except LostError as error:
            raise lost(self._trainer, error, self._advice) from error
        self._heard = saying
        for note in notes:
            self._heard |= Topic(note)

    # -- what is said ----------------------------------------------------------------------------

    def say(self, topic: Topic, here: bool) -> None:
        """Say, or no longer say, something with the blocks that follow."""
        self._saying = self._saying | topic if here else self._saying & ~topic

    def terminated(self) -> None:
        """Say :attr:`Topic.TERMINATED` from now on; may be called while anything else is done."""
        self._is_terminated = True

    def heard(self, topic: Topic) -> bool:
        """Return whether any process, this one included, said so with the last block."""
        return bool(self._heard & topic)


def talks(module: L.LightningModule) -> bool:
    """Whether the processes hear of each other at every step, at no cost."""
    team = getattr(module, "_team", None)
    return isinstance(team, Team) and team.talks


def any_process(trainer: L.Trainer, module: L.LightningModule, topic: Topic, here: bool) -> bool:
    """Return whether something holds in any process: the same answer in all of them.

    In a team that talks it is what they said with the last block: news takes one step. Once it was
    heard it is no longer said. Elsewhere all processes must ask at the same step.
    """
    if trainer.world_size == 1:
        return here
    team = getattr(module, "_team", None)
    if isinstance(team, Team) and team.talks:
        heard = team.heard(topic)
        team.say(topic, here and not heard)
        return heard
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False))
