"""Stop the trainer when the solver has nothing left to ask."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from eigenexp.distributed.ranks import agree
from eigenexp.eigensolvers import Eigensolver
from eigenexp.errors import InputError
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.spectrum import StopReason

__all__ = ["ConvergenceStopping", "solver_module", "stop_message"]

log = logging.getLogger(__name__)


def solver_module(pl_module: L.LightningModule) -> EigendistortionModule:
    """Return the module, typed; refuse modules that hold no solver."""
    if not isinstance(pl_module, EigendistortionModule):
        raise InputError(
            f"callback: expected an EigendistortionModule, got {type(pl_module).__name__}; "
            "this callback reads its solver"
        )
    return pl_module


def stop_message(solver: Eigensolver) -> str | None:
    """Return why ``solver`` stopped, in words, or ``None`` while it has something to ask."""
    if not solver.done:
        return None
    why = solver.stop_reason.message_in(solver.dtype)
    return f"{solver.name} stopped after {solver.num_products} products: {why}"


class ConvergenceStopping(L.Callback):
    """Stop as soon as the solver is done: converged and verified, or honestly unable to.

    The decision is agreed across ranks. Unlike ``EarlyStopping`` it acts within an endless epoch.

    Parameters
    ----------
    every_n_steps
        Steps between agreements across ranks (one reduction of about 5 ms over gloo). On one
        process the check is free and made at every step. Ranks that agree anyway, as they do on
        one spectrum, end at once; this is for the case that they do not.

    Attributes
    ----------
    reason
        The solver's stop reason, ``StopReason.RUNNING`` before it is done.
    """

    def __init__(self, every_n_steps: int = 5) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps: expected at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.reason = StopReason.RUNNING

    @property
    def state_key(self) -> str:
        """One state a class: resuming under another interval keeps it."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return the reason, as text."""
        return {"reason": self.reason.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the saved reason."""
        self.reason = StopReason(state_dict["reason"])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ask the solver, agree across ranks, stop."""
        solver = solver_module(pl_module).solver
        message = stop_message(solver)
        if trainer.world_size > 1:
            if trainer.global_step % self.every_n_steps:
                return
            advice = solver_module(pl_module).advice
            agreed = agree(trainer, message is not None, all_ranks=False, advice=advice)
            if agreed and message is None:
                message = "another rank is done"
        self.reason = solver.stop_reason
        if message is not None:
            trainer.should_stop = True
            log.info(message)
