"""Shared pieces of the tests: small exact problems, quiet trainers."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, this machine has none"))


class Quadratic(nn.Module):
    """f(x) = A x + ½ x∘x·c: its Jacobian A + c·diag(x) is known in closed form."""

    def __init__(self, m: int = 40, n: int = 36, seed: int = 0, c: float = 0.1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(m, n, generator=generator, dtype=torch.float64))
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        out = flat @ self.weight.to(x.dtype).T
        square = nn.functional.pad(0.5 * self.c * flat**2, (0, out.shape[1] - flat.shape[1]))
        return out + square

    def jacobian(self, x: Tensor) -> Tensor:
        m, n = self.weight.shape
        extra = torch.zeros(m, n, dtype=torch.float64)
        extra[:n].diagonal().copy_(self.c * x.flatten().double())
        return self.weight.detach() + extra


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
