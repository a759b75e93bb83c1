"""What reaches the loggers, each point once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eigenexp as ee
from eigenexp.callbacks.sending import write_directly
from eigenexp.checkpoints.files import load_checkpoint
from tests.training import Problem, fit


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
    assert {"products", "memory_mb"} <= names
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
    logger = TensorBoardLogger(tmp_path, "tb", version="run")
    again = [ee.ConvergenceLogging(1), ee.SolverCheckpoint(tmp_path / "c")]
    fit(small_problem, tmp_path, again, logger, resume=last)
    assert [value for _, value in scalars(folder, "trainer_step")] == list(range(1, 31))
    logger = TensorBoardLogger(tmp_path, "tb", version="run")  # from the start: no checkpoint
    fit(small_problem, tmp_path, [ee.ConvergenceLogging(1)], logger, steps=5)
    assert [value for _, value in scalars(folder, "trainer_step")] == list(range(1, 6))
