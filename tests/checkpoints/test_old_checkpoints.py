"""Checkpoints of every schema ever released go on where they stopped."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import eigenexp as ee
from eigenexp.checkpoints.files import load_metadata
from eigenexp.checkpoints.provenance import SCHEMA_VERSION
from eigenexp.eigensolvers import METHODS
from eigenexp.spectrum import PairStatus

DATA = Path(__file__).parents[1] / "data"
FILES = sorted(DATA.glob("resumable-schema-*.ckpt"))
MAKER = runpy.run_path(str(DATA / "make_checkpoint_fixture.py"))


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.compatibility.ProvenanceWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_checkpoint_goes_on(path: Path, tmp_path: Path) -> None:
    saved = load_metadata(path)
    method = path.stem.split("-", 3)[3]
    module = MAKER["module"](method)
    trainer = MAKER["trainer"](tmp_path, 5000, ee.ConvergenceStopping())
    trainer.fit(module, ckpt_path=str(path))
    assert trainer.global_step > saved["step"] == MAKER["STEPS"]
    # What was computed before is not computed again (a dense solve takes J·v, not F·v).
    fresh = module.solver.num_products - saved["num_products"]
    assert module.operator.num_products <= fresh
    assert 0 < saved["num_products"] < module.solver.num_products
    spectrum = module.solver.result()
    assert PairStatus.UNCONVERGED not in spectrum.status
    assert float(spectrum.relative_residuals.max()) <= MAKER["SETTINGS"]["tol"]
    model, image = MAKER["problem"]()
    exact = torch.linalg.svdvals(model.jacobian(image)).square()
    np.testing.assert_allclose(
        spectrum.eigenvalues, exact[spectrum.eigenindex], atol=1e-5 * float(exact[0])
    )


def test_the_present_schema_is_kept_for_every_method() -> None:
    kept = {
        path.stem.split("-", 3)[3] for path in FILES if f"schema-{SCHEMA_VERSION}-" in path.stem
    }
    assert kept
    assert kept <= set(METHODS)
