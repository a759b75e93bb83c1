"""Small problems whose answers are known, and the trainers that studies of them run under."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from eigenexp.modules.study import StudyModule


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
