"""Real processes over gloo: the results of one process, and no process left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eigenexp.distributed.ranks import RankLostError, together
from eigenexp.spectrum import Spectrum
from eigenexp.study.folder import StudyFolder
from tests.distributed.ranks_script import KINDS

ROOT = Path(__file__).parents[2]


def start(devices: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.distributed.ranks_script",
            str(devices),
            str(folder),
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def fit(devices: int, folder: Path, *arguments: str) -> None:
    process = start(devices, folder, *arguments)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    fit(1, folder)
    return folder


def assert_same(folder: Path, alone: Path, kinds: tuple[str, ...] = KINDS) -> None:
    for kind in kinds:
        if kind == "pictures":
            here, there = StudyFolder(folder / "study"), StudyFolder(alone / "study")
            assert sorted(here.records()) == list(range(7))
            for position in range(7):
                a, b = here.spectrum(position), there.spectrum(position)
                assert torch.equal(a.eigenvalues, b.eigenvalues)
                assert torch.equal(a.eigenvectors, b.eigenvectors)
        else:
            a, b = (Spectrum.load(f / f"{kind}.safetensors") for f in (folder, alone))
            torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-10, atol=1e-12)
            assert a.num_products == b.num_products
            assert bool(a.converged.all())


def test_two_processes_find_what_one_finds(alone: Path, tmp_path: Path) -> None:
    fit(2, tmp_path)
    assert_same(tmp_path, alone)
    ranks = {record["rank"] for record in StudyFolder(tmp_path / "study").records().values()}
    assert ranks == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 3)])
def test_a_fit_on_some_processes_goes_on_on_others(
    first: int, second: int, alone: Path, tmp_path: Path
) -> None:
    fit(first, tmp_path, "--steps", "3")
    fit(second, tmp_path)
    assert_same(tmp_path, alone)


def test_processes_that_do_not_solve_the_same_are_refused(tmp_path: Path) -> None:
    process = start(2, tmp_path, "--differ")
    output, _ = process.communicate(timeout=200)
    told = [line for line in output.splitlines() if line.startswith("told")]
    assert process.returncode == 0, output
    names = [*["model.weights_sha256"] * 3, "picture.sha256", "settings", "pictures"]
    assert [line.split(": ")[1] for line in told] == names, output
    assert all("in process 1; " in line for line in told)


def session(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to look at processes")
@pytest.mark.parametrize(
    ("kind", "victim"), [("pictures", 0), ("pictures", 1), ("columns", 0), ("average", 1)]
)
def test_when_one_process_is_killed_all_end_and_a_new_start_finds_the_same(
    kind: str, victim: int, alone: Path, tmp_path: Path
) -> None:
    process = start(2, tmp_path, kind, "--slow", "0.3")
    mark = tmp_path / f"started-{victim}"
    while not mark.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.7)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while session(process.pid):
        process.poll()
        assert time.monotonic() < deadline, "a process was left over"
        time.sleep(0.1)
    process.communicate()
    fit(2, tmp_path, kind)
    assert_same(tmp_path, alone, (kind,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "victims"), [("columns", (0,)), ("average", (1,)), ("columns", (0, 1))]
)
def test_sigterm_without_a_callback_of_ours_leaves_no_process(
    kind: str, victims: tuple[int, ...], tmp_path: Path
) -> None:
    process = start(2, tmp_path, kind, "--slow", "0.3")
    marks = [tmp_path / f"started-{victim}" for victim in victims]
    while not all(mark.exists() for mark in marks):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.7)
    for mark in marks:
        os.kill(int(mark.read_text()), signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while session(process.pid):  # the last one may still be at its exit
        assert time.monotonic() < deadline, "a process was left over"
        time.sleep(0.05)
    assert "Traceback" not in output


class Alone:
    world_size, global_rank = 1, 0


class Pair:
    world_size, global_rank = 2, 1


def test_a_lost_process_is_told_from_other_errors() -> None:
    def lost() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    def other() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RankLostError, match=r"rank 1.*again"):
        together(Pair(), lost, "fit again")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes"):
        together(Pair(), other, "fit again")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="gloo"):
        together(Alone(), lost, "fit again")  # type: ignore[arg-type]


LEAVING = """
import atexit, sys
import torch.distributed as dist
from eigenexp.distributed.ranks import leave_at_exit

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
leave_at_exit()
leave_at_exit()
atexit._run_exitfuncs()
assert not dist.is_initialized()
"""


def test_a_process_leaves_the_others_before_the_interpreter_shuts_down(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", LEAVING, str(tmp_path / "meeting")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
