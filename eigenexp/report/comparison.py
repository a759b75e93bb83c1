"""Several runs in one table: what they share, what differs, how much their distortions agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenexp.report.view import ReportRun, sensitivity_ratio
from eigenexp.spectrum import Spectrum

__all__ = ["ComparisonRow", "agreement", "comparison_rows"]


@dataclass(frozen=True)
class ComparisonRow:
    """One row: what, a value a run, and whether the values differ."""

    name: str
    values: list[str]
    differs: bool


def comparison_rows(runs: Sequence[ReportRun]) -> list[ComparisonRow]:
    """Return the rows of the comparison table, one column a run."""
    first = runs[0].spectrum
    table = {
        "model": [_fact(run, "model", "class").rpartition(".")[2] for run in runs],
        "picture": [run.picture_name for run in runs],
        "size": ["×".join(str(side) for side in run.spectrum.eigenvectors.shape[1:])
                 for run in runs],
        "method": [run.spectrum.method for run in runs],
        "precision": [_fact(run, "dtype").removeprefix("torch.") for run in runs],
        "λ largest": [_extreme(run.spectrum, 0) for run in runs],
        "λ smallest": [_extreme(run.spectrum, -1) for run in runs],
        "sensitivity ratio √(λ largest / λ smallest)": [_ratio(run.spectrum) for run in runs],
        "worst residual / λmax": [
            f"{float(run.spectrum.relative_residuals.max()):.1e}" for run in runs
        ],
        "tolerance": [f"{run.spectrum.tol:.0e}" for run in runs],
        "pairs proven": [
            f"{int(run.spectrum.converged.sum())} of {len(run.spectrum)}" for run in runs
        ],
        "stopped because": [run.spectrum.stop_reason.value for run in runs],
        "products F·v": [str(run.spectrum.num_products) for run in runs],
        "seconds": [_seconds(run) for run in runs],
    }  # fmt: skip
    rows = [
        ComparisonRow(name, values, len(set(values)) > 1)
        for name, values in table.items()
        if any(values)
    ]
    for name, place in (("most", 0), ("least", -1)):
        alike = [agreement(first, run.spectrum, place) for run in runs]
        texts = ["" if value is None else f"{value:.3f}" for value in alike]
        if any(texts[1:]):
            label = f"|cos| of the {name} noticeable distortion with run 1"
            rows.append(ComparisonRow(label, texts, len(set(texts)) > 1))
    return rows


def agreement(a: Spectrum, b: Spectrum, place: int) -> float | None:
    """Return |⟨a, b⟩| of the first (0) or last (-1) distortions: 1 the same, 0 unrelated.

    ``None`` where sizes differ or a spectrum does not reach that end.
    """
    if (a.num_pixels, a.order) != (b.num_pixels, b.order):
        return None
    wanted = 0 if place == 0 else a.order - 1
    if int(a.eigenindex[place]) != wanted or int(b.eigenindex[place]) != wanted:
        return None
    u, v = (_unit(s.eigenvectors[place]) for s in (a, b))
    return min(1.0, abs(float(u @ v)))


def _unit(vector: Tensor) -> Tensor:
    flat = vector.detach().to(device="cpu", dtype=torch.float64).reshape(-1)
    unit: Tensor = flat / torch.linalg.vector_norm(flat).clamp_min(torch.finfo(torch.float64).tiny)
    return unit


def _fact(run: ReportRun, *path: str) -> str:
    value: object = run.spectrum.metadata
    for key in path:
        value = value.get(key) if hasattr(value, "get") else None
    return "" if value is None else str(value)


def _extreme(spectrum: Spectrum, place: int) -> str:
    n, index = spectrum.order, int(spectrum.eigenindex[place])
    if index != (0 if place == 0 else n - 1):
        return ""
    return spectrum.known[place]


def _ratio(spectrum: Spectrum) -> str:
    ratio = sensitivity_ratio(spectrum)
    return "" if ratio is None else str(ratio["text"])


def _seconds(run: ReportRun) -> str:
    seconds = (run.history or {}).get("seconds") or []
    return f"{seconds[-1]:.1f}" if seconds and math.isfinite(seconds[-1]) else ""
