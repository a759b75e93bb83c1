"""Pictures by the folder from the command line: real processes, a real store, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigenexp.cli import main
from eigenexp.runs.folder import list_runs
from eigenexp.runs.table import run_rows
from eigenexp.study.folder import StudyFolder
from eigenexp.tracking.children import ChildRuns

SETTINGS = [
    "image=folder",
    "image.path=photos",
    "model=lg",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "threads=1",
    "study.batch_size=2",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eigenexp.cli", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture
def photos(in_tmp: Path) -> Path:
    import eigenexp as ee

    (in_tmp / "photos").mkdir()
    values = ee.load_picture("camera").tensor[0, 0].numpy()
    for i in range(4):
        crop = values[100 + 30 * i :, 150:][:20, :20]
        Image.fromarray((crop * 255).astype(np.uint8)).save(in_tmp / "photos" / f"p{i}.png")
    return in_tmp


def only_study(folder: Path) -> StudyFolder:
    (found,) = list_runs(folder / "mlruns")
    return StudyFolder(found.results)


def test_a_folder_becomes_one_run_with_a_child_a_picture(photos: Path) -> None:
    from eigenexp.tracking import local_store

    (photos / "photos" / "p9.png").write_text("junk")
    (photos / "photos" / "q.exr").write_text("another format")
    done = run(photos, "fit", *SETTINGS, "solver.tol=1e-2", "logger=mlflow")
    assert done.returncode == 1, done.stderr  # one picture failed
    assert "1 file left out: q.exr" in done.stdout
    assert "4 of 5 pictures solved" in done.stdout
    assert "failed: " in done.stdout
    assert "study.retry_failed=true" in done.stdout
    study = only_study(photos)
    assert sorted(study.records()) == [0, 1, 2, 3, 4]
    client = local_store(photos / "mlruns").client
    (parent,) = list_runs(photos / "mlruns")
    experiment = client.get_run(parent.run_id).info.experiment_id
    children = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{parent.run_id}'", max_results=50
    )
    by_position = {int(c.data.tags["eigenexp.position"]): c for c in children}
    assert len(children) == len(by_position) == 5
    for position, record in study.records().items():
        child = by_position[position]
        if record["status"] == "failed":
            assert child.info.status == "FAILED"
            continue
        assert child.info.status == "FINISHED"
        pair = record["pairs"][0]
        assert child.data.metrics[f"eigenvalue/{pair['index']}"] == pair["eigenvalue"]
        files = {a.path for a in client.list_artifacts(child.info.run_id, "results")}
        assert "results/spectrum.safetensors" in files
        assert client.get_metric_history(child.info.run_id, "worst_residual")
    run_ = client.get_run(parent.run_id)
    assert run_.info.status == "FINISHED"
    assert run_.data.metrics["pictures_done"] == 5
    assert "results/table.parquet" in {
        a.path for a in client.list_artifacts(parent.run_id, "results")
    }
    shown = run(photos, "show", "last")
    assert "5 of 5 pictures finished" in shown.stdout
    assert "p0 " in shown.stdout
    (row,) = run_rows([parent])
    solved = [record for record in study.records().values() if record["status"] == "solved"]
    assert row["products"] == sum(record["num_products"] for record in solved)
    assert row["worst_residual"] == max(
        pair["relative_residual"] for record in solved for pair in record["pairs"]
    )


def test_the_end_is_recorded_behind_the_child_runs(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead before it has them all, a study does not say that it is finished."""
    seen = []
    close = ChildRuns.close

    def watched(children: ChildRuns, patience: float) -> bool:
        (run,) = list_runs(photos / "mlruns")
        seen.append(run.read_record()["status"])
        return close(children, patience)

    monkeypatch.setattr(ChildRuns, "close", watched)
    assert main(["fit", *SETTINGS, "solver.tol=1e-2", "logger=mlflow"]) == 0
    (run,) = list_runs(photos / "mlruns")
    assert (seen, run.read_record()["status"]) == (["RUNNING"], "FINISHED")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["image=folder"], ["image.path"]),
        (["image=folder", "image.path=*.gif"], ["glob"]),
        (["image=folder", "image.path=photos", "parallel=columns"], ["pictures or average"]),
        (["parallel=average"], ["columns"]),
        (["image=folder", "image.path=photos", "study.batch_size=0"], ["batch_size"]),
        (["image=folder", "image.path=photos", "solver.k=9999"], ["k: expected"]),
        (["image=folder", "image.path=photos", "study.cohorts=2"], ["did you mean cohort"]),
    ],
)
def test_a_mistake_is_one_line_and_a_non_zero_exit(
    arguments: list[str], words: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["logger=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    assert main(["fit", *arguments, *quiet]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "eigenexp: " in line]
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0]


def test_the_same_command_goes_on_with_an_unfinished_study(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["fit", *SETTINGS, "solver.tol=1e-2", "logger=none", "resume=auto"]
    assert main([*again, "trainer.max_time=00:00:00:00"]) == 124  # after one turn
    assert "no unfinished run" in capsys.readouterr().out
    (begun,) = list_runs(photos / "mlruns")
    record = begun.read_record()
    assert (record["status"], record["stop_reason"]) == ("KILLED", "max_time")
    with begun.hold():
        assert main([*again, "solver.k=2", "trainer.max_time=00:00:00:00"]) == 124
        assert main(["resume", begun.run_id]) == 1
        assert "another process" in capsys.readouterr().err
    assert main([*again, "study.checkpoint_seconds=5"]) == 0
    assert f"going on with the unfinished run {begun.run_id}" in capsys.readouterr().out
    assert sorted(StudyFolder(begun.results).records()) == [0, 1, 2, 3]
    assert begun.read_record()["status"] == "FINISHED"
    assert len(list_runs(photos / "mlruns")) == 2
    assert main([*again, "trainer.max_time=00:00:00:00"]) == 124  # a finished one stays as it is
    assert len(list_runs(photos / "mlruns")) == 3


@pytest.mark.slow
def test_killed_and_resumed_the_study_is_the_same_and_signals_stop_it(photos: Path) -> None:
    settings = [*SETTINGS, "solver.tol=1e-6", "trainer.precision=64-true", "logger=none"]
    whole = run(photos, "fit", *settings, "root=whole")
    assert whole.returncode == 0, whole.stderr
    for turn, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        first = ("fit", *settings, "study.checkpoint_seconds=0")
        process = subprocess.Popen(
            command(*(first if turn == 0 else ("resume", "last"))),
            cwd=photos,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(list(photos.glob("mlruns/results/*/pictures/*/record.json"))) < turn + 1:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=100)
        if number == signal.SIGTERM and process.returncode != 0:
            assert process.returncode == 143, errors
            assert "eigenexp resume" in output
    resumed = run(photos, "resume", "last")
    assert resumed.returncode == 0, resumed.stderr
    (reference,) = (photos / "whole" / "results").iterdir()
    a, b = only_study(photos), StudyFolder(reference)
    for position in range(4):
        assert torch.equal(a.spectrum(position).eigenvectors, b.spectrum(position).eigenvectors)


@pytest.mark.slow
def test_two_processes_from_the_command_line(photos: Path) -> None:
    study = run(photos, "fit", *SETTINGS, "solver.tol=1e-2", "logger=none", "trainer.devices=2")
    assert study.returncode == 0, study.stderr
    assert study.stdout.count("4 of 4 pictures solved") == 1
    assert len(list_runs(photos / "mlruns")) == 1
    mean = run(
        photos,
        "fit",
        *SETTINGS,
        "parallel=average",
        "solver.tol=1e-2",
        "logger=none",
        "trainer.devices=2",
        "root=mean",
    )
    assert mean.returncode == 0, mean.stderr
    assert mean.stdout.count("results:") == 1
    assert len(list_runs(photos / "mean")) == 1


def test_the_summary_says_why_pictures_are_not_proven(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["solver.max_products=12", "solver=lanczos", "solver.tol=1e-6", "logger=none"]
    assert main(["fit", *SETTINGS, *budget]) == 3
    output = capsys.readouterr().out
    assert "4 of 4 pictures solved, every pair proven at 0" in output
    assert "not proven at 4: the budget of products is spent" in output
    assert "study.retry_unproven=true solver." in output
    more = ["resume", "last", "solver.max_products=500"]
    assert main(more) == 3  # a picture with a record is not solved again
    assert "every pair proven at 0" in capsys.readouterr().out
    assert main([*more, "study.retry_unproven=true"]) == 0
    output = capsys.readouterr().out
    assert "every pair proven at 4" in output
    assert "not proven" not in output
