"""When checkpoints and results are written in a plain trainer, and what may fail."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

import eigenexp as ee
from eigenexp.callbacks.pacing import Pace
from eigenexp.checkpoints.files import CheckpointWarning, find_checkpoint, load_checkpoint
from eigenexp.errors import CheckpointError, InputError
from tests.training import Problem, fit


def test_loggers_write_out_before_a_checkpoint(small_problem: Problem, tmp_path: Path) -> None:
    order: list[str] = []

    class Noting(CSVLogger):
        def save(self) -> None:
            order.append("save")

    class Watching(ee.SolverCheckpoint):
        def write(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
            order.clear()
            super().write(trainer, module, step)

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
            def write(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
                super().write(trainer, module, step)
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

        def write(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
            written.append(step)

    watching = Watching(tmp_path / "c", every_n_steps=10)
    watching.pace = Blocked(0.5)
    fit(small_problem, tmp_path, [watching], steps=16)
    assert written == [13, 16]


def test_pace_follows_the_median_cost() -> None:
    now = [100.0]
    pace = Pace(0.1, clock=lambda: now[0])
    assert pace.is_ready
    for cost in (0.02, 0.001, 0.001):
        with pace.measure():
            now[0] += cost
    assert pace.interval == pytest.approx(0.01)  # the one slow save is not what counts
    now[0] += 0.008
    assert not pace.is_ready
    now[0] += 0.002
    assert pace.is_ready
    assert Pace(None).interval == 0
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(InputError, match="max_share"):
            ee.SolverCheckpoint(max_share=share)


def test_a_save_that_fails_is_told_and_tried_again_and_only_the_last_one_raises(
    small_problem: Problem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from eigenexp.checkpoints import lightning_io as checkpoint_io

    real, full = checkpoint_io.save_checkpoint, {10, 20}

    def save(checkpoint: dict[str, Any], path: Path) -> str:
        if checkpoint["global_step"] in full:
            raise CheckpointError("no room")
        return real(checkpoint, path)

    monkeypatch.setattr(checkpoint_io, "save_checkpoint", save)
    checkpoint = ee.SolverCheckpoint(tmp_path / "c", every_n_steps=10, max_share=None)
    fit(small_problem, tmp_path, [checkpoint], steps=25)
    assert load_checkpoint(checkpoint.last_path)["global_step"] == 25
    assert caplog.text.count("no room. The solve goes on") == 2
    full.add(30)
    checkpoint = ee.SolverCheckpoint(tmp_path / "d", every_n_steps=15, max_share=None)
    with pytest.raises(CheckpointError, match="no room"):
        fit(small_problem, tmp_path, [checkpoint], steps=30)
    assert load_checkpoint(checkpoint.last_path)["global_step"] == 15


def test_later_steps_of_an_earlier_run_are_set_aside(
    small_problem: Problem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "c"

    def checkpoint() -> ee.SolverCheckpoint:
        return ee.SolverCheckpoint(folder, every_n_steps=5, max_share=None)

    fit(small_problem, tmp_path, [checkpoint()], steps=20)
    fit(small_problem, tmp_path, [checkpoint()], steps=7)  # another run in the same folder
    assert "later steps than 0" in caplog.text
    assert load_checkpoint(find_checkpoint(folder))["global_step"] == 7
    assert load_checkpoint(folder / "best.ckpt")["global_step"] <= 7
    (aside,) = folder.glob("superseded-*")
    assert load_checkpoint(find_checkpoint(aside))["global_step"] == 20
    caplog.clear()
    fit(small_problem, tmp_path, [checkpoint()], steps=12, resume=folder / "last.ckpt")
    assert "later steps" not in caplog.text  # a run that goes on sets nothing aside
    fit(small_problem, tmp_path, [checkpoint()], steps=11, resume=folder / "step-000000010.ckpt")
    assert load_checkpoint(find_checkpoint(folder))["global_step"] == 11


@pytest.mark.parametrize("name", ["c", "c/last.ckpt"])
def test_a_folder_or_a_damaged_last_stand_for_the_newest_whole_one(
    name: str, small_problem: Problem, tmp_path: Path
) -> None:
    checkpoint = ee.SolverCheckpoint(tmp_path / "c", every_n_steps=5, max_share=None)
    fit(small_problem, tmp_path, [checkpoint], steps=12)
    last = tmp_path / "c" / "last.ckpt"
    content = last.read_bytes()
    last.unlink()  # the history holds the same file
    last.write_bytes(content[:-30])
    again = ee.SolverCheckpoint(tmp_path / "c", every_n_steps=5, max_share=None)
    with pytest.warns(CheckpointWarning, match="cut short"):
        module = fit(small_problem, tmp_path, [again], steps=20, resume=tmp_path / name)
    whole = fit(small_problem, tmp_path / "whole", [], steps=20)
    assert torch.equal(module.solver.result().eigenvectors, whole.solver.result().eigenvectors)
    last.write_bytes(content[:-30])
    for path in (tmp_path / "c").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-30])
    told = pytest.warns(CheckpointWarning) if name == "c" else contextlib.nullcontext()
    with told, pytest.raises(CheckpointError, match=r"damaged|cut short"):
        fit(small_problem, tmp_path, [again], steps=30, resume=tmp_path / name)


def test_saving_says_nothing(
    small_problem: Problem, tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: Any
) -> None:
    checkpoint = ee.SolverCheckpoint(tmp_path / "c", every_n_steps=5, max_share=None)
    fit(small_problem, tmp_path, [checkpoint], steps=12)
    assert "weights_only" not in "".join(capfd.readouterr())


def test_results_without_room_are_one_line(small_problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="resume from the last checkpoint") as caught:
        fit(small_problem, tmp_path, [ee.ResultFiles(tmp_path / "file" / "r")], steps=3)
    assert "\n" not in str(caught.value)
