"""Spectra to report on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from eigenexp.report import ReportRun
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"


def make_spectrum(shape: tuple[int, ...] = (1, 12, 16), k: int = 2, **changes: Any) -> Spectrum:
    """Orthonormal smooth vectors with a certificate each."""
    n = math.prod(shape)
    vectors, _ = torch.linalg.qr(
        torch.randn(n, 2 * k, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    fields: dict[str, Any] = {
        "eigenvalues": torch.tensor([4.0 / 10**i for i in range(2 * k)], dtype=torch.float64),
        "eigenvectors": vectors.T.reshape(2 * k, *shape),
        "eigenindex": torch.tensor([*range(k), *range(n - k, n)]),
        "residuals": torch.full((2 * k,), 2e-5, dtype=torch.float64),
        "error_bounds": torch.full((2 * k,), 1e-9, dtype=torch.float64),
        "status": (PairStatus.CONVERGED,) * (2 * k - 1) + (PairStatus.UNVERIFIED,),
        "stop_reason": StopReason.CONVERGED,
        "scale": 4.0,
        "tol": 1e-4,
        "num_products": 40,
        "num_verification_products": 8,
        "method": "lanczos",
        "metadata": {
            "model": {"class": "my.package.Net", "weights_sha256": "ab" * 32},
            "versions": {"torch": "2.13.0"},
            "config": {"solver": {"k": k}, "tags": {"kind": "test"}},
            "dtype": "torch.float64",
        },
    }
    return Spectrum(**{**fields, **changes})


def make_history(points: int = 40) -> dict[str, Any]:
    decay = [10.0 ** (-i / 8) for i in range(points)]
    return {
        "products": list(range(1, points + 1)),
        "seconds": [0.1 * i for i in range(points)],
        "tol": 1e-4,
        "residuals": {"0": decay, "-1": [math.nan] * 3 + decay[3:]},
        "eigenvalues": {"0": [4.0] * points, "-1": [0.5 * d for d in decay]},
    }


def make_run(shape: tuple[int, ...] = (1, 12, 16), **changes: Any) -> ReportRun:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fields: dict[str, Any] = {
        "title": "Net at noise",
        "spectrum": make_spectrum(shape),
        "image": 0.2 + 0.6 * image,
        "history": make_history(),
        "status": "FINISHED",
        "run_id": "0123456789abcdef",
        "picture_name": "noise",
    }
    return ReportRun(**{**fields, **changes})
