"""Convergence norms and eigenvalues, against products and wall time, to every logger."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from eigenexp.callbacks.memory import memory_metrics
from eigenexp.callbacks.sending import forget_points_from, send_point, write_directly
from eigenexp.callbacks.stopping import solver_module
from eigenexp.eigensolvers import Eigensolver
from eigenexp.eigensolvers.progress import Progress
from eigenexp.errors import InputError
from eigenexp.modules.metrics import convergence_metrics, pair_name
from eigenexp.storage.plain import plain

__all__ = ["ConvergenceLogging", "subspace_angle"]

MAX_HISTORY = 2000


def subspace_angle(before: Tensor, after: Tensor) -> float:
    """Return the largest principal angle between two subspaces, in radians.

    sin θ = ‖(I − A Aᵀ) B‖₂, which stays accurate for small angles where arccos does not
    (Björck & Golub 1973).

    Parameters
    ----------
    before, after
        ``(n, k)``, orthonormal columns.
    """
    a, b = before.double(), after.double()
    sine = torch.linalg.matrix_norm(b - a @ (a.mT @ b), ord=2)
    return float(torch.asin(sine.clamp(max=1.0)))


class ConvergenceLogging(L.Callback):
    """Log residuals, eigenvalues, their change and the angle of the subspace to every logger.

    The step of a point is the number of products used, so that runs of different methods can be
    laid over each other; loggers stamp the wall time themselves.

    Metrics: ``residual/<i>`` (‖Fv − λv‖ / λmax), ``residual_log10/<i>`` (for dashboards whose axes
    are linear at first), ``eigenvalue/<i>``, ``worst_residual``,
    ``worst_residual_over_tol``, ``eigenvalue_change`` (2-norm of the change since the last point,
    over λmax), ``subspace_angle/top`` and ``/bottom`` (radians, since the last angle),
    ``products``, ``trainer_step``, ``step_seconds``, ``elapsed_seconds``, ``memory_mb`` and on a
    GPU ``gpu_memory_mb`` and ``gpu_memory_peak_mb``. ``<i>`` counts 0, 1, … from the largest and
    -1, -2, … from the smallest eigenvalue.

    Parameters
    ----------
    every_n_steps
        Steps between points. The first 20 steps and the last one are always logged.
    angle_every_n_steps
        Steps between subspace angles, which need the vectors themselves; 0 for none.

    Attributes
    ----------
    history
        Lists by metric, bounded to a few thousand points (every second is dropped when full);
        saved in checkpoints.
    """

    def __init__(self, every_n_steps: int = 5, angle_every_n_steps: int = 25) -> None:
        if every_n_steps < 1 or angle_every_n_steps < 0:
            raise InputError(
                "every_n_steps, angle_every_n_steps: expected at least 1 and 0, "
                f"got {every_n_steps} and {angle_every_n_steps}"
            )
        self.every_n_steps = every_n_steps
        self.angle_every_n_steps = angle_every_n_steps
        self.history: dict[str, Any] = {
            "products": [],
            "seconds": [],
            "tol": None,
            "residuals": {},
            "eigenvalues": {},
        }
        self._stride = 1
        self._points = 0
        self._last_logged = -1
        self._eigenvalues: Tensor | None = None
        self._subspaces: dict[str, Tensor] = {}
        self._elapsed = 0.0
        self._clock: float | None = None
        self._steps_since = 0

    # -- hooks -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the module that its metrics are taken care of."""
        solver_module(pl_module).logged_by_callback = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run repeats the steps after its checkpoint."""
        self._clock = time.perf_counter()
        self._steps_since = 0
        if trainer.is_global_zero:
            products = solver_module(pl_module).solver.num_products
            for logger in trainer.loggers:
                write_directly(logger)
                forget_points_from(logger, products + 1)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log a point when it is due."""
        self._steps_since += 1
        step = trainer.global_step
        solver = solver_module(pl_module).solver
        if step <= 20 or step % self.every_n_steps == 0 or solver.done:
            self._log(trainer, solver)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the last point, wherever the run stopped."""
        self._log(trainer, solver_module(pl_module).solver)

    def _log(self, trainer: L.Trainer, solver: Eigensolver) -> None:
        products = solver.num_products
        if products <= self._last_logged:
            return
        progress = solver.progress()
        metrics = convergence_metrics(progress, solver.settings.n)
        metrics["trainer_step"] = float(trainer.global_step)
        metrics.update(self._times())
        metrics.update(memory_metrics(solver.device))
        metrics.update(self._changes(progress))
        every = self.angle_every_n_steps
        if every and (solver.done or trainer.global_step % every == 0):
            metrics.update(self._angles(solver))
        self._last_logged = products
        self._remember(progress, metrics, solver.settings.n)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                send_point(logger, metrics, products)

    # -- the quantities --------------------------------------------------------------------------

    def _times(self) -> dict[str, float]:
        now = time.perf_counter()
        passed = now - (self._clock if self._clock is not None else now)
        self._clock = now
        self._elapsed += passed
        times = {"elapsed_seconds": self._elapsed}
        if self._steps_since:
            times["step_seconds"] = passed / self._steps_since
        self._steps_since = 0
        return times

    def _changes(self, progress: Progress) -> dict[str, float]:
        now, before = progress.eigenvalues.double().cpu(), self._eigenvalues
        self._eigenvalues = now
        if before is None or before.shape != now.shape or not progress.scale > 0:
            return {}
        change = float(torch.linalg.vector_norm(now - before)) / progress.scale
        return {"eigenvalue_change": change}

    def _angles(self, solver: Eigensolver) -> dict[str, float]:
        spectrum = solver.result()
        top = spectrum.eigenindex < solver.settings.n / 2
        angles = {}
        for end, chosen in (("top", top), ("bottom", ~top)):
            if not bool(chosen.any()):
                continue
            vectors = spectrum.eigenvectors[chosen.to(spectrum.eigenvectors.device)].flatten(1).mT
            if solver.embedding is not None:  # pictures of unit coordinates are not orthonormal
                vectors = torch.linalg.qr(vectors).Q
            before = self._subspaces.get(end)
            if before is not None and before.shape == vectors.shape:
                angles[f"subspace_angle/{end}"] = subspace_angle(before.to(vectors), vectors)
            self._subspaces[end] = vectors
        return angles

    def _remember(self, progress: Progress, metrics: dict[str, float], n: int) -> None:
        self._points += 1
        if (self._points - 1) % self._stride:
            return
        history = self.history
        history["products"].append(progress.num_products)
        history["seconds"].append(metrics["elapsed_seconds"])
        history["tol"] = progress.tol
        count = len(history["products"])
        names = [pair_name(i, n) for i in progress.eigenindex.tolist()]
        for kind, prefix in (("residuals", "residual"), ("eigenvalues", "eigenvalue")):
            series = history[kind]
            for name in {*series, *names}:
                values: list[float] = series.setdefault(name, [math.nan] * (count - 1))
                values.append(metrics.get(f"{prefix}/{name}", math.nan))
        if count >= MAX_HISTORY:
            self._halve()

    def _halve(self) -> None:
        """Drop every second point: memory stays flat however long the synthesis."""
        self._stride *= 2
        lists: Sequence[list[Any]] = [
            self.history["products"],
            self.history["seconds"],
            *self.history["residuals"].values(),
            *self.history["eigenvalues"].values(),
        ]
        for values in lists:
            del values[1::2]

    # -- checkpoints -----------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """One state a class: resuming under another interval keeps the history."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return history, counters, and what the next change and angle are taken from."""
        return {
            "history": _packed(self.history),
            "stride": self._stride,
            "points": self._points,
            "last_logged": self._last_logged,
            "elapsed": self._elapsed,
            "eigenvalues": self._eigenvalues,
            "subspaces": dict(self._subspaces),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the saved history, so that curves go on where they stood."""
        self.history = plain(state_dict["history"])
        self._stride = state_dict["stride"]
        self._points = state_dict["points"]
        self._last_logged = state_dict["last_logged"]
        self._elapsed = state_dict["elapsed"]
        self._eigenvalues = state_dict.get("eigenvalues")
        self._subspaces = dict(state_dict.get("subspaces", {}))


def _packed(history: dict[str, Any]) -> dict[str, Any]:
    """Return lists of numbers as tensors: a pickle looks at every number of a list."""
    packed: dict[str, Any] = {
        "products": torch.tensor(history["products"], dtype=torch.int64),
        "seconds": torch.tensor(history["seconds"], dtype=torch.float64),
        "tol": history["tol"],
    }
    for kind in ("residuals", "eigenvalues"):
        curves = history[kind].items()
        packed[kind] = {name: torch.tensor(curve, dtype=torch.float64) for name, curve in curves}
    return packed
