"""What a solver's progress is as metrics, by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eigenexp.eigensolvers.progress import Progress

__all__ = ["convergence_metrics", "monitored_metrics", "pair_name"]


def pair_name(index: int, n: int) -> str:
    """Return the place of a pair: 0, 1, … from the top, -1, -2, … from the bottom."""
    return str(index) if index < n / 2 else str(index - n)


def convergence_metrics(progress: Progress, n: int) -> dict[str, float]:
    """Return one flat dict of metrics: eigenvalue and relative residual of each pair, products.

    Residuals come as they are and as their log10: dashboards draw linear axes until told otherwise.
    """
    metrics = {"products": float(progress.num_products)}
    scale = progress.scale if progress.scale > 0 else 1.0
    for i, index in enumerate(progress.eigenindex.tolist()):
        name = pair_name(index, n)
        metrics[f"eigenvalue/{name}"] = float(progress.eigenvalues[i])
        residual = float(progress.residuals[i]) / scale
        metrics[f"residual/{name}"] = residual
        if 0 < residual < math.inf:
            metrics[f"residual_log10/{name}"] = math.log10(residual)
    if math.isfinite(progress.worst):
        metrics["worst_residual"] = progress.worst
        metrics["worst_residual_over_tol"] = progress.worst / progress.tol
    return metrics


def monitored_metrics(progress: Progress, n: int) -> dict[str, Tensor]:
    """Return what ``monitor="…"`` of Lightning's callbacks can name, as scalar tensors.

    ``worst_residual`` (infinite before the first estimate), ``products``, ``eigenvalue/<i>``.
    """
    names = [f"eigenvalue/{pair_name(index, n)}" for index in progress.eigenindex.tolist()]
    values = [progress.worst, float(progress.num_products), *progress.eigenvalues.tolist()]
    # One tensor and its entries: this is done at every turn.
    entries = torch.tensor(values, dtype=torch.float64).unbind()
    metrics = dict(zip(("worst_residual", "products", *names), entries, strict=True))
    return metrics
