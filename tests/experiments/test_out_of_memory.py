"""Memory that runs out in the middle of a run: one line, and a run that can go on."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest

from eigenexp.cli import main
from eigenexp.errors import ConfigError
from eigenexp.experiments.session import set_threads
from eigenexp.runs.folder import list_runs
from tests.processes import SMALL


class Eater(L.Callback):
    """Takes the last memory in a step, as an allocation by Python or by torch fails."""

    def __init__(self, way: str) -> None:
        self.way = way

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 25 and self.way == "python":
            raise MemoryError
        if trainer.global_step == 25:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8e14 bytes")


@pytest.mark.parametrize("way", ["python", "torch"])
def test_memory_that_runs_out_is_one_line(
    way: str, in_tmp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    eater = [f"+callbacks.eater._target_={Eater.__module__}.Eater", f"+callbacks.eater.way={way}"]
    settings = [*SMALL, "logger=none", "solver=power", "solver.tol=1e-9", "trainer.max_steps=60"]
    often = ["callbacks.checkpoint_every=10", "callbacks.checkpoint_share=null"]
    assert main(["fit", *settings, *often, *eater]) == 1
    said = capfd.readouterr()
    (line,) = [line for line in said.err.splitlines() if "memory" in line]
    assert line.startswith("eigenexp: memory: expected room for the solve, got none left")
    assert "Traceback" not in said.err
    (run,) = list_runs(in_tmp / "mlruns")
    record = run.read_record()
    assert record["status"] == "FAILED"
    wanted = "MemoryError" if way == "python" else "RuntimeError"
    assert record["stop_reason"] == f"failed: {wanted}"
    assert any(run.checkpoints.glob("*.ckpt"))


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_more_threads_than_a_system_gives_are_refused(threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads: expected 1 to .*got {threads}"):
        set_threads(threads)
