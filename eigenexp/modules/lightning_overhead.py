"""The short way through Lightning's loop, for a step that costs no more than the product in it.

Lightning spends about 1.2 ms a step on generality that a solver has no use for, DDP's reducer more.
What is left out here is only what nobody would notice; wherever somebody would, the whole way is
taken.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
from collections import OrderedDict
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, cast

import lightning as L
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins.precision import DoublePrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    "may_step_directly",
    "remember_signature",
    "silence_profiler",
    "step_directly",
    "terminate",
]

F = TypeVar("F", bound=Callable[..., Any])

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
# What lies between a training step and the next: where one of these is somebody's own, all are
# called.
_CALLBACK_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_BROADCAST = "_broadcast_sigterm_tensor"
_MODULE_HOOKS = (*_CALLBACK_HOOKS, "optimizer_step", "optimizer_zero_grad", "backward")


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


def remember_signature(function: F) -> F:
    """Keep the function's signature with it: Lightning asks for it at every step."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def may_step_directly(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether product and next block may change hands without autograd and optimizer wrappers.

    True on one device or under plain DDP, without accumulation or mixed precision, and where
    nothing hooks into what is left out: no callback or module with a hook between two training
    steps, no profiler, no communication hook, no averaging of models. Under DDP the module then
    exchanges products itself.
    """
    return (
        trainer.accumulate_grad_batches == 1
        and isinstance(getattr(trainer, "profiler", None), PassThroughProfiler)
        and type(trainer.precision_plugin) in (Precision, DoublePrecision)
        and _steps_plainly(trainer.strategy)
        and _is_unhooked(L.LightningModule, module, _MODULE_HOOKS)
        and all(
            _is_unhooked(L.Callback, callback, _CALLBACK_HOOKS)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        )
    )


def _steps_plainly(strategy: Strategy) -> bool:
    if type(strategy) is DDPStrategy:
        unhooked = strategy._ddp_comm_hook is None and strategy._ddp_comm_wrapper is None
        return unhooked and strategy._model_averager is None
    return type(strategy) is SingleDeviceStrategy


def _is_unhooked(base: type, hooked: object, names: tuple[str, ...]) -> bool:
    return all(getattr(type(hooked), name) is getattr(base, name) for name in names)


class _DirectSteps(_AutomaticOptimization):
    """In place of Lightning's closure of training step, backward pass and optimizer step: a call.

    Steps are counted as Lightning counts them. For any other module than the one it was made for,
    the loop that it replaced is put back.
    """

    def __init__(self, replaced: _AutomaticOptimization, module: L.LightningModule) -> None:
        super().__init__(replaced.trainer)
        self.optim_progress = replaced.optim_progress
        # In a tuple: Lightning saves the state of every loop that is an attribute.
        self.replaced, self._module = (replaced,), (module,)

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> Any:
        """Take one step."""
        trainer, (module,) = self.trainer, self._module
        if trainer.lightning_module is not module:
            step_directly(trainer, None)
            return self.replaced[0].run(optimizer, batch_idx, kwargs)
        progress = self.optim_progress.optimizer.step
        progress.increment_ready()
        with trainer.precision_plugin.train_step_context():
            loss: Tensor = cast("Any", module).direct_step(*kwargs.values())
        progress.increment_completed()
        return {"loss": loss}


def step_directly(
    trainer: L.Trainer,
    module: L.LightningModule | None,
    on_sigterm: Callable[[], None] | None = None,
) -> None:
    """Let ``module.direct_step`` be the whole of a training step; ``None``: as Lightning does.

    Parameters
    ----------
    trainer
        Whose steps they are.
    module
        Its ``direct_step`` takes what ``training_step`` takes, and also does what follows it.
    on_sigterm
        Called by the handler of SIGTERM, for a module that tells the other processes itself and
        then calls :func:`terminate` in all of them. ``None``: Lightning broadcasts before each step
        whether the first process has received one, and inside the handler, where the others need
        not be.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    loop = epoch_loop.automatic_optimization
    if isinstance(loop, _DirectSteps):
        loop = loop.replaced[0]
    epoch_loop.automatic_optimization = loop if module is None else _DirectSteps(loop, module)
    epoch_loop.__dict__.pop(_BROADCAST, None)
    handler = signal.getsignal(signal.SIGTERM)
    if on_sigterm is None or not hasattr(epoch_loop, _BROADCAST):
        return
    epoch_loop.__dict__[_BROADCAST] = lambda: None
    if isinstance(handler, _HandlersCompose):
        lightnings = trainer._signal_connector._sigterm_notifier_fn
        ours = _SigtermHandler(trainer, on_sigterm)
        handler.signal_handlers = [ours if h == lightnings else h for h in handler.signal_handlers]


class _SigtermHandler:
    """Passes SIGTERM on to the processes that Lightning started, as its own handler does."""

    def __init__(self, trainer: L.Trainer, on_sigterm: Callable[[], None]) -> None:
        self._trainer, self._on_sigterm = trainer, on_sigterm
        self._is_first = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        launcher = self._trainer.strategy.launcher
        if self._is_first and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(number)
        self._is_first = False
        self._on_sigterm()


def terminate(trainer: L.Trainer) -> None:
    """End the fit after this step as Lightning ends it on SIGTERM."""
    trainer._signal_connector.received_sigterm = True
