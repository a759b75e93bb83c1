"""Write the checkpoints that later versions must still resume: one a method, in mid-solve.

Run it once for each schema that is released, with that version:

    python tests/data/make_checkpoint_fixture.py

It writes ``tests/data/resumable-schema-<n>-<method>.ckpt``; ``checkpoints/test_old_checkpoints.py``
resumes every file of that name. Files of earlier schemas stay as they are.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import eigenexp as ee  # noqa: E402
from eigenexp.checkpoints.provenance import SCHEMA_VERSION  # noqa: E402
from eigenexp.eigensolvers import METHODS  # noqa: E402
from tests import problems  # noqa: E402

STEPS = 3
SETTINGS = {"k": 2, "which": "both", "tol": 1e-5}


class Quadratic(problems.Quadratic):
    """The model under the name that the saved files say, wherever its class has moved since."""

    __module__ = "tests.conftest"


def problem() -> tuple[Quadratic, Tensor]:
    """A model with a known Jacobian and a picture, from numbers no library version changes."""
    model = Quadratic(m=48, n=36)
    values = torch.linspace(1.2, 0.9, 36, dtype=torch.float64)
    values[:2], values[-2:] = torch.tensor([2.0, 1.7]), torch.tensor([0.4, 0.2])
    grid = torch.arange(48 * 36, dtype=torch.float64).reshape(48, 36)
    weight = 0.02 * torch.cos(1.7 * grid)
    weight[:36].diagonal().add_(values)
    model.weight.data = weight
    image = (0.5 + 0.4 * torch.sin(torch.arange(36, dtype=torch.float64))).reshape(1, 1, 6, 6)
    return model, image


def module(method: str) -> ee.EigendistortionModule:
    """The solve that was saved, ready to go on."""
    own = {"which": "top"} if method == "randomized_svd" else {}
    return ee.EigendistortionModule(*problem(), method=method, **{**SETTINGS, **own})


def trainer(folder: Path, max_steps: int, *callbacks: L.Callback) -> L.Trainer:
    """A quiet trainer in float64 on the CPU."""
    return L.Trainer(
        max_steps=max_steps,
        precision="64-true",
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def main() -> None:
    """Write one file a method."""
    warnings.simplefilter("ignore")
    for method in sorted(METHODS):
        keeping = ee.SolverCheckpoint(HERE / ".new", every_n_steps=STEPS, keep=0)
        solve = module(method)
        trainer(HERE / ".new", STEPS, keeping).fit(solve)
        if solve.solver.done:
            print(f"{method}: done in {STEPS} steps, nothing to resume; no file")
            continue
        path = HERE / f"resumable-schema-{SCHEMA_VERSION}-{method}.ckpt"
        (HERE / ".new" / "last.ckpt").replace(path)
        print(f"{path.name}: {path.stat().st_size} bytes")
    for left in (HERE / ".new").iterdir():
        left.unlink()
    (HERE / ".new").rmdir()


if __name__ == "__main__":
    main()
