"""Rounding that a model hardly sees, against an oracle that tries every move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eigenexp as ee
from eigenexp.errors import InputError
from eigenexp.stimuli import FLAGS, Display
from eigenexp.stimuli.levels import Light, read_levels
from eigenexp.stimuli.rounding import forecast, round_dithered, round_for_model

from .conftest import solved

LIGHT = Light(Display("srgb", False, 8, "model", 0.0, 1.0, None))


def test_no_single_move_is_left_that_helps() -> None:
    rng = np.random.default_rng(3)
    n = 12
    root = rng.standard_normal((n, n)) * np.exp(-np.arange(n))[:, None]
    fisher = root.T @ root
    reference = rng.integers(20, 200, n) / 255
    change = rng.standard_normal(n) / 255
    levels = LIGHT.encode(reference + change)
    found = round_for_model(change, levels, reference, fisher, LIGHT)

    def energy(whole: np.ndarray) -> float:
        q = LIGHT.decode(whole) - reference - change
        return float(q @ fisher @ q)

    assert energy(found) < energy(np.rint(levels)) / 4
    assert np.abs(found - levels).max() <= 1
    for place in range(n):
        for by in (-1, 1):
            moved = found.copy()
            moved[place] += by
            if abs(moved[place] - levels[place]) <= 1:
                assert energy(moved) >= energy(found) * (1 - 1e-9)
    with pytest.raises(InputError, match="expected shape"):
        round_for_model(change, levels, reference, fisher[:3], LIGHT)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("LG", 8, 200), ("LGG", 2, 12), ("OnOff", 1, 2.5)]
)
def test_the_error_that_a_model_sees_falls(
    name: str, least: float, most: float, tmp_path: Path
) -> None:
    source = solved(name, 0.002)
    fisher = ee.FisherOperator(source.model, source.picture.tensor, noise=source.noise)
    dense = fisher.to_dense().numpy()
    e = source.spectrum.distortion(-1).numpy()
    energies = {}
    for rounding in ("plain", "model"):
        made = ee.stimuli.make(
            source, tmp_path / rounding, pairs=["bottom"], rounding=rounding, allow=FLAGS,
            amplitudes=[float(4 / 255 / np.abs(e).max()), float(16 / 255 / np.abs(e).max())],
        )  # fmt: skip
        reference = LIGHT.decode(read_levels(made.folder / made.manifest.references[0].file))
        energies[rounding] = []
        for one in made.manifest.stimuli:
            picture = LIGHT.decode(read_levels(made.folder / one.file))
            q = (picture - reference - one.signed_alpha * e).reshape(-1)
            energies[rounding].append(float(q @ dense @ q))
    ratios = np.array(energies["plain"]) / np.array(energies["model"])
    assert (ratios > least).all()
    assert (ratios < most).all()


def test_the_forecast_is_the_trace_times_a_levels_variance() -> None:
    source = solved("OnOff", 1.0)
    dense = ee.FisherOperator(source.model, source.picture.tensor).to_dense()
    assert forecast(float(dense.trace()), LIGHT) == pytest.approx(8.84e-6, rel=1e-3)


def test_dither_is_right_on_average_and_leaves_whole_levels() -> None:
    rng = np.random.default_rng(0)
    levels = np.array([3.0, 3.25, 3.9])
    mean = np.mean([round_dithered(levels, rng.random(3)) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(mean, levels, atol=0.03)
    assert mean[0] == 3


def test_a_large_picture_has_no_dense_rounding(tmp_path: Path) -> None:
    picture = ee.load_picture("camera", crop=72, dtype="float64")
    model = ee.models.Gaussian(std=1.0).double()
    spectrum = ee.solve(ee.FisherOperator(model, picture.tensor), k=1, which="top", tol=1e-2)
    source = ee.stimuli.Source(spectrum, picture, model)
    with pytest.raises(InputError, match="at most 4096 values for rounding=model"):
        ee.stimuli.make(source, tmp_path / "s", rounding="model", allow=FLAGS)
