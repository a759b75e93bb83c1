"""The command line in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from eigenexp.checkpoints import sealed_step
from eigenexp.runs.folder import RunFolder, list_runs

SMALL = ["image.crop=[120,220,20,20]", "trainer.enable_progress_bar=false", "threads=1"]
LONG = [*SMALL, "solver=power", "solver.tol=1e-9", "callbacks.checkpoint_every=10",
        "callbacks.checkpoint_seconds=null"]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eigenexp.cli", *arguments]


def environment(**variables: str) -> dict[str, str]:
    left = ("EIGENEXP_ROOT", "EIGENEXP_DECIDED")  # of runs within the process of the tests
    kept = {key: value for key, value in os.environ.items() if key not in left}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after_a_checkpoint(
    process: subprocess.Popen[str], folder: Path, *, from_step: int = 0
) -> None:
    """Send SIGKILL once the run has a checkpoint of that step or a later one.

    A second checkpoint is written when the upload of the first is in the journal.
    """
    deadline = time.monotonic() + 150
    while not any(
        (sealed_step(path) or 0) >= from_step
        for path in folder.glob("mlruns/checkpoints/*/last.ckpt")
    ):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    process.kill()
    process.communicate()


def only_run(folder: Path) -> RunFolder:
    (found,) = list_runs(folder / "mlruns")
    return found


def last_line(text: Any) -> str:
    return str(text).strip().splitlines()[-1]
