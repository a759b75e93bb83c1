"""``eigenexp stimuli``: from a run to a folder, and one clear line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import eigenexp as ee
from eigenexp.cli import main
from eigenexp.runs.folder import list_runs

FIT = (
    "fit model=onoff image=camera image.crop=[120,220,24,24] solver=exact solver.k=1 logger=none "
    "noise=gaussian noise.std=0.002 trainer.precision=64-true"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One solved run, which no test changes."""
    root = tmp_path_factory.mktemp("stimuli") / "mlruns"
    assert main([*FIT.split(), f"root={root}", "-q"]) == 0
    return root


@pytest.fixture(autouse=True)
def _here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EIGENEXP_ROOT", str(root))


def test_a_run_becomes_a_folder_of_stimuli(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stimuli", "last", "levels=0.5,1,2", "bits=16", "signs=both", "format=matlab,raw"]
    assert main(words) == 0
    run = list_runs(root)[0].run_id
    folder = tmp_path / f"stimuli-{run[:8]}"
    manifest = ee.stimuli.read_manifest(folder)
    assert {one.model for one in manifest.stimuli} == {"OnOff"}
    assert {one.run_id for one in manifest.stimuli} == {run}
    assert {one.noise for one in manifest.stimuli} == {"gaussian(std=0.002)"}
    assert len(manifest.stimuli) >= 8
    printed = capsys.readouterr()
    assert f"{len(manifest.stimuli)} stimuli of 2 distortions" in printed.out
    assert manifest.id in printed.out
    assert str(folder / "stimuli.mat") in printed.out
    left = 12 - len(manifest.stimuli)
    assert f"{left} left out" in printed.out
    assert printed.err.count("left out camera-OnOff-") == left
    assert main(words) == 0
    assert "of them there before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("last levels=-1", "levels: expected a finite number above 0"),
        ("last levls=1", "levls: no such setting (did you mean levels?)"),
        ("levels=1", "expected a run, such as last"),
        ("nothing levels=1", "nothing"),
        ("last amplitudes=0.0001", "none of 2; the first: camera-OnOff-top-0-p01: rounding leaves"),
        ("last pairs=5", "pairs: expected some of [0, 575]"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stimuli", *words.split()]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_an_unproven_pair_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for word in FIT.split() if not word.startswith("solver=")]
    own = tmp_path / "mlruns"
    main([*given, "solver=lanczos", "solver.max_products=30", f"root={own}", "-q"])
    where = ["--root", str(own), "bits=16", "levels=1"]
    code = main(["stimuli", "last", *where])
    error = capsys.readouterr().err
    assert "expected a converged pair, got one that is" in error
    assert "allow=unverified" in error
    assert code in (1, 3)
    assert main(["stimuli", "last", *where, "allow=unverified,validity", "--output", "x"]) == 0
    assert any("unverified" in one.flags for one in ee.stimuli.read_manifest("x").stimuli)


def test_a_model_that_changed_since_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import eigenexp.experiments.stimuli as room

    monkeypatch.setattr(room, "build_model", lambda *_, **__: ee.models.LinearNonlinear())
    assert main(["stimuli", "last"]) == 1
    assert "expected the class that was solved" in capsys.readouterr().err
