"""A module of ours as a process: what it is told, how it hears that its parent is done."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eigenexp.errors import InputError
from eigenexp.storage.processes import module_arguments, passing_signals_to, start_module

CHILD = """
import os, sys, threading
from eigenexp.storage.processes import live_beside_parent, module_arguments, when_parent_closes
if os.environ.get("DEAF"):
    live_beside_parent()
closed = threading.Event()
when_parent_closes(closed.set)
print(module_arguments()["word"], sys.argv[1:], flush=True)
closed.wait(60)
print("closed", flush=True)
"""
PARENT = """
import sys
from pathlib import Path
from eigenexp.storage.processes import start_module
start_module("child", {"word": "héllo"}, output=Path(sys.argv[1]))
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)


def first_line(path: Path, process: subprocess.Popen[bytes]) -> str:
    while not path.exists() or "\n" not in path.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    return path.read_text().splitlines()[0]


def test_arguments_arrive_but_not_by_the_argument_list(tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start_module("child", {"word": "http://bob:pw@host"}, output=output)
    assert first_line(output, process) == "http://bob:pw@host []"
    command = Path(f"/proc/{process.pid}/cmdline")
    if command.exists():
        assert b"bob" not in command.read_bytes()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0
    assert output.read_text().splitlines()[1] == "closed"


def test_the_death_of_the_parent_is_heard(tmp_path: Path) -> None:
    output = tmp_path / "output"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(output)], stdin=subprocess.PIPE, cwd=tmp_path
    )
    assert first_line(output, parent) == "héllo []"
    parent.kill()
    parent.communicate()
    while len(output.read_text().splitlines()) < 2:
        time.sleep(0.01)
    assert output.read_text().splitlines()[1] == "closed"


def test_signals_are_passed_on_and_one_beside_the_parent_ignores_them(tmp_path: Path) -> None:
    for variables, code in (({}, -signal.SIGTERM), ({"DEAF": "1"}, 0)):
        output = tmp_path / f"output{code}"
        process = start_module("child", {"word": "a"}, output=output, environment=variables)
        assert first_line(output, process)
        before = signal.getsignal(signal.SIGTERM)
        with passing_signals_to(process):
            signal.raise_signal(signal.SIGTERM)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == code
        assert signal.getsignal(signal.SIGTERM) == before


def test_started_by_hand_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EIGENEXP_ARGUMENTS", raising=False)
    with pytest.raises(InputError, match=r"EIGENEXP_ARGUMENTS: .*by hand"):
        module_arguments()
