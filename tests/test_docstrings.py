"""Every example of a docstring runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

import eigenexp as ee
from tests.scoring.experiments import principal_design
from tests.scoring.folders import write_folder

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for p in (ROOT / "eigenexp").rglob("*.py") if ">>> " in p.read_text())


class Quiet(L.Trainer):
    """Lightning's Trainer without its lines and files."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            **arguments,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )


def names() -> dict[str, Any]:
    """What examples take for granted: a model, a picture, a spectrum."""
    picture = ee.load_picture("camera", crop=[120, 220, 16, 16], dtype=torch.float64)
    model = ee.models.Gaussian(7, 1.0).double()
    lightning = type("L", (), {"Trainer": Quiet})
    return {
        "L": lightning,
        "ee": ee,
        "image": picture.tensor,
        "model": model,
        "picture": picture,
        "spectrum": ee.solve(ee.FisherOperator(model, picture.tensor), k=1, which="top"),
    }


def an_experiment(folder: Path) -> None:
    """Write ``stimuli/`` and the answers of an observer to them, ``trials.csv``."""
    write_folder(principal_design(), folder / "stimuli")
    design = ee.scoring.read_design(folder / "stimuli")
    true = design.predictions[0]
    observer = ee.scoring.Observer(true, ee.scoring.fitting_gain(design, true))
    trials = ee.scoring.simulate(design, [observer], 200, seed=2)
    ee.scoring.write_trials(trials, folder / "trials.csv")


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda p: p.relative_to(ROOT).with_suffix("").as_posix()
)
def test_examples_print_what_they_say(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        values = np.random.default_rng(ord(name)).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "photos" / f"{name}.png")
    if "trials.csv" in path.read_text():
        an_experiment(tmp_path)
    place = path.relative_to(ROOT).with_suffix("")
    module = importlib.import_module(".".join(place.parts))
    runner = doctest.DocTestRunner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, on data loaders
        for test in doctest.DocTestFinder().find(module, extraglobs=names()):
            runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0
