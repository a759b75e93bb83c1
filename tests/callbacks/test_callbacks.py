"""Callbacks in a plain trainer: what reaches the loggers, what it may cost, what signals do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
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
from eigenexp.checkpoints.files import CheckpointWarning, find_checkpoint, load_checkpoint
from eigenexp.errors import CheckpointError, InputError
from tests.problems import Quadratic

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
    time.sleep(1.0)  # event files are named by the second they were begun in
    logger = TensorBoardLogger(tmp_path, "tb", version="run")
    again = [ee.ConvergenceLogging(1), ee.SolverCheckpoint(tmp_path / "c")]
    fit(small_problem, tmp_path, again, logger, resume=last)
    assert [value for _, value in scalars(folder, "trainer_step")] == list(range(1, 31))
    time.sleep(1.0)
    logger = TensorBoardLogger(tmp_path, "tb", version="run")  # from the start: no checkpoint
    fit(small_problem, tmp_path, [ee.ConvergenceLogging(1)], logger, steps=5)
    assert [value for _, value in scalars(folder, "trainer_step")] == list(range(1, 6))


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


# -- signals ---------------------------------------------------------------------------------------


class SendSignal(L.Callback):
    def __init__(self, number: int, step: int) -> None:
        self.number = number
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_and_leaves_the_handlers_as_they_were(
    number: signal.Signals, small_problem: Problem, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    stop, checkpoint = ee.GracefulStop(), ee.SolverCheckpoint(tmp_path / "c")
    module = fit(small_problem, tmp_path, [SendSignal(number, 7), stop, checkpoint])
    assert stop.received == number
    assert stop.exit_code == 128 + number
    assert load_checkpoint(checkpoint.last_path)["global_step"] == module.trainer.global_step == 7
    assert signal.getsignal(number) is before


def test_a_signal_while_the_end_is_being_saved_does_not_cut_it_off(
    small_problem: Problem, tmp_path: Path
) -> None:
    class AtTheEnd(ee.SolverCheckpoint):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().on_train_end(trainer, pl_module)

    stop, checkpoint = ee.GracefulStop(), AtTheEnd(tmp_path / "c")
    fit(small_problem, tmp_path, [stop, checkpoint], steps=5)
    assert load_checkpoint(checkpoint.last_path)["global_step"] == 5
    assert stop.exit_code == 0  # the run was over


def test_a_second_interrupt_does_not_wait_for_the_step(
    small_problem: Problem, tmp_path: Path
) -> None:
    class Twice(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.0)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(small_problem, tmp_path, [ee.GracefulStop(), Twice()])
    with pytest.raises(InputError, match="patience"):
        ee.GracefulStop(patience=-1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_the_first_step_leaves_a_checkpoint_of_it(
    number: signal.Signals, small_problem: Problem, tmp_path: Path
) -> None:
    class InSetUp(L.Callback):
        def on_fit_start(self, *_: Any) -> None:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    stop, checkpoint = ee.GracefulStop(), ee.SolverCheckpoint(tmp_path / "c")
    with stop.listening():
        fit(small_problem, tmp_path, [InSetUp(), stop, checkpoint])
        assert stop.exit_code == 128 + number
        assert load_checkpoint(checkpoint.last_path)["global_step"] == 1
        assert signal.getsignal(number) is not before  # still heard
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("early", [False, True])
def test_a_signal_after_the_run_only_hurries(
    early: bool, small_problem: Problem, tmp_path: Path
) -> None:
    hurried = []
    stop = ee.GracefulStop()
    with stop.listening():
        fit(small_problem, tmp_path, [stop], steps=5)
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
        stop.over(lambda: hurried.append(True))
        if not early:
            os.kill(os.getpid(), signal.SIGTERM)
    assert hurried == [True]
    assert stop.exit_code == 0  # the run was over


def test_a_signal_on_the_way_out_keeps_the_exit_code(tmp_path: Path) -> None:
    script = """
import atexit, os, signal, sys
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
import eigenexp as ee
with ee.GracefulStop().listening():
    pass
sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7


def test_loggers_are_told_and_hurried(small_problem: Problem, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []

    class Slow(CSVLogger):
        def hurry(self, status: str, seconds: float) -> None:
            told.append((status, seconds))

    stop = ee.GracefulStop(patience=4.0)
    sending = SendSignal(signal.SIGTERM, 3)
    fit(small_problem, tmp_path, [sending, stop], Slow(tmp_path, "csv"))
    assert told == [("KILLED", 4.0)]


RANKS = """
import os, sys
import lightning as L, torch
import eigenexp as ee
from pathlib import Path
torch.set_num_threads(1)
folder = Path(sys.argv[1])

class Slow(ee.EigendistortionModule):
    def training_step(self, batch, batch_idx):
        import time
        time.sleep(0.01)
        if self.trainer.global_step == 3:
            (folder / f"pid-{self.trainer.global_rank}").write_text(str(os.getpid()))
        return super().training_step(batch, batch_idx)

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 40, bias=False))
with torch.no_grad():
    generator = torch.Generator().manual_seed(0)
    model[1].weight.copy_(torch.randn(40, 36, generator=generator))
stop = ee.GracefulStop()
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=20_000, logger=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    callbacks=[ee.ConvergenceStopping(), stop, ee.SolverCheckpoint(folder / "c")],
)
trainer.fit(Slow(model, torch.rand(1, 1, 6, 6, generator=generator), method="power", tol=1e-12))
(folder / f"end-{trainer.global_rank}").write_text(f"{trainer.global_step} {stop.exit_code}")
sys.exit(stop.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_one_rank_stops_all(rank: int, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"pid-{i}").exists() for i in (0, 1)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.1)
    os.kill(int((tmp_path / f"pid-{rank}").read_text()), signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGUSR1, output
    ends = {(tmp_path / f"end-{i}").read_text() for i in (0, 1)}
    assert len(ends) == 1
    step, code = map(int, ends.pop().split())
    assert code == 128 + signal.SIGUSR1
    assert load_checkpoint(tmp_path / "c" / "last.ckpt")["global_step"] == step
