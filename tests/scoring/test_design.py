"""A design from a manifest: what models say, which distortions are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eigenexp as ee
from eigenexp.errors import CheckpointError, InputError
from tests.scoring.experiments import principal_design
from tests.scoring.folders import write_folder

scoring = ee.scoring


def test_design_is_read_from_a_manifest_at_the_models_own_noise(tmp_path: Path) -> None:
    wanted = principal_design()
    manifest = write_folder(wanted, tmp_path)
    design = scoring.read_design(tmp_path)
    assert design.manifest == manifest.id
    assert design.stimuli == wanted.stimuli
    assert design.names == ("first", "second")
    for mine, other in zip(design.predictions, wanted.predictions, strict=True):
        assert mine.model == other.model
        assert np.allclose(mine.d_primes, other.d_primes, rtol=1e-12)
        assert mine.eigenvalues == pytest.approx(other.eigenvalues)
    (contrast,) = design.contrasts
    assert (contrast.upper, contrast.lower) == ("second", "first")


def test_bottom_is_compared_with_top(tmp_path: Path) -> None:
    write_folder(principal_design(), tmp_path, pair="ends")
    (contrast,) = scoring.read_design(tmp_path).contrasts
    assert (contrast.upper, contrast.lower, contrast.model) == ("second", "first", "LN")
    assert "bottom against top" in contrast.label


def test_what_is_no_design_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        scoring.read_design(tmp_path)
    with pytest.raises(InputError, match="at least one stimulus"):
        scoring.Design("", "2afc", 2, (), (), np.array([]))
    with pytest.raises(InputError, match="a stimulus"):
        scoring.Design("", "2afc", 2, ("a",), (), np.array([1.0]))
