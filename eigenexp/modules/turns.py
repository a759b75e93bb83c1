"""Turns of a solver in place of batches: what all our modules share on Lightning's side.

Nothing is trained, so optimization is manual: a training step is a turn, and an optimizer that
does nothing is stepped once a turn. Lightning counts its steps: ``global_step``, ``max_steps``,
intervals of callbacks and loggers, and what a checkpoint holds of them, are in turns.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from eigenexp.distributed.ranks import leave_at_exit
from eigenexp.distributed.terminating import SigtermTogether
from eigenexp.errors import InputError
from eigenexp.operators.noise import Gaussian
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Everything
from eigenexp.operators.perturbations.base import perturbations_or_default

__all__ = [
    "PRECISIONS",
    "TurnCounter",
    "TurnModule",
    "Turns",
    "check_trainer",
    "count_on",
    "is_double",
    "operator_settings",
]

PRECISIONS = ("32-true", "64-true", "32", "64")
_OPERATOR_OPTIONS = ("route", "chunk_size", "recompute", "compile", "model_dtype", "noise",
                     "perturbations")  # fmt: skip


def operator_settings(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an operator's options, all of them known ones.

    Raises
    ------
    InputError
        When there is no such option.
    """
    chosen = dict(options or {})
    unknown = sorted(set(chosen) - set(_OPERATOR_OPTIONS))
    if unknown:
        raise InputError(
            f"operator_options: expected {', '.join(_OPERATOR_OPTIONS)}, got {unknown[0]!r}"
        )
    # The default goes: F = JᵀJ, as where nothing is said.
    if noise_or_default(chosen.get("noise"), InputError) == Gaussian():
        chosen.pop("noise", None)
    considered = perturbations_or_default(chosen.get("perturbations"), InputError)
    if isinstance(considered, Everything):
        chosen.pop("perturbations", None)
    return chosen


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse a trainer that would falsify products, or means what there is not.

    Raises
    ------
    InputError
        When its precision is mixed, or it clips or accumulates gradients.
    """
    precision = str(trainer.precision)
    if precision not in PRECISIONS:
        raise InputError(
            f"precision: expected '32-true' or '64-true', got {precision!r}; the solver needs "
            "products at full precision"
        )
    if trainer.gradient_clip_val:
        raise InputError(
            f"gradient_clip_val: expected None, got {trainer.gradient_clip_val}; there are no "
            "gradients: the solver is told the products F·v as they are"
        )
    if trainer.accumulate_grad_batches != 1:
        parts = trainer.accumulate_grad_batches
        raise InputError(
            f"accumulate_grad_batches: expected 1, got {parts}; there are no gradients: "
            f"AverageModule(parts={parts}) takes the pictures of a mean in parts"
        )


def is_double(trainer: L.Trainer) -> bool:
    """Whether the trainer's precision is float64."""
    return str(trainer.precision).startswith("64")


def count_on(checkpoint: Mapping[str, Any]) -> None:
    """Let Lightning count on from a checkpoint whose turns were steps of automatic optimization.

    So were those written before optimization became manual; Lightning keeps a count for each.
    """
    try:
        loop = checkpoint["loops"]["fit_loop"]
        before = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        now = loop["epoch_loop.manual_optimization.optim_step_progress"]
    except (KeyError, TypeError):
        return
    for kind in ("total", "current"):
        if now[kind]["completed"] == 0:
            now[kind].update(before[kind])
            before[kind].update(dict.fromkeys(before[kind], 0))


class Turns:
    """An endless data loader: each item is one turn.

    Lightning needs batches to count steps; a solver needs none, so they are all alike.
    ``Trainer(limit_train_batches=50)`` makes epochs of 50 turns of them.
    """

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class TurnCounter(torch.optim.Optimizer):
    """Lets Lightning count turns as steps; solvers do the work.

    Its learning rate is 1, for callbacks that log one.

    Parameters
    ----------
    parameters
        What Lightning takes to be trained.
    is_heard
        Whether a hook before each step is to be called: Lightning's closure does nothing else here,
        for a tenth of the time of an empty turn.
    """

    def __init__(self, parameters: list[nn.Parameter], *, is_heard: bool = True) -> None:
        super().__init__(parameters, {"lr": 1.0})
        self._is_heard = is_heard

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, if there is one and somebody hears of it."""
        return closure() if closure is not None and self._is_heard else None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Do nothing: there is no state, and checkpoints of before hold groups without a rate."""


class TurnModule(L.LightningModule):
    """A module whose training steps are turns of solvers.

    A subclass calls :meth:`count_turn` once a turn, and these hooks where it has them too.
    """

    advice: ClassVar[str] = "go on from the last checkpoint"
    """How to go on when another process is lost."""
    agrees_every: ClassVar[int] = 5
    """Turns between agreements of several processes on whether to end."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        # A checkpoint holds the solver's state and no weights.
        self.strict_loading = False
        # Lightning's strategies want something to train.
        self.turns = nn.Parameter(torch.zeros(()))
        self._sigterm = SigtermTogether(self.agrees_every)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a text that replaces a plain value directly.

        ``nn.Module`` looks for parameters, modules and buffers first. Lightning sets the name of
        the hook at work 24 times a turn, which took a quarter of an empty one.
        """
        if (value is None or type(value) is str) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep the signature of ``training_step`` with it: Lightning asks for it at every step."""
        super().__init_subclass__(**options)
        step = cls.__dict__.get("training_step")
        if inspect.isfunction(step):
            vars(step).setdefault("__signature__", inspect.signature(step))

    def configure_callbacks(self) -> list[L.Callback]:
        """Check the trainer, before Lightning does in words of its own; bring no callbacks."""
        check_trainer(self.trainer)
        # A checkpoint after the turn is the one to go on from: nothing is missing before it.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer that counts turns."""
        return cast(
            "OptimizerLRScheduler", TurnCounter([self.turns], is_heard=self._is_step_heard())
        )

    def _is_step_heard(self) -> bool:
        """Whether this module or a callback has a hook of its own before an optimizer's step."""
        callbacks = cast("Any", self.trainer).callbacks
        hooks = [one.on_before_optimizer_step for one in (self, *callbacks)]
        silent = [kind.on_before_optimizer_step for kind in (L.LightningModule, L.Callback)]
        # A callback made of functions has them as they are.
        return any(getattr(hook, "__func__", hook) not in silent for hook in hooks)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Return the batch, a number: there is nothing to move."""
        return batch

    def train_dataloader(self) -> Turns:
        """Return the endless loader of turns."""
        return Turns()

    def count_turn(self) -> None:
        """Let Lightning count one turn."""
        cast("LightningOptimizer", self.optimizers()).step()

    @property
    def is_distributed(self) -> bool:
        """Whether several processes fit this module."""
        return self.processes[1] > 1

    @property
    def processes(self) -> tuple[int, int]:
        """The place of this process among those that fit this module, and their number."""
        try:
            trainer = self.trainer
        except RuntimeError:  # Lightning: attached to none
            return 0, 1
        return trainer.global_rank, trainer.world_size

    def on_train_start(self) -> None:
        """Hear SIGTERM where no callback does, under several processes."""
        self._sigterm.listen(self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End where a process received SIGTERM."""
        self._sigterm.end_if_received(self.trainer, self.advice)

    def on_train_end(self) -> None:
        """Leave the other processes in order when this one exits."""
        leave_at_exit()
