"""Runs as they lie on disk: by id, by folder, whole, half and damaged."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eigenexp as ee
from eigenexp.callbacks.results import convergence_table
from eigenexp.checkpoints.files import CheckpointWarning
from eigenexp.cli import main
from eigenexp.errors import CheckpointError, ImageError, RunNotFoundError
from eigenexp.modules.study import StudyModule
from eigenexp.pictures.picture import load_picture
from eigenexp.pictures.saving import load_saved_picture, save_picture
from eigenexp.report import load_run, load_runs, render_report
from eigenexp.report.sources import read_convergence
from eigenexp.report.unfinished import spectrum_so_far
from eigenexp.runs.folder import RunFolder
from eigenexp.sweeps.manifest import SweepFolder
from eigenexp.tracking import local_store
from tests.training import quiet_trainer

from .conftest import make_history, make_spectrum


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run under ``mlruns``."""
    folder = RunFolder(tmp_path / "mlruns", "0a1b2c3d4e")
    folder.results.mkdir(parents=True)
    picture = load_picture("camera", crop=[0, 0, 12, 16])
    spectrum = make_spectrum().with_metadata({"picture": picture.record})
    spectrum.save(folder.results / "spectrum.safetensors")
    save_picture(picture, folder.results / "picture.safetensors")
    (folder.results / "convergence.csv").write_text(convergence_table(make_history()))
    folder.write_record(title="Net at camera", status="FINISHED", config={"root": "x"})
    return folder


@pytest.mark.parametrize("by", ["id", "start", "last", "results", "checkpoints"])
def test_a_run_is_read_whole(run: RunFolder, by: str) -> None:
    name = {"id": run.run_id, "start": "0a1b", "last": "last",
            "results": str(run.results), "checkpoints": str(run.checkpoints)}[by]  # fmt: skip
    loaded = load_run(name, run.root)
    assert (loaded.title, loaded.status, loaded.run_id) == ("Net at camera", "FINISHED", run.run_id)
    assert loaded.image is not None
    assert loaded.image.shape == (1, 1, 12, 16)
    assert loaded.picture_name == "camera"
    assert loaded.history is not None
    assert loaded.history["residuals"]["0"] == make_history()["residuals"]["0"]


def test_a_results_folder_alone_is_enough(run: RunFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "download"
    run.results.rename(elsewhere)
    loaded = load_run(elsewhere, tmp_path / "nothing")
    assert loaded.title == "download"
    assert loaded.image is not None


def test_curves_survive_the_file_with_their_gaps(tmp_path: Path) -> None:
    history = make_history()
    path = tmp_path / "convergence.csv"
    path.write_text(convergence_table(history))
    read = read_convergence(path)
    assert read is not None
    assert read["products"] == history["products"]
    assert read["eigenvalues"] == history["eigenvalues"]
    assert [math.isnan(v) for v in read["residuals"]["-1"][:4]] == [True, True, True, False]


def test_a_run_without_a_result_says_how_to_get_one(run: RunFolder) -> None:
    (run.results / "spectrum.safetensors").unlink()
    with pytest.raises(CheckpointError, match="eigenexp resume 0a1b2c3d4e"):
        load_run("last", run.root)


def test_a_damaged_picture_is_left_out_with_a_warning(run: RunFolder) -> None:
    save_picture(load_picture("coins", crop=[0, 0, 12, 16]), run.results / "picture.safetensors")
    with pytest.warns(UserWarning, match="belongs to another run"):
        assert load_run("last", run.root).image is None


def test_a_saved_picture_is_the_picture(tmp_path: Path) -> None:
    picture = load_picture("chelsea", crop=20, channels="color", dtype="float64")
    path = save_picture(picture, tmp_path / "p.safetensors")
    again = load_saved_picture(path)
    assert again.record == picture.record
    assert again.tensor.equal(picture.tensor)
    assert again.tensor.dtype == picture.tensor.dtype
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match="SHA-256"):
        load_saved_picture(path)


def test_the_command_writes_one_file_and_tells_where(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "last", "--root", str(run.root)]) == 0
    path = tmp_path / "report-0a1b2c3d.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert "Net at camera" in path.read_text()
    arguments = ["report", "last", run.run_id, "--output", "both.html", "--title", "A & B"]
    assert main([*arguments, "--root", str(run.root)]) == 0
    assert "<h1>A &amp; B</h1>" in (tmp_path / "both.html").read_text()
    assert main(["report", "nowhere", "--root", str(run.root)]) == 1
    assert "expected a run id" in capsys.readouterr().err


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        load_run("last", tmp_path)


# -- what has not ended, and what is not here ------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> RunFolder:
    """A run that has a checkpoint and a picture, and no result."""
    folder = RunFolder(tmp_path / "mlruns", "0f" * 16)
    picture = load_picture("camera", crop=12)
    model = ee.models.Gaussian(kernel_size=5)
    module = ee.EigendistortionModule(model, picture, k=2, method="auto", tol=1e-9)
    callbacks = [ee.ConvergenceLogging(1), ee.SolverCheckpoint(folder.checkpoints)]
    quiet_trainer(tmp_path, callbacks, max_steps=9, enable_checkpointing=True).fit(module)
    folder.results.mkdir(parents=True)
    save_picture(picture, folder.results / "picture.safetensors")
    folder.write_record(title="Gaussian at camera", status="RUNNING", error="disk <full>")
    return folder


def test_a_run_that_was_killed_is_reported_from_its_checkpoint(stopped: RunFolder) -> None:
    run = load_run("last", stopped.root)
    assert len(run.spectrum) == 4
    assert run.spectrum.num_products == 9
    assert not run.spectrum.converged.all()
    assert run.spectrum.eigenvectors.shape == (4, 1, 12, 12)
    assert run.image is not None
    assert run.history is not None
    page = render_report([run])
    assert "disk &lt;full&gt;" in page
    assert (run.status, "failed" in page) == ("FAILED", True)
    with stopped.hold():
        alive = load_run("last", stopped.root)
        assert (alive.status, "running" in render_report([alive])) == ("RUNNING", True)


def test_a_damaged_checkpoint_is_no_result(stopped: RunFolder) -> None:
    for path in stopped.checkpoints.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-40])
    refused = pytest.raises(CheckpointError, match="eigenexp resume 0f0f")
    with pytest.warns(CheckpointWarning), refused:
        load_run("last", stopped.root)


@pytest.mark.parametrize("result", [True, False], ids=["result", "checkpoint"])
def test_a_run_of_the_server_alone_is_fetched(
    stopped: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = local_store(tmp_path / "far")
    run_id = store.create_run("e", "Gaussian at camera")
    store.upload(run_id, stopped.results / "picture.safetensors", "results")
    if result:
        spectrum_so_far(stopped.checkpoints).save(tmp_path / "spectrum.safetensors")
        store.upload(run_id, tmp_path / "spectrum.safetensors", "results")
    else:
        store.upload(run_id, stopped.checkpoints / "last.ckpt", "checkpoints/last")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    near = tmp_path / "near"
    run = load_run(run_id[:12], near)
    assert (run.title, run.status, run.run_id) == ("Gaussian at camera", "RUNNING", run_id)
    assert run.spectrum.num_products == 9
    assert run.image is not None
    store.finish_run(run_id)
    assert load_run(run_id, near).status == "FINISHED"  # asked again, not remembered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="fetched before"):
        assert load_run(run_id, near).status == "FINISHED"


def test_a_study_is_its_pictures(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (12, 12)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{name}.png")
    folder = RunFolder(tmp_path / "mlruns", "5d" * 16)
    model = ee.models.Gaussian(kernel_size=5)
    module = StudyModule(model, str(photos), folder.results, k=1, which="top", tol=1e-3)
    quiet_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(module)
    config = {"image": {"channels": "gray"}}
    folder.write_record(title="Gaussian at photos", status="FINISHED", study=True, config=config)
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:-1] + b"?")
    first, second = load_runs("last", folder.root)
    assert (first.title, second.title) == ("Gaussian at a", "Gaussian at b")
    assert first.image is not None
    assert "Convergence" in render_report([first])
    (photos / "b.png").unlink()
    assert load_runs("last", folder.root)[1].image is None  # its distortions are shown alone


def test_a_sweep_is_its_runs(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    sweep = SweepFolder(run.root, "20260101-000000-abcdef")
    jobs = [("a=1",), ("a=2",)]
    sweep.create(jobs, hydra=[], launcher="basic", cwd="/", rows=[{}, {}], experiment_name="e",
                 logger={"mlflow": False}, parent_run_id=None)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = ["report", "20260101", "--root", str(run.root), "--output", "s.html"]
    assert main(arguments) == 1
    assert "--retry-failed 20260101-000000-abcdef" in capsys.readouterr().err
    sweep.write_job(0, "finished", run_id=run.run_id)
    assert main(arguments) == 0
    assert "Net at camera" in (tmp_path / "s.html").read_text()
