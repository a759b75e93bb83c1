"""Sweeps whose jobs take several processes, and what jobs of a machine share out."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eigenexp.experiments.config import compose_config
from eigenexp.runs.folder import list_runs
from eigenexp.spectrum import Spectrum
from eigenexp.sweeps import SweepFolder, list_sweeps, retry
from eigenexp.sweeps.job import SweepJob
from eigenexp.sweeps.launchers import job_gpus
from eigenexp.sweeps.resources import num_processes, visible_gpus
from eigenexp.tracking import local_store
from tests.processes import run, start

SMALL = ["model=ln", "image.crop=[120,220,16,16]", "logger=none", "threads=1"]
TWO = [*SMALL, "trainer.devices=2", "trainer.accelerator=cpu", "parallel=columns",
       "solver=power", "solver.which=top"]  # fmt: skip


def only_sweep(folder: Path) -> SweepFolder:
    (found,) = list_sweeps(folder / "mlruns")
    return found


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_of_a_job() -> None:
    def count(*overrides: str) -> int:
        return num_processes(compose_config(["trainer=cpu", *overrides]))

    assert count() == 1
    assert count("trainer.devices=3") == 3
    assert count("trainer.devices=2", "trainer.num_nodes=2") == 4
    assert count("trainer.devices=2", "trainer.strategy=warp") == 1  # the job tells


def test_threads_of_a_job_are_those_of_all_its_processes() -> None:
    job = SweepJob("r", "s", threads=8)
    settings = compose_config(["trainer=cpu", "trainer.devices=4"])
    assert job.threads_for(settings) == 2
    assert job.threads_for(compose_config(["trainer=cpu"])) == 8


TAKE = """
import os, sys, time
from pathlib import Path
from eigenexp.sweeps.resources import take_gpu
names = sys.argv[1].split(",")
sys.stdin.readline()
first, again = take_gpu(names), take_gpu(names)
assert first == again == os.environ["CUDA_VISIBLE_DEVICES"]
Path(sys.argv[2]).write_text(first)
sys.stdin.read()
"""


@pytest.mark.slow
def test_each_process_takes_a_gpu_of_its_own_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def place(number: int) -> Path:
        return tmp_path / str(number)

    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, "4,7", str(place(number))],
            stdin=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for number in range(4)
    ]

    def take(number: int) -> str:
        stdin = processes[number].stdin
        assert stdin is not None
        stdin.write("now\n")
        wait_for(lambda: place(number).exists() and place(number).read_text(), processes[number])
        return place(number).read_text()

    gpus = take(0), take(1)
    assert set(gpus) == {"4", "7"}
    assert take(2) in gpus
    processes[0].kill()
    processes[0].communicate()
    assert take(3) == gpus[0]
    for process in processes[1:]:
        process.communicate()
        assert process.returncode == 0


def test_gpus_are_shared_out_where_no_launcher_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ("2", "5")
    assert job_gpus("joblib") == job_gpus("submitit_local") == ("2", "5")
    assert job_gpus("basic") == job_gpus("ray") == job_gpus("submitit_slurm") == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert job_gpus("joblib") == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


@pytest.mark.slow
def test_jobs_of_two_processes_are_one_sweep(tmp_path: Path) -> None:
    done = run(tmp_path, "fit", "-m", *TWO, "solver.tol=1e-2", "solver.k=1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    jobs = only_sweep(tmp_path).jobs()
    assert [job.state for job in jobs] == ["finished"] * 2
    assert len(list_runs(tmp_path / "mlruns")) == 2
    assert done.stdout.count("sweep ") == 1
    assert done.stdout.count("/2] ") == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_a_sweep_stopped_in_a_job_of_two_processes_goes_on(how: str, tmp_path: Path) -> None:
    endless = ["solver.tol=1e-12", "trainer.max_steps=400", "callbacks.checkpoint_every=10"]
    process = start(tmp_path, "fit", "-m", *TWO, *endless, "solver.k=1,2", "threads=1")
    wait_for(lambda: list(tmp_path.glob("mlruns/checkpoints/*/last.ckpt")), process)
    if how == "ctrl-c":
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "run them again: eigenexp fit --retry-failed" in output
    else:
        process.kill()
        process.communicate()
    sweep = only_sweep(tmp_path)
    deadline = time.monotonic() + 30
    while sweep.job(0).state == "running":  # its processes see that the sweep is gone
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [job.state for job in sweep.jobs()] == ["stopped", "pending"]
    (begun,) = list_runs(tmp_path / "mlruns")
    at = json.loads((begun.checkpoints / "last.metadata.json").read_text())["step"]
    assert 0 < at < 400
    done = run(tmp_path, "fit", "--retry-failed", "last")
    assert done.returncode == 3, done.stdout + done.stderr
    assert [job.state for job in sweep.jobs()] == ["finished"] * 2
    assert len(list_runs(tmp_path / "mlruns")) == 2
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    assert run(unbroken, "fit", *TWO, *endless, "solver.k=1").returncode == 3
    (other,) = list_runs(unbroken / "mlruns")
    a, b = (Spectrum.load(r.results / "spectrum.safetensors") for r in (begun, other))
    assert a.num_products == b.num_products
    assert a.eigenvalues.equal(b.eigenvalues)
    assert a.eigenvectors.equal(b.eigenvectors)


SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
tasks = int(re.search(r"#SBATCH --ntasks-per-node=(\\d+)", text)[1])
environment = dict(os.environ, SLURM_JOB_ID="4711", SLURM_JOB_NUM_NODES="1", SLURM_NNODES="1",
    SLURM_NTASKS=str(tasks), SLURM_NTASKS_PER_NODE=str(tasks), SLURM_NODEID="0", SLURM_PROCID="0",
    SLURM_LOCALID="0", SLURM_CPUS_PER_TASK="1", SLURM_JOB_NODELIST="127.0.0.1",
    SLURM_NODELIST="127.0.0.1", SLURM_JOB_NAME="sweep")
subprocess.Popen(["bash", sys.argv[-1]], env=environment, stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job 4711")
"""
SRUN = """#!{python}
import os, subprocess, sys
arguments = sys.argv[1:]
while arguments[0].startswith("-"):
    arguments = arguments[2 if arguments[0] in ("--output", "--error") else 1:]
tasks = [
    subprocess.Popen(arguments, env=dict(os.environ, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)))
    for i in range(int(os.environ["SLURM_NTASKS"]))
]
sys.exit(max(task.wait() for task in tasks))
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
"""


@pytest.mark.slow
def test_the_tasks_of_a_slurm_job_take_part_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        path = folder / name
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2"]
    done = run(
        tmp_path,
        *("fit", "-m", *TWO, "solver.tol=1e-2", "solver.k=2", *launcher),
        PATH=f"{folder}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = only_sweep(tmp_path).jobs()
    assert job.state == "finished"
    (found,) = list_runs(tmp_path / "mlruns")
    assert found.run_id == job.facts["run_id"]
    assert Spectrum.load(found.results / "spectrum.safetensors").converged.all()


@pytest.mark.slow
def test_a_sweep_that_died_behind_its_last_job_ends_its_own_run(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = local_store(in_tmp / "mlruns")
    parent = store.create_run("eigenexp", "sweep s")
    store.delete_empty(parent)  # as who sends for a dead process does where nothing came of a run
    folder = SweepFolder(store.root, "s")
    folder.create([["threads=1"]], rows=[{}], logger={"mlflow": True, "tracking_uri": None})
    folder.update(parent_run_id=parent, parent_ended=False)
    row = {"status": "converged", "products": 3, "seconds": 1.0}
    folder.write_job(0, "finished", row=row)
    assert retry("s", root=store.root, say=lambda _: None) == 0
    run = store.client.get_run(parent)
    assert run.info.lifecycle_stage == "active"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["jobs_finished"] == 1
    assert "1 job" in run.data.tags["mlflow.note.content"]
    assert folder.manifest()["parent_ended"]
