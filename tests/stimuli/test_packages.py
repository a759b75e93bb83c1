"""Packages: the PsychoPy script with an observer of ours before its screen, MATLAB, arrays."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

import eigenexp as ee
from eigenexp.stimuli import FLAGS, TRIAL_COLUMNS, Made
from eigenexp.stimuli.levels import read_levels

from .conftest import solved

# PsychoPy's own, of locale and pandas.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def export(folder: Path, **options: Any) -> Made:
    given: dict[str, Any] = {"levels": [0.5, 1, 2], "allow": FLAGS, **options}
    return ee.stimuli.make(solved("OnOff", 0.002), folder, **given)


def load_script(folder: Path) -> Any:
    """Import the script of the folder itself."""
    spec = importlib.util.spec_from_file_location("run_psychopy", folder / "run_psychopy.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class Observer:
    """A screen whose observer sees which file is shown, and is right as often as asked."""

    def __init__(self, share: float, stop_after: int | None = None) -> None:
        self.shown: list[Path] = []
        self.trials: list[list[Path]] = []
        self.told: list[str] = []
        self.stop_after = stop_after
        self._share = share
        self._rng = np.random.default_rng(5)
        self.stopped: type[Exception] = Exception

    def tell(self, text: str) -> None:
        self.told.append(text)

    def blank(self, seconds: float) -> None:
        assert seconds == 0.5

    def picture(self, path: Path, seconds: float) -> None:
        assert path.is_file()
        self.shown.append(path)

    def ask(self, text: str, keys: Sequence[str]) -> tuple[str, float]:
        if self.stop_after is not None and len(self.trials) >= self.stop_after:
            raise self.stopped
        trial, self.shown = self.shown, []
        self.trials.append(trial)
        assert list(keys) == [str(i + 1) for i in range(len(trial))]
        (target,) = [i for i, path in enumerate(trial) if "reference" not in path.name]
        right = self._rng.random() < self._share
        others = [i for i in range(len(trial)) if i != target]
        return str((target if right else others[0]) + 1), 0.25


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_psychopy_script_shows_every_stimulus_and_writes_each_trial(tmp_path: Path) -> None:
    pytest.importorskip("psychopy", reason="psychopy-lib is not installed")
    made = export(tmp_path / "s", format=["psychopy"])
    assert made.packages["psychopy"] == made.folder / "run_psychopy.py"
    script = load_script(made.folder)
    observer = Observer(0.8)
    path = script.run(observer, "ab", folder=made.folder, repeats=4, seed=1)
    rows = table(path)
    assert len(rows) == len(observer.trials) == 4 * len(made.manifest.stimuli)
    assert set(TRIAL_COLUMNS) <= set(rows[0])
    counts = {one.id: sum(row["stimulus"] == one.id for row in rows)
              for one in made.manifest.stimuli}  # fmt: skip
    assert set(counts.values()) == {4}
    for number, (row, shown) in enumerate(zip(rows, observer.trials, strict=True), 1):
        assert row["trial"] == str(number)
        assert row["manifest"] == made.manifest.id
        target = int(row["interval"])
        one = made.manifest.by_id[row["stimulus"]]
        assert shown[target - 1] == made.folder / one.file
        assert shown[2 - target] == made.folder / made.manifest.reference_of(one).file
        assert row["correct"] == str(int(row["response"] == row["interval"]))
    assert {row["interval"] for row in rows} == {"1", "2"}
    assert 0.5 < np.mean([int(row["correct"]) for row in rows]) < 1
    assert "one of them is different" in observer.told[0]


def test_escape_keeps_what_was_answered(tmp_path: Path) -> None:
    pytest.importorskip("psychopy", reason="psychopy-lib is not installed")
    made = export(tmp_path / "s", format=["psychopy"], task="oddity")
    script = load_script(made.folder)
    observer = Observer(1.0, stop_after=5)
    observer.stopped = script.StoppedError
    rows = table(script.run(observer, "ab", folder=made.folder, seed=2))
    assert len(rows) == 5
    assert all(len(trial) == 3 for trial in observer.trials)
    assert {row["correct"] for row in rows} == {"1"}


def test_quest_chooses_among_the_stimuli(tmp_path: Path) -> None:
    pytest.importorskip("psychopy", reason="psychopy-lib is not installed")
    made = export(tmp_path / "s", format=["psychopy"], levels=[0.25, 0.5, 1, 2, 4])
    script = load_script(made.folder)
    observer = Observer(1.0)
    rows = table(script.run(observer, "q", folder=made.folder, method="quest", trials=12, seed=3))
    assert len(rows) == 2 * 12
    for pair in ("top", "bottom"):
        levels = [
            made.manifest.by_id[row["stimulus"]].level for row in rows if pair in row["stimulus"]
        ]
        assert len(levels) == 12
        assert levels[-1] == 0.25  # who is always right is shown the smallest


def test_sixteen_bits_reach_psychopy_as_arrays(tmp_path: Path) -> None:
    made = export(tmp_path / "s", format=["psychopy"], bits=16)
    rows = table(made.folder / "conditions.csv")
    for row, one in zip(rows, made.manifest.stimuli, strict=True):
        levels = np.load(made.folder / row["file"], allow_pickle=False)
        np.testing.assert_array_equal(levels, read_levels(made.folder / one.file)[0])
        assert float(row["alpha"]) == one.alpha


def test_matlab_reads_everything_of_the_manifest(tmp_path: Path) -> None:
    made = export(tmp_path / "s", format=["matlab", "raw"], pixels_per_degree=60.0)
    found = loadmat(made.packages["matlab"])
    assert str(found["manifest"][0]) == made.manifest.id
    assert str(found["task"][0]) == "2afc"
    assert found["stimuli"].shape == (1, len(made.manifest.stimuli))
    for place, one in enumerate(made.manifest.stimuli):
        row = found["stimuli"][0, place]
        assert str(row["id"][0]) == one.id
        assert row["alpha"].item() == one.alpha
        assert row["d_prime_rounded"].item() == one.d_prime_rounded
        assert row["pixels_per_degree"].item() == 60
        assert json.loads(str(row["predictions"][0]))[0]["model"] == "OnOff"
        assert row["pixels"].dtype == np.uint8
        np.testing.assert_array_equal(row["pixels"], read_levels(made.folder / one.file)[0])
        np.testing.assert_array_equal(row["pixels"], np.load(made.folder / f"raw/{one.id}.npy"))
        reference = found["references"][0, int(row["reference_index"].item()) - 1]
        assert str(reference["id"][0]) == one.reference
        assert reference["pixels"].shape == (24, 24)
