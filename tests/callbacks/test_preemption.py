"""What signals do to a plain trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

import eigenexp as ee
from eigenexp.checkpoints.files import load_checkpoint
from eigenexp.errors import InputError
from tests.training import Problem, fit


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
                threading.Event().wait(60)

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
import os, sys, time
import lightning as L, torch
import eigenexp as ee
from pathlib import Path
torch.set_num_threads(1)
folder = Path(sys.argv[1])

class Slow(ee.EigendistortionModule):
    def training_step(self, batch, batch_idx):
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
    os.kill(int((tmp_path / f"pid-{rank}").read_text()), signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGUSR1, output
    ends = {(tmp_path / f"end-{i}").read_text() for i in (0, 1)}
    assert len(ends) == 1
    step, code = map(int, ends.pop().split())
    assert code == 128 + signal.SIGUSR1
    assert load_checkpoint(tmp_path / "c" / "last.ckpt")["global_step"] == step
