"""The problem that the tracking benchmarks solve, and how they print a line of their verdict."""

from __future__ import annotations


def problem():
    """Return a model with a crowded spectrum, so that no solver is done early, and a picture."""
    import torch

    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 1024, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(1024, 1024, generator=generator) / 32)
    return model.double(), torch.rand(1, 1, 32, 32, generator=generator, dtype=torch.float64)


SETTINGS = {"method": "lanczos", "k": 2, "which": "both", "tol": 1e-13, "basis_size": 24}


def verdict(name: str, passed: bool, figures: str) -> bool:
    """Print one bar's line."""
    print(f"{'PASS' if passed else 'FAIL'} {name}: {figures}", flush=True)
    return passed
