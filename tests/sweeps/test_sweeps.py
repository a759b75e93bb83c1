"""Sweeps as a person meets them: combinations, failures, kills, and every launcher that is here."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from eigenexp.cli import main
from eigenexp.errors import ConfigError, RunNotFoundError
from eigenexp.runs.folder import list_runs
from eigenexp.spectrum import Spectrum
from eigenexp.sweeps import SweepFolder, find_sweep, list_sweeps
from eigenexp.sweeps import launchers as launchers_module
from eigenexp.sweeps.expanding import expand, split_hydra
from eigenexp.sweeps.launchers import available_cores, job_threads
from tests.processes import environment, run

SMALL = ["model=ln", "image.crop=[120,220,16,16]", "solver.tol=1e-2", "logger=none"]


def only_sweep(folder: Path) -> SweepFolder:
    (found,) = list_sweeps(folder / "mlruns")
    return found


def table(sweep: SweepFolder) -> list[dict[str, str]]:
    with sweep.table_path.open() as file:
        return list(csv.DictReader(file))


# -- what is a job ---------------------------------------------------------------------------------


def test_every_combination_in_hydras_order() -> None:
    jobs = expand(["model=ln,lg", "solver.k=range(1,4)", "image=camera", "+tags.a=choice(x,y)"])
    assert len(jobs) == 12
    assert jobs[0] == ["model=ln", "solver.k=1", "image=camera", "+tags.a=x"]
    assert jobs[1] == ["model=ln", "solver.k=1", "image=camera", "+tags.a=y"]
    assert jobs[-1] == ["model=lg", "solver.k=3", "image=camera", "+tags.a=y"]
    assert expand(["image.crop=[1,2,3,4],[5,6,7,8]"]) == [
        ["image.crop=[1,2,3,4]"],
        ["image.crop=[5,6,7,8]"],
    ]
    with pytest.raises(ConfigError, match="interval"):
        expand(["solver.tol=interval(0,1)"])


def test_hydras_own_overrides_are_told_from_a_jobs() -> None:
    own, others = split_hydra(["model=ln", "hydra/launcher=joblib", "+hydra.x.y=1", "hydrant=2"])
    assert own == ["hydra/launcher=joblib", "+hydra.x.y=1"]
    assert others == ["model=ln", "hydrant=2"]


def test_jobs_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers_module, "available_cores", lambda: 8)
    assert job_threads("basic", {}, 10) is None
    assert job_threads("joblib", {"n_jobs": 4}, 10) == 2
    assert job_threads("joblib", {"n_jobs": -1}, 10) == 1
    assert job_threads("joblib", {"n_jobs": 4}, 2) == 4
    assert job_threads("joblib", {"n_jobs": 100}, 100) == 1
    assert job_threads("submitit_local", {"cpus_per_task": None}, 4) == 2
    assert job_threads("submitit_local", {"cpus_per_task": 3}, 4) == 3
    assert job_threads("ray", {"ray": {"remote": {"num_cpus": 2}}}, 4) == 2
    assert job_threads("submitit_slurm", {}, 4) is None


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "model=ln,lx"], ["lx", "lgg"]),
        (["-m", "solver.kk=1,2"], ["solver.kk", "did you mean k?"]),
        (["-m", "solver.k=1,many"], ["solver.k", "many"]),
        (["-m", "hydra/launcher=jobli"], ["jobli", "did you mean joblib?"]),
        (["-m", "hydra/sweeper=optuna"], ["hydra/sweeper", "basic"]),
        (["-m", "hydra.launcher.x=1"], ["hydra.launcher.x"]),
        (["-m", "root=a,b"], ["root: expected one value"]),
        (["model=ln,lg"], ["model", "--multirun"]),
        (["--retry-failed", "last"], ["last", "newest sweeps: none"]),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
    arguments: list[str], words: list[str], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    for word in words:
        assert word in line
    assert captured.out == ""
    assert not list(in_tmp.glob("mlruns/sweeps/*"))


@pytest.mark.parametrize(
    ("name", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")]
)
def test_an_absent_launcher_names_its_extra(
    name: str,
    extra: str,
    in_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launchers_module, "_installed", lambda package: False)
    assert main(["fit", "-m", f"hydra/launcher={name}", "model=ln,lg"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"pip install 'eigenexp[{extra}]'" in line


# -- running ---------------------------------------------------------------------------------------


def test_failed_jobs_are_listed_and_alone_run_again(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    np.save(in_tmp / "a.npy", picture)
    command = ["fit", "-m", "model=ln", "image=file", "image.source=a.npy,b.npy", "solver.k=1,2"]
    assert main([*command, "solver.tol=1e-2", "logger=none"]) == 1
    captured = capsys.readouterr()
    sweep = only_sweep(in_tmp)
    assert "Traceback" not in captured.out + captured.err
    assert "2 jobs of 4 not finished:" in captured.out
    assert f"eigenexp fit --retry-failed {sweep.sweep_id}" in captured.out
    assert [job.state for job in sweep.jobs()] == ["finished", "finished", "failed", "failed"]
    assert "b.npy" in sweep.job(2).facts["error"]
    lines = table(sweep)
    assert [(line["k"], line["status"]) for line in lines] == [
        ("1", "converged"),
        ("2", "converged"),
        ("1", "failed"),
        ("2", "failed"),
    ]
    assert [line["image.source"] for line in lines] == ["a.npy", "a.npy", "b.npy", "b.npy"]
    spectrum = Spectrum.load(list_runs(in_tmp / "mlruns")[0].results / "spectrum.safetensors")
    assert float(lines[0]["lambda_max"]) == pytest.approx(float(spectrum.eigenvalues[0]))
    assert float(lines[0]["lambda_min"]) == pytest.approx(float(spectrum.eigenvalues[-1]))
    assert int(lines[0]["products"]) == spectrum.num_products
    assert float(lines[0]["worst_residual"]) <= 1e-2
    frame = pd.read_parquet(sweep.path / "table.parquet")
    assert frame["status"].tolist() == [line["status"] for line in lines]
    assert frame["products"].isna().tolist() == [False, False, True, True]

    assert main(["show", sweep.sweep_id[:-2]]) == 0
    assert "2 jobs of 4 not finished:" in capsys.readouterr().out

    kept = [sweep.job_path(i).read_bytes() for i in (0, 1)]
    np.save(in_tmp / "b.npy", picture[::-1])
    elsewhere = in_tmp / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)  # relative pictures are those of the folder the sweep was started in
    assert main(["fit", "--retry-failed", "last", "root=../mlruns"]) == 0
    captured = capsys.readouterr()
    assert "2 jobs of 4 by basic" in captured.out
    assert [sweep.job_path(i).read_bytes() for i in (0, 1)] == kept
    assert [line["status"] for line in table(sweep)] == ["converged"] * 4
    assert main(["fit", "--resume", sweep.sweep_id, "root=../mlruns"]) == 0
    assert "nothing to run again" in capsys.readouterr().out
    assert main(["fit", "--retry-failed", "last", "root=../mlruns", "solver.k=9"]) == 1
    assert "keep their settings" in capsys.readouterr().err


def test_a_defect_of_a_model_fails_its_job_alone(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["fit", "-m", "model=custom", "model._target_=torch.nn.Identity,torch.nn.LSTM", *SMALL[1:]]
    )
    assert code == 1
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    states = [job.state for job in only_sweep(in_tmp).jobs()]
    assert states == ["finished", "failed"]


def test_runs_are_nested_under_one_mlflow_run(tmp_path: Path) -> None:
    small = [a for a in SMALL if not a.startswith("logger")]
    done = run(tmp_path, "fit", "-m", *small, "logger=mlflow", "solver.k=1,500")
    assert done.returncode == 1, done.stderr
    from eigenexp.tracking import local_store

    client = local_store(tmp_path / "mlruns").client
    parent_id = only_sweep(tmp_path).manifest()["parent_run_id"]
    parent = client.get_run(parent_id)
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["jobs_finished"] == 1
    names = {artifact.path for artifact in client.list_artifacts(parent_id, "sweep")}
    assert names == {"sweep/table.csv", "sweep/table.parquet", "sweep/manifest.json"}
    runs = client.search_runs([parent.info.experiment_id])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent_id]
    assert len(runs) == len(children) + 1
    assert [r.data.tags["eigenexp.sweep_job"] for r in children if r.info.status == "FINISHED"] == [
        "0"
    ]


# -- kills -----------------------------------------------------------------------------------------

STEPS = 300
LONG = [
    *("solver=power", "solver.tol=1e-12", "image.crop=[120,220,16,16]", "logger=none", "model=ln"),
    *("callbacks.checkpoint_every=10", "callbacks.checkpoint_seconds=null"),
    f"trainer.max_steps={STEPS}",
]


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "eigenexp.cli", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_kill_minus_nine_then_only_the_unfinished_go_on(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = in_tmp
    process = start(tmp_path, "fit", "-m", *LONG, "solver.seed=0,1,2")
    jobs = tmp_path / "mlruns" / "sweeps"

    def second_job_has_a_checkpoint() -> bool:
        return bool(list(jobs.glob("*/jobs/00001.json"))) and (
            len(list(tmp_path.glob("mlruns/checkpoints/*/last.ckpt"))) == 2
        )

    wait_until(second_job_has_a_checkpoint, process)
    process.kill()
    process.communicate()
    sweep = only_sweep(tmp_path)
    assert [job.state for job in sweep.jobs()] == ["finished", "lost", "pending"]
    before = {run.run_id for run in list_runs(tmp_path / "mlruns")}
    first = sweep.job_path(0).read_bytes()
    assert main(["fit", "--retry-failed", "last"]) == 3
    assert "2 jobs of 3 by basic" in capsys.readouterr().out
    assert [job.state for job in sweep.jobs()] == ["finished"] * 3
    assert sweep.job_path(0).read_bytes() == first
    # The killed job went on in its own run, and ended where an unbroken one does.
    assert sweep.job(1).facts["run_id"] in before
    assert len(list_runs(tmp_path / "mlruns")) == 3
    whole = tmp_path / "whole"
    whole.mkdir()
    os.chdir(whole)
    assert main(["fit", *LONG, "solver.seed=1", "trainer.enable_progress_bar=false"]) == 3
    results = tmp_path / "mlruns" / "results" / sweep.job(1).facts["run_id"]
    a = Spectrum.load(results / "spectrum.safetensors")
    b = Spectrum.load(list_runs(whole / "mlruns")[0].results / "spectrum.safetensors")
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert a.num_products == b.num_products


def test_ctrl_c_saves_the_job_and_begins_no_other(tmp_path: Path) -> None:
    process = start(tmp_path, "fit", "-m", *LONG, "trainer.max_steps=100000", "solver.seed=0,1")
    wait_until(lambda: list(tmp_path.glob("mlruns/checkpoints/*/last.ckpt")), process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert [job.state for job in only_sweep(tmp_path).jobs()] == ["stopped", "pending"]
    assert "2 jobs of 2 not finished" in output


def test_a_job_another_process_runs_is_left_alone(in_tmp: Path) -> None:
    sweep = SweepFolder(in_tmp / "mlruns", "s")
    sweep.create([["solver.k=1"]], rows=[{}], cwd=str(in_tmp), parent_run_id=None)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from eigenexp.sweeps import SweepFolder\n"
            "s = SweepFolder(Path(sys.argv[1]), 's')\n"
            "with s.hold(0) as held:\n"
            "    s.write_job(0, 'running'); print(held, flush=True); sys.stdin.read()",
            str(in_tmp / "mlruns"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert sweep.job(0).state == "running"
    holder.kill()
    holder.communicate()
    assert sweep.job(0).state == "lost"


def test_sweeps_are_named_by_id_prefix_last_or_folder(tmp_path: Path) -> None:
    for name in ("20260101-a", "20260102-b"):
        SweepFolder(tmp_path, name).create([[]], rows=[{}])
    assert find_sweep("last", tmp_path).sweep_id == "20260102-b"
    assert find_sweep("20260101", tmp_path).sweep_id == "20260101-a"
    assert find_sweep(str(tmp_path / "sweeps" / "20260101-a"), ".").sweep_id == "20260101-a"
    with pytest.raises(RunNotFoundError, match="one sweep, got 2"):
        find_sweep("2026", tmp_path)
    with pytest.raises(RunNotFoundError, match="newest sweeps: 20260102-b"):
        find_sweep("x", tmp_path)


# -- the other launchers ---------------------------------------------------------------------------


def check_two_jobs(folder: Path, done: subprocess.CompletedProcess[str], threads: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    jobs = only_sweep(folder).jobs()
    assert [job.state for job in jobs] == ["finished"] * 2
    assert len({job.facts["pid"] for job in jobs}) == 2
    assert [job.facts["threads"] for job in jobs] == [threads] * 2
    assert [line["k"] for line in table(only_sweep(folder))] == ["1", "2"]
    assert done.stdout.count("/2] ") == 2


@pytest.mark.slow
def test_joblib(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = run(
        tmp_path,
        *("fit", "-m", *SMALL, "solver.k=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    )
    check_two_jobs(tmp_path, done, max(1, available_cores() // 2))


@pytest.mark.slow
def test_submitit_local(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = run(tmp_path, "fit", "-m", *SMALL, "solver.k=1,2", "hydra/launcher=submitit_local")
    check_two_jobs(tmp_path, done, max(1, available_cores() // 2))


@pytest.mark.slow
def test_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    launcher = ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"]
    done = run(tmp_path, "fit", "-m", *SMALL, "solver.k=1,2", *launcher)
    check_two_jobs(tmp_path, done, 1)


SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
open({log!r}, "a").write(text)
tasks = re.search(r"#SBATCH --array=(\\d+)-(\\d+)", text)
numbers = range(int(tasks[1]), int(tasks[2]) + 1) if tasks else [None]
for task in numbers:
    job = "77" if task is None else f"{{78 + task}}"
    environment = dict(os.environ, SLURM_JOB_ID=job, SLURM_JOB_NUM_NODES="1", SLURM_NTASKS="1",
        SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_CPUS_PER_TASK="2")
    if task is not None:
        environment.update(SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID=str(task))
    subprocess.Popen(["bash", sys.argv[-1]], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job 77")
"""
SRUN = """#!{python}
import os, subprocess, sys
arguments = sys.argv[1:]
while arguments[0].startswith("-"):
    arguments = arguments[2 if arguments[0] in ("--output", "--error") else 1:]
sys.exit(subprocess.call(arguments))
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
"""


@pytest.fixture
def slurm(tmp_path: Path) -> str:
    """PATH with an ``sbatch``, ``srun`` and ``sacct`` that run jobs on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        path = folder / name
        filled = text.replace("{python}", sys.executable)
        path.write_text(filled.replace("{log!r}", repr(str(tmp_path / "sbatch.log"))))
        path.write_text(path.read_text().replace("{{", "{").replace("}}", "}"))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
def test_slurm(tmp_path: Path, slurm: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = [
        *("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"),
        *("hydra.launcher.timeout_min=7", "hydra.launcher.cpus_per_task=2"),
    ]
    done = run(tmp_path, "fit", "-m", *SMALL, "solver.k=1,2", *launcher, PATH=slurm)
    check_two_jobs(tmp_path, done, 2)
    script = (tmp_path / "sbatch.log").read_text()
    for line in ("--partition=gpu", "--time=7", "--cpus-per-task=2", "--array=0-1"):
        assert line in script
    manifest = json.loads(only_sweep(tmp_path).manifest_path.read_text())
    assert manifest["status"] == "finished"
