from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from eigenexp.study import StudyModule


class Small(nn.Module):
    """A small nonlinear model in float64 whose spectrum differs from picture to picture."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Conv2d(1, 3, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(drawn)

    def forward(self, x: Tensor) -> Tensor:
        y = self.filters(x)
        return y / (1 + y.square().mean(dim=(1, 2, 3), keepdim=True)) + y.tanh()


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


def trainer(folder: Any, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": -1,
        "max_steps": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "precision": "64-true",
        "default_root_dir": folder,
        **options,
    }
    return L.Trainer(**settings)


def fit(module: StudyModule, folder: Any, **options: Any) -> StudyModule:
    trainer(folder, **options).fit(module)
    return module
