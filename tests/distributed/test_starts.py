"""Runs of several processes as schedulers start them: srun, torchrun, a command a node."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eigenexp.runs.folder import RunFolder, list_runs
from eigenexp.spectrum import Spectrum
from eigenexp.study.folder import StudyFolder
from tests.processes import command, environment, only_run, run

COMMON = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "threads=1"]
COLUMNS = ["image.crop=[120,220,20,20]", "parallel=columns", "solver=power", "solver.which=top",
           "solver.k=2", "logger=none"]  # fmt: skip
ENDLESS = [*COLUMNS, "solver.tol=1e-12", "trainer.max_steps=600", "callbacks.checkpoint_every=10"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def srun(
    folder: Path, *arguments: str, nodes: int = 1, tasks: int = 2
) -> list[subprocess.Popen[str]]:
    """Start the tasks of a job as SLURM does, all of them on this machine."""
    port = str(free_port())
    # Of a run within this process, which has nothing to do with the job.
    decided = {"pid": os.getpid(), "decisions": {"1": '{"value": null, "problem": null}'}}
    processes = []
    for rank in range(nodes * tasks):
        variables = environment(
            SLURM_JOB_ID="4711",
            SLURM_JOB_NAME="study",
            SLURM_NTASKS=str(nodes * tasks),
            SLURM_NTASKS_PER_NODE=str(tasks),
            SLURM_NNODES=str(nodes),
            SLURM_NODELIST="127.0.0.1",
            SLURM_CPUS_PER_TASK="1",
            SLURM_NODEID=str(rank // tasks),
            SLURM_LOCALID=str(rank % tasks),
            SLURM_PROCID=str(rank),
            MASTER_PORT=port,
            EIGENEXP_DECIDED=json.dumps(decided),
        )
        shape = [f"trainer.num_nodes={nodes}", f"trainer.devices={tasks}"]
        processes.append(
            subprocess.Popen(
                command(*arguments, *(shape if arguments[0] == "fit" else [])),
                cwd=folder,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def wait(processes: Sequence[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """Wait for all; the first one's exit code is the run's."""
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.communicate()
        raise
    codes = [process.returncode for process in processes]
    assert codes == [code, *[0] * (len(codes) - 1)], outputs
    return outputs


def make_photos(folder: Path, side: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(5):
        pixels = generator.integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 16)


def assert_equal_results(first: RunFolder, second: RunFolder) -> None:
    a, b = (Spectrum.load(r.results / "spectrum.safetensors") for r in (first, second))
    assert a.num_products == b.num_products
    assert a.eigenvalues.equal(b.eigenvalues)
    assert a.eigenvectors.equal(b.eigenvectors)


@pytest.mark.parametrize(
    ("number", "rank"),
    [
        (signal.SIGUSR1, 1),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
    ],
)
def test_srun_stopped_and_started_again_goes_on_with_its_own_run(
    number: int, rank: int, tmp_path: Path
) -> None:
    # An older run of these settings, which somebody else works on.
    arguments = ["fit", *COMMON, *ENDLESS, "resume=auto"]
    first = srun(tmp_path, *arguments)
    marks = tmp_path / "mlruns" / "checkpoints"
    deadline = time.monotonic() + 100
    while not list(marks.glob("*/last.ckpt")):
        assert all(process.poll() is None for process in first), wait(first)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first[rank].send_signal(number)
    outputs = wait(first, 128 + number)
    assert "no unfinished run of these settings" in outputs[0]
    assert (
        outputs[1].strip()
        == f"{signal.Signals(number).name}: stopping after step "
        + (outputs[1].strip().split("step ")[1])
    )
    begun = only_run(tmp_path)
    step = json.loads((begun.checkpoints / "last.metadata.json").read_text())["step"]
    assert 0 < step < 600
    outputs = wait(srun(tmp_path, *arguments), 3)
    assert f"going on with the unfinished run {begun.run_id}" in outputs[0]
    assert outputs[1] == ""
    assert only_run(tmp_path).run_id == begun.run_id
    alone = tmp_path / "alone"
    alone.mkdir()
    assert run(alone, "fit", *COMMON, *ENDLESS, "trainer.devices=2").returncode == 3
    assert_equal_results(begun, only_run(alone))


@pytest.mark.slow
def test_two_jobs_that_start_at_once_never_share_a_run(tmp_path: Path) -> None:
    """Each process of a job goes on with what its own first process took."""
    settings = [*COMMON, *ENDLESS, "trainer.devices=2"]
    for _ in range(2):
        code = run(tmp_path, "fit", *settings, "trainer.max_time=00:00:00:01").returncode
        assert code == 124
    before = {found.run_id for found in list_runs(tmp_path / "mlruns")}
    arguments = ["fit", *settings, "resume=auto"]
    jobs = [srun(tmp_path, *arguments), srun(tmp_path, *arguments)]
    taken = set()
    for job in jobs:
        output = wait(job, 3)[0]
        taken.add(output.split("unfinished run ")[1].split(",")[0])
    assert taken == before
    first, second = list_runs(tmp_path / "mlruns")
    assert_equal_results(first, second)


@pytest.mark.slow
def test_a_study_stopped_on_two_tasks_goes_on_on_three(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 32)  # which take a while
    study = [*COMMON, "image=folder", f"image.path={photos}", "logger=none", "solver.tol=1e-6",
             "solver=power", "study.checkpoint_seconds=0.1", "resume=auto"]  # fmt: skip
    first = srun(tmp_path, "fit", *study)
    while not list(tmp_path.glob("mlruns/results/*/cohorts/*.ckpt")):
        assert all(process.poll() is None for process in first), wait(first)
        time.sleep(0.02)
    first[1].send_signal(signal.SIGTERM)
    wait(first, 143)
    begun = only_run(tmp_path)
    assert len(StudyFolder(begun.results).records()) < 5
    resumed = ["resume", "last", "trainer.devices=3"]
    assert wait(srun(tmp_path, *resumed, tasks=3))
    records = StudyFolder(begun.results).records()
    assert sorted(records) == list(range(5))
    alone = tmp_path / "alone"
    alone.mkdir()
    run(alone, "fit", *study)
    other = StudyFolder(only_run(alone).results)
    for position in range(5):
        a, b = StudyFolder(begun.results).spectrum(position), other.spectrum(position)
        assert a.eigenvectors.equal(b.eigenvectors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("torchrun", "pictures"),
        ("torchrun", "columns"),
        ("nodes", "pictures"),
        ("nodes", "columns"),
        ("slurm nodes", "average"),
    ],
)
def test_other_ways_to_start(how: str, kind: str, photos: Path, tmp_path: Path) -> None:
    many = ["image=folder", f"image.path={photos}", "logger=none", "solver.tol=1e-3"]
    settings = {
        "pictures": many,
        "columns": [*COLUMNS, "solver.tol=1e-3"],
        "average": [*many, "parallel=average"],
    }[kind]
    arguments = ["fit", *COMMON, *settings]
    if how == "torchrun":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        launcher += [f"--master-port={free_port()}", "-m", "eigenexp.cli"]
        done = subprocess.run(
            [*launcher, *arguments, "trainer.devices=2"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        output = done.stdout
    elif how == "nodes":
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        processes = [
            subprocess.Popen(
                command(*arguments, "trainer.devices=2", "trainer.num_nodes=2"),
                cwd=tmp_path,
                env=environment(**meeting, NODE_RANK=str(node)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node in (0, 1)
        ]
        output = wait(processes)[0]
    else:
        output = wait(srun(tmp_path, *arguments, nodes=2, tasks=1))[0]
    found = only_run(tmp_path)
    assert output.count(f"run {found.run_id}: ") == 1
    if kind == "pictures":
        records = StudyFolder(found.results).records()
        assert [record["status"] for record in records.values()] == ["solved"] * 5
    else:
        assert Spectrum.load(found.results / "spectrum.safetensors").converged.all()


def test_a_rank_without_a_meeting_place_is_told_so(tmp_path: Path) -> None:
    done = run(tmp_path, "resume", "last", LOCAL_RANK="1")
    assert done.returncode == 1
    assert done.stderr.startswith("eigenexp: rank: expected a process started by Lightning")
    assert len(done.stderr.splitlines()) == 1
    assert "LOCAL_RANK" not in os.environ


UNSEEDED = """
import torch

class Unseeded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.seed()  # what a model of one's own may do, whatever seed it is built under
        self.filters = torch.nn.Conv2d(1, 4, 5)

    def forward(self, x):
        return self.filters(x).tanh()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["columns", "pictures"])
def test_a_model_without_a_seed_is_told_in_one_line(
    kind: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "unseeded.py").write_text(UNSEEDED)
    many = ["image=folder", f"image.path={photos}", "logger=none"]
    settings = COLUMNS if kind == "columns" else many
    model = ["model=custom", "model._target_=unseeded.Unseeded", "trainer.devices=2"]
    done = run(tmp_path, "fit", *COMMON, *settings, *model, PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("eigenexp: model.weights_sha256: expected the same in all 2")
    assert only_run(tmp_path).read_record()["status"] == "FAILED"
