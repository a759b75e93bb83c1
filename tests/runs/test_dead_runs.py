"""A run whose process is gone says so, wherever it is looked at; one that lives is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eigenexp.cli import main
from eigenexp.errors import CheckpointError
from eigenexp.runs.folder import DIED, RunFolder
from eigenexp.runs.table import run_rows

HOLDER = """
import sys
from eigenexp.runs.folder import RunFolder
run = RunFolder(__import__("pathlib").Path(sys.argv[1]), "a")
with run.hold():
    run.write_record(status="RUNNING", title="Net at cat")
    print("held", flush=True)
    sys.stdin.read()
    run.write_record(status="FINISHED", stop_reason="converged")
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_living_run_is_running_and_looking_at_it_does_not_disturb_it(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path, "a")
    assert run.read_record()["status"] == "RUNNING"
    with pytest.raises(CheckpointError, match="another process is solving"), run.hold():
        pass
    holder.communicate()
    assert run.read_record()["status"] == "FINISHED"
    assert "error" not in run.read_record()


def test_a_killed_run_is_failed_in_every_view(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder.kill()
    holder.wait()
    run = RunFolder(tmp_path, "a")
    assert json.loads(run.record_path.read_text())["status"] == "RUNNING"  # nobody wrote it down
    record = run.read_record()
    assert (record["status"], record["stop_reason"]) == ("FAILED", DIED)
    (row,) = run_rows([run])
    assert row["status"] == "FAILED"
    for arguments in (["show"], ["show", "a"], ["show", "a", "--json"], ["show", "--json"]):
        assert main([*arguments, "--root", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "FAILED" in printed
        assert "RUNNING" not in printed
    with run.hold():  # whoever takes it up
        run.write_record(status="RUNNING", stop_reason=None, error=None)
        assert run.read_record()["status"] == "RUNNING"


def test_a_run_of_another_machine_has_the_status_its_server_gave(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.write_record(status="RUNNING", fetched=True)
    assert run.read_record()["status"] == "RUNNING"


def test_somebody_who_looks_keeps_nobody_from_taking_the_run(tmp_path: Path) -> None:
    from filelock import FileLock

    run = RunFolder(tmp_path, "a")
    run.write_record(status="RUNNING")
    look = FileLock(run.checkpoints / ".lock", thread_local=False)
    look.acquire()
    import threading

    threading.Timer(0.2, look.release).start()
    with run.hold():
        pass


def test_a_run_whose_folder_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "abc")
    run.write_record(status="FINISHED")
    (run.checkpoints / ".lock").mkdir()
    with pytest.raises(CheckpointError, match="expected a folder that can be written"), run.hold():
        pass
