"""Sources of stimuli: small pictures with models solved by a dense solver."""

from __future__ import annotations

from functools import cache

import pytest

import eigenexp as ee
from eigenexp.stimuli import Source

MODELS = {
    "OnOff": ee.models.OnOff,
    "LG": ee.models.LuminanceGainControl,
    "LGG": ee.models.LuminanceContrastGainControl,
}


@cache
def solved(name: str, std: float, side: int = 24, k: int = 1) -> Source:
    picture = ee.load_picture("camera", crop=[120, 220, side, side], dtype="float64")
    model, noise = MODELS[name]().double(), ee.noise.Gaussian(std)
    operator = ee.FisherOperator(model, picture.tensor, noise=noise)
    spectrum = ee.solve(operator, method="exact", k=k)
    return Source(spectrum, picture, model, noise=noise, name=name, run_id="0123abcd")


@pytest.fixture
def on_off() -> Source:
    """Fine noise: d′ of 0.25 to 4 lies at amplitudes that a display shows."""
    return solved("OnOff", 0.002)


@pytest.fixture
def on_off_std_1() -> Source:
    return solved("OnOff", 1.0)
