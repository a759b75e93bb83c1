"""λmax of several operators from one search space, and how far it may be above what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eigenexp.comparison.space import SharedSpace
from eigenexp.eigensolvers.certificates.witness import Evidence, largest_trace, trace_limit

__all__ = ["scale_direction", "scale_errors"]

CLUSTER = 0.03
"""Relative gap below which two values count as one: which of them is found hardly matters."""
STEPS = 40
"""Relative excesses that are tried, each a third of the one before."""


def scale_direction(space: SharedSpace, tol: float) -> Tensor | None:
    """Return the residual of the top pair that is known least, ``(n, 1)``; None: all are known.

    A Ritz value is off by about ‖r‖²/gap, with the gap to the next one; an estimate, as the bound
    is had from :func:`scale_errors`.
    """
    worst, direction = tol, None
    for i in range(space.count):
        values, vectors = torch.linalg.eigh(space.projected[i])
        top = float(values[-1])
        if not top > 0:
            continue
        c = vectors[:, -1:]
        r = space.products(i).double() @ c.to(space.basis.device)
        r = r - top * (space.basis.double() @ c.to(space.basis.device))
        size = float(r.norm()) / top
        gap = (top - float(values[-2])) / top if len(values) > 1 else 0.0
        error = min(size, size * size / max(gap, CLUSTER))
        if error > worst and size > 10 * space.eps:
            worst, direction = error, r
    return None if direction is None else direction.to(space.basis)


def scale_errors(
    space: SharedSpace, probe: Tensor, scales: Sequence[float], chance: float
) -> list[float]:
    """Return by how much each λmax may exceed its scale, relative, but for the chance each.

    The first vector of the space was drawn before anything was known: with nothing deflated it is
    a witness of its own (:mod:`eigenexp.eigensolvers.certificates.witness`). Infinite where it
    shows nothing.

    Parameters
    ----------
    probe
        Vᵀg₀.
    scales
        Ritz values.
    chance
        For one operator.
    """
    if not chance > 0:
        return [float("inf")] * len(scales)
    limit = trace_limit(chance, space.n)
    padded = torch.zeros(space.size, dtype=torch.float64)
    padded[: len(probe)] = probe
    errors = []
    for i, scale in enumerate(scales):
        values, vectors = torch.linalg.eigh(space.projected[i])
        values, vectors = values.flip(0), vectors.flip(1)
        c = vectors.to(space.basis.device)
        r = space.products(i).double() @ c - (space.basis.double() @ c) * values.to(c)
        evidence = Evidence(values, (r.mT @ r).cpu(), vectors.mT @ padded)
        top, last = float(values[0]), None
        known = float("inf")
        for step in range(STEPS):
            excess = 3.0 ** (2 - step)
            edge = max(top, scale) * (1 + excess)
            trace = largest_trace(evidence, "top", edge, top, limit, last=last)
            if trace.bound > limit:
                break
            known, last = edge / scale - 1, edge
        errors.append(known)
    return errors
