"""Callbacks in a plain trainer: what reaches the loggers, what it may cost, what signals do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import eigenexp as ee
from eigenexp.callbacks.pacing import Pace
from eigenexp.callbacks.sending import write_directly
from eigenexp.checkpoints import load_checkpoint
from eigenexp.errors import InputError
from tests.conftest import Quadratic

Problem = tuple[Quadratic, Tensor, Tensor]


def fit(
    problem: Problem,
    folder: Path,
    callbacks: list[L.Callback],
    logger: Any = False,
    steps: int = 30,
    resume: Path | None = None,
) -> ee.EigendistortionModule:
    model, image, _ = problem
    module = ee.EigendistortionModule(model, image, method="power", k=1, tol=1e-15)
    trainer = L.Trainer(
        max_steps=steps,
        precision="64-true",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(c, ee.SolverCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    trainer.fit(module, ckpt_path=None if resume is None else str(resume))
    return module


# -- TensorBoard -----------------------------------------------------------------------------------


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_gets_every_metric_of_every_point(
    small_problem: Problem, tmp_path: Path
) -> None:
    logger = TensorBoardLogger(tmp_path, "tb", version="run")
    csv = CSVLogger(tmp_path, "csv", version="run")
    logging = ee.ConvergenceLogging(1, angle_every_n_steps=1)
    fit(small_problem, tmp_path, [logging], [logger, csv])
    folder = tmp_path / "tb" / "run"
    lines = (tmp_path / "csv" / "run" / "metrics.csv").read_text().splitlines()
    names = set(lines[0].split(",")) - {"step"}
    assert {"residual/0", "eigenvalue/-1", "subspace_angle/top", "step_seconds"} <= names
    products = logging.history["products"]
    for name in ("residual/0", "eigenvalue/-1", "products"):
        assert [step for step, _ in scalars(folder, name)] == products
    values = [value for _, value in scalars(folder, "eigenvalue/0")]
    torch.testing.assert_close(
        torch.tensor(values), torch.tensor(logging.history["eigenvalues"]["0"]), check_dtype=False
    )


def test_tensorboard_points_are_on_disk_at_once_and_pictures_in_the_same_file(
    tmp_path: Path,
) -> None:
    logger = TensorBoardLogger(tmp_path, "tb", version="run")
    folder = tmp_path / "tb" / "run"
    write_directly(logger)
    write_directly(logger)  # a second fit changes nothing
    logger.log_metrics({"a": 1.0}, 3)
    assert scalars(folder, "a") == [(3, 1.0)]  # neither flushed nor closed
    logger.experiment.add_image("x", torch.zeros(3, 4, 4), 3)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == ["x"]
    assert len(list(folder.glob("*.direct"))) == 1


def test_a_resumed_run_has_each_tensorboard_point_once(
    small_problem: Problem, tmp_path: Path
) -> None:
    checkpoint = ee.SolverCheckpoint(tmp_path / "c", every_n_steps=12, max_share=None)

    class Crash(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 20:
                raise RuntimeError("crash")

    logger = TensorBoardLogger(tmp_path, "tb", version="run")
    with pytest.raises(RuntimeError, match="crash"):
        fit(small_problem, tmp_path, [ee.ConvergenceLogging(1), checkpoint, Crash()], logger)
    folder = tmp_path / "tb" / "run"
    assert max(scalars(folder, "trainer_step"))[1] == 20
    last = checkpoint.last_path
    assert load_checkpoint(last)["global_step"] == 12
    time.sleep(1.0)  # event files are named by the second they were begun in
    logger = TensorBoardLogger(tmp_path, "tb", version="run")
    again = [ee.ConvergenceLogging(1), ee.SolverCheckpoint(tmp_path / "c")]
    fit(small_problem, tmp_path, again, logger, resume=last)
    assert [value for _, value in scalars(folder, "trainer_step")] == list(range(1, 31))


# -- checkpoints -----------------------------------------------------------------------------------


def test_loggers_write_out_before_a_checkpoint(small_problem: Problem, tmp_path: Path) -> None:
    order: list[str] = []

    class Noting(CSVLogger):
        def save(self) -> None:
            order.append("save")

    class Watching(ee.SolverCheckpoint):
        def _write(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
            order.clear()
            super()._write(trainer, module, step)

        def state_dict(self) -> dict[str, Any]:
            order.append("checkpoint")
            return super().state_dict()

    watching = Watching(tmp_path / "c", every_n_steps=10, max_share=None)
    fit(small_problem, tmp_path, [watching], Noting(tmp_path, "csv"), steps=10)
    assert order[:2] == ["save", "checkpoint"]


def test_saving_that_costs_much_is_spaced_out_and_the_end_is_saved_all_the_same(
    small_problem: Problem, tmp_path: Path
) -> None:
    saved: dict[str, list[int]] = {}

    def steps_saved(name: str, share: float | None) -> list[int]:
        class Slow(ee.SolverCheckpoint):
            def _write(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
                super()._write(trainer, module, step)
                saved.setdefault(name, []).append(step)
                time.sleep(0.05)

        slow = Slow(tmp_path / name, every_n_steps=5, max_share=share)
        fit(small_problem, tmp_path, [slow], steps=30)
        assert load_checkpoint(slow.last_path)["global_step"] == 30
        return saved[name]

    assert steps_saved("whenever due", None) == [5, 10, 15, 20, 25, 30]
    assert steps_saved("spaced out", 0.01) == [5, 30]


def test_a_save_that_had_to_wait_is_made_up_for(small_problem: Problem, tmp_path: Path) -> None:
    written: list[int] = []

    class Blocked(Pace):
        @property
        def is_ready(self) -> bool:
            return trainer_step[0] >= 13

    trainer_step = [0]

    class Watching(ee.SolverCheckpoint):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            trainer_step[0] = trainer.global_step
            super().on_train_batch_end(trainer, *rest)

        def _write(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
            written.append(step)

    watching = Watching(tmp_path / "c", every_n_steps=10)
    watching._pace = Blocked(0.5)
    fit(small_problem, tmp_path, [watching], steps=16)
    assert written == [13, 16]


def test_pace_follows_the_median_cost() -> None:
    pace = Pace(0.1)
    assert pace.is_ready
    for cost in (0.02, 0.001, 0.001):
        with pace.measure():
            time.sleep(cost)
    assert 0.01 <= pace.interval < 0.2  # the one slow save is not what counts
    assert not pace.is_ready
    assert Pace(None).interval == 0
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(InputError, match="max_share"):
            ee.SolverCheckpoint(max_share=share)
