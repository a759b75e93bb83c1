"""Shared pieces of the tests: small exact problems, quiet trainers."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attacks import Place
from tests.problems import Quadratic, Small

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, this machine has none"))


@pytest.fixture
def small_problem() -> tuple[Quadratic, Tensor, Tensor]:
    """A model, a (1, 1, 6, 6) float64 picture, and the eigenvalues of F, decreasing."""
    model = Quadratic()
    image = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.svdvals(model.jacobian(image)).square()
    return model, image, values


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, where runs land under ``mlruns/``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EIGENEXP_ROOT", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def template_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return what makes an empty tracking database, once."""

    @functools.cache
    def make() -> Path:
        from eigenexp.tracking import local_store

        store = local_store(tmp_path_factory.mktemp("template") / "mlruns")
        store.client.search_experiments()
        return store.database

    return make


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template_database: Callable[[], Path]
) -> Place:
    """Where a hostile file is opened."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Place(tmp_path / "here", tmp_path / "outside", template_database)
    made.here.mkdir()
    made.outside.mkdir()
    monkeypatch.chdir(made.here)
    return made


@pytest.fixture
def model() -> Small:
    return Small().eval()


@pytest.fixture
def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64) ** (1 + i)
        for i in range(7)
    ]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine; without one these tests are skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on this machine (looked for {', '.join(BROWSERS)})")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()
