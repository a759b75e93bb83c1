"""Runs as they lie on disk: by id, by folder, whole, half and damaged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eigenexp.callbacks.results import convergence_table
from eigenexp.cli import main
from eigenexp.errors import CheckpointError, ImageError, RunNotFoundError
from eigenexp.images import load_picture
from eigenexp.picture_files import load_saved_picture, save_picture
from eigenexp.report import load_run
from eigenexp.report.sources import read_convergence
from eigenexp.runs import RunFolder

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
