"""TensorBoard has every value once: after kills in the last stage, resumes and clocks set back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eigenexp as ee
from eigenexp.callbacks import event_file
from eigenexp.callbacks.sending import forget_points_from, send_point
from eigenexp.callbacks.study_progress import StudyLogging
from eigenexp.checkpoints import find_checkpoint
from tests.problems import Quadratic
from tests.training import quiet_trainer


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def values(folder: Path) -> Counter[tuple[str, int]]:
    """How often each tag has each step, of all kinds of values."""
    events = board(folder)
    found: Counter[tuple[str, int]] = Counter()
    for kind, read in (("scalars", events.Scalars), ("images", events.Images),
                       ("tensors", events.Tensors)):  # fmt: skip
        for tag in events.Tags()[kind]:
            found.update((tag, point.step) for point in read(tag))
    return found


class Killed(BaseException):
    pass


class DieInTheEnd(L.Callback):
    """Stands in the list where the process dies, before or after the last checkpoint."""

    def on_train_end(self, *_: Any) -> None:
        raise Killed


def fit(folder: Path, *, dies: str | None = None, resume: bool = False) -> int:
    picture = ee.load_picture("camera", crop=12)
    module = ee.EigendistortionModule(
        ee.models.Gaussian(kernel_size=5), picture, k=1, method="lanczos", tol=1e-3
    )
    checkpoints = folder / "checkpoints"
    callbacks: list[L.Callback] = [
        ee.ConvergenceStopping(),
        ee.ConvergenceLogging(3),
        ee.DistortionPictures(10),
        ee.ResultFiles(folder / "results"),
        *([DieInTheEnd()] if dies == "before" else []),
        ee.SolverCheckpoint(checkpoints, every_n_steps=1, max_share=None),
        *([DieInTheEnd()] if dies == "after" else []),
    ]
    logger = TensorBoardLogger(folder, "tb", version="run", default_hp_metric=False)
    trainer = quiet_trainer(
        folder, callbacks, logger=logger, max_steps=200, enable_checkpointing=True
    )
    checkpoint = find_checkpoint(checkpoints) if resume else None
    trainer.fit(module, ckpt_path=checkpoint)
    return int(module.solver.num_products)


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_kill_in_the_last_stage_doubles_nothing(tmp_path: Path, dies: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(whole)
    with pytest.raises(Killed):
        fit(killed, dies=dies)
    fit(killed, resume=True)
    expected, found = values(whole / "tb/run"), values(killed / "tb/run")
    assert max(expected.values()) == 1
    assert found == expected
    before = {path: path.stat().st_size for path in (killed / "tb/run").iterdir()}
    fit(killed, resume=True)  # of a run that is over
    assert values(killed / "tb/run") == expected
    grown = {path: path.stat().st_size for path in (killed / "tb/run").iterdir()}
    assert {path: grown[path] for path in before} == before
    assert sum(grown.values()) < sum(before.values()) + 200  # Lightning's own empty file


def write(folder: Path, steps: range, resumed_at: int | None = None) -> None:
    logger = TensorBoardLogger(folder, "tb", version="run", default_hp_metric=False)
    if resumed_at is not None:
        forget_points_from(logger, resumed_at + 1)
    else:
        forget_points_from(logger, 0)
    for step in steps:
        send_point(logger, {"a": float(step), "b": 0.0}, step)
    logger.finalize("success")


def test_a_clock_set_back_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, range(10))
    live = board(tmp_path / "tb/run")  # a TensorBoard that has read so far
    assert [point.step for point in live.Scalars("a")] == list(range(10))
    real = event_file.time.time
    monkeypatch.setattr("time.time", lambda: real() - 86_400)
    write(tmp_path, range(8, 20), resumed_at=7)
    live.Reload()
    for events in (live, board(tmp_path / "tb/run")):
        assert [point.step for point in events.Scalars("a")] == list(range(20))


def test_what_was_forgotten_is_written_again(tmp_path: Path) -> None:
    write(tmp_path, range(10))
    write(tmp_path, range(6, 8), resumed_at=5)  # forgets 8 and 9
    write(tmp_path, range(5, 12), resumed_at=7)  # 7 is there already
    found = values(tmp_path / "tb/run")
    assert {step for _, step in found} == set(range(12))
    assert found["a", 7] == 1
    assert found["a", 9] == 1


def test_a_torn_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    (newest,) = (tmp_path / "tb/run").glob("*.direct")
    newest.write_bytes(newest.read_bytes()[:-7])  # the point at 4 lacks its end
    write(tmp_path, range(4, 6), resumed_at=4)
    assert values(tmp_path / "tb/run")["a", 4] == 1


def test_a_study_that_goes_on_has_its_progress_once(tmp_path: Path) -> None:
    """Killed after a point and before its end; the next one logs the same number of pictures."""
    pictures = [ee.load_picture("camera", crop=[40 * i, 40, 6, 6]).tensor for i in range(2)]
    for logs in range(3):
        module = ee.StudyModule(
            Quadratic(), [p.double() for p in pictures], tmp_path / "study", which="top", tol=1e-2
        )
        logger = TensorBoardLogger(tmp_path / "tb", name="", version="run")
        trainer = quiet_trainer(
            tmp_path,
            [StudyLogging()],
            logger=logger,
            precision="64-true",
            max_epochs=-1,
            max_steps=1 if logs == 0 else -1,
        )
        trainer.fit(module)
    counted = values(tmp_path / "tb" / "run")
    assert ("pictures_done", 2) in counted
    assert set(counted.values()) == {1}
