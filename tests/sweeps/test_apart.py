"""A sweep's jobs in one process: the pairs are those of processes of their own, nothing leaks."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigenexp.experiments.config import compose_config
from eigenexp.experiments.experiment import fit
from eigenexp.runs.folder import RunFolder
from eigenexp.spectrum import SPECTRUM_FILE, Spectrum
from eigenexp.sweeps import list_sweeps, sweep
from eigenexp.sweeps.apart import as_if_alone
from tests.processes import run

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.filters = torch.nn.Conv2d(1, width, 3, padding=1)

    def forward(self, picture):
        return self.filters(picture).tanh()
"""
SMALL = [
    *("model=./net.py:Net", "image.crop=[120,220,8,8]", "solver.tol=1e-3", "logger=none"),
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "threads=1"),
]


def state() -> dict[str, Any]:
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "anomalies": torch.is_anomaly_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "environment": [os.environ.get(name) for name in names],
        "path": list(sys.path),
    }


def test_what_a_job_sets_is_put_back_also_after_an_error() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), as_if_alone():  # noqa: PT012
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.autograd.set_detect_anomaly(True)
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        os.environ["PL_GLOBAL_SEED"] = "5"
        sys.path.append("/nowhere")
        _ = 1 / 0
    assert state() == before


def found(root: Path, run_id: str) -> Spectrum:
    return Spectrum.load(RunFolder(root, run_id).results / SPECTRUM_FILE)


def jobs_of(folder: Path) -> dict[str, Spectrum]:
    (one,) = list_sweeps(folder / "mlruns")
    root = folder / "mlruns"
    return {" ".join(job.overrides): found(root, job.facts["run_id"]) for job in one.jobs()}


def assert_the_same(one: Spectrum, other: Spectrum) -> None:
    assert torch.equal(one.eigenvalues, other.eigenvalues)
    assert torch.equal(one.eigenvectors, other.eigenvectors)
    assert torch.equal(one.residuals, other.residuals)
    assert one.num_products == other.num_products


def test_jobs_have_the_pairs_that_each_has_alone(in_tmp: Path) -> None:
    (in_tmp / "net.py").write_text(NET)
    before = state()
    # The first job would leave the second a seed, and fewer or more threads.
    swept = [*SMALL, "+trainer.deterministic=true,false"]
    assert sweep(swept, say=lambda _: None) == 0
    assert state() == before
    spectra = jobs_of(in_tmp)
    assert len(spectra) == 2
    for given, spectrum in reversed(spectra.items()):
        alone = fit(compose_config([*given.split(), "root=alone"]), say=lambda _: None)
        assert_the_same(alone.spectrum, spectrum)
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_jobs_have_the_pairs_of_separate_processes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    swept = [*SMALL, "solver.which=top,both", "solver.seed=0,1"]
    assert run(tmp_path, "fit", "-m", *swept).returncode == 0
    for given, spectrum in jobs_of(tmp_path).items():
        done = run(tmp_path, "fit", *given.split(), "root=alone", "--json")
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "alone" / "results").iterdir()
        assert_the_same(found(tmp_path / "alone", folder.name), spectrum)
        folder.rename(tmp_path / f"seen-{folder.name}")
