"""Models asked about the files of an export, and the whole way from pictures to a posterior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import eigenexp as ee
from eigenexp.cli import main
from eigenexp.errors import EigenexpError, InputError
from tests.stimuli.conftest import solved

scoring = ee.scoring


@pytest.fixture
def stimuli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OnOff's pair at two standard deviations, 16 bits."""
    monkeypatch.chdir(tmp_path)
    made = ee.stimuli.make(
        solved("OnOff", 0.002), tmp_path / "stimuli", bits=16, controls=1, allow=ee.stimuli.FLAGS
    )
    return made.folder


def test_d_prime_from_the_files_is_that_of_the_passports(stimuli: Path) -> None:
    known = scoring.read_design(stimuli)
    model = ee.models.OnOff()
    found = scoring.predict(stimuli, model, ee.noise.Gaussian(0.002), "mine")
    assert found.model == "mine"
    assert np.allclose(found.d_primes, known.predictions[0].d_primes, rtol=1e-9)
    twice = scoring.predict(stimuli / "manifest.json", model, ee.noise.Gaussian(0.001))
    assert np.allclose(twice.d_primes, 2 * found.d_primes, rtol=1e-9)
    (contrast,) = known.contrasts
    eigenvalues = known.predictions[0].eigenvalues
    expected = 0.5 * np.log(eigenvalues[contrast.lower] / eigenvalues[contrast.upper])
    assert expected == pytest.approx(4.252, abs=1e-3)


def test_from_pictures_to_the_true_model(stimuli: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=onoff,ln", "noise=gaussian", "noise.std=0.002"]
    assert main(["simulate", str(stimuli), "model=onoff", "trials=300"]) == 0
    assert "OnOff: gain" in capsys.readouterr().out  # the stimuli know it by its class
    assert main(["score", "trials.csv", str(stimuli), *words]) == 0
    out = capsys.readouterr().out
    best = [line for line in out.splitlines() if " of 2 " in line]
    assert best[0].startswith("onoff ")
    assert best[0].split()[1] == "1.0000"


def test_models_and_noises_that_do_not_fit_are_one_line(
    stimuli: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Signed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 0.5

    with pytest.raises(InputError, match="does not fit the noise"):
        scoring.predict(stimuli, Signed(), ee.noise.Poisson())
    victim = next(iter(sorted((stimuli / "pictures").glob("*.png"))))
    victim.write_bytes(b"no picture")
    with pytest.raises(EigenexpError, match=victim.stem):
        scoring.predict(stimuli, ee.models.OnOff())
    assert main(["simulate", str(stimuli), "model=magic"]) == 1
    assert "they know OnOff" in capsys.readouterr().err
    assert main(["simulate", str(stimuli), "noise=poisson"]) == 1
    assert "name them" in capsys.readouterr().err
