"""The short way through Lightning's loop, for a step that costs no more than the product in it.

Lightning spends about 1.2 ms a step on generality that a solver on one process has no use for. What
is left out here is only what nobody would notice; wherever somebody would, the whole way is taken.
"""

from __future__ import annotations

import contextlib

import lightning as L
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy

__all__ = ["may_step_directly", "silence_profiler"]

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class _SilentProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default does at 2 µs each of some sixty times a step."""

    def profile(  # type: ignore[override]
        self, action_name: str
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return _NOTHING


def silence_profiler(trainer: L.Trainer) -> None:
    """Replace the profiler that measures nothing by one that takes no time either."""
    if type(getattr(trainer, "profiler", None)) is PassThroughProfiler:
        trainer.profiler = _SilentProfiler()  # type: ignore[attr-defined]


def may_step_directly(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether product and next block may change hands without autograd and optimizer wrappers.

    True on one process, without accumulation, and where nothing hooks into what is left out: no
    callback, module, precision plug-in or strategy with its own optimizer step.
    """
    return (
        trainer.world_size == 1
        and trainer.accumulate_grad_batches == 1
        and not trainer.strategy.handles_gradient_accumulation
        and type(trainer.strategy).optimizer_step is Strategy.optimizer_step
        and type(trainer.precision_plugin).optimizer_step is Precision.optimizer_step
        and _is_own(L.LightningModule, module)
        and all(_is_own(L.Callback, callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    )


def _is_own(base: type, hooked: object) -> bool:
    name = "on_before_optimizer_step"
    return getattr(type(hooked), name) is getattr(base, name)
