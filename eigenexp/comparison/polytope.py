"""How far any pair of distortions could tell models apart: a bound from pencils of two."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.optimize
import torch
from scipy.spatial import HalfspaceIntersection, QhullError
from torch import Tensor

__all__ = ["LARGEST", "polytope_bound"]

LARGEST = 7
"""Models up to which every vertex is looked at: 0.2, 2.6 and 36 s for 6, 7 and 8."""


def polytope_bound(logarithms: Tensor) -> tuple[float, str]:
    """Return a bound of the variance of ln uᵀF_iu − ln vᵀF_iv over models, and how it was had.

    With a_i(u) = ln uᵀF_iu, a_i − a_j ≤ b_ij for every u, so that a(u) and a(v) lie in one
    polytope. The variance of a(u) − a(v) is convex, and largest at two of its vertices. For more
    than :data:`LARGEST` models, and where the polytope is flat, each difference is bounded by
    itself: (1/N²) Σ_{i<j} (b_ij + b_ji)².

    Parameters
    ----------
    logarithms
        b ``(N, N)``: upper bounds of ln λmax(F_i, F_j); the diagonal is not read.
    """
    b = logarithms.double()
    count = len(b)
    pairs = list(itertools.combinations(range(count), 2))
    if not all(np.isfinite(float(b[i, j])) for i, j in itertools.permutations(range(count), 2)):
        return float("inf"), "none: a pencil is not proved"
    relaxed = sum(max(float(b[i, j] + b[j, i]), 0.0) ** 2 for i, j in pairs) / count**2
    if count <= 2:
        return relaxed, "exact"
    if count > LARGEST:
        return relaxed, f"each difference by itself, as there are more than {LARGEST} models"
    rows = []
    for i, j in itertools.permutations(range(count), 2):
        row = np.zeros(count)
        row[i], row[j] = 1, -1
        rows.append([*row[1:], -float(b[i, j])])  # a₀ = 0: only differences count
    halfspaces = np.array(rows)
    normals, offsets = halfspaces[:, :-1], -halfspaces[:, -1]
    norms = np.linalg.norm(normals, axis=1)[:, None]
    inner = scipy.optimize.linprog(
        [0.0] * (count - 1) + [-1.0],
        A_ub=np.hstack([normals, norms]),
        b_ub=offsets,
        bounds=[(None, None)] * (count - 1) + [(0, None)],
    )
    if inner.x is None or inner.x[-1] < 1e-9:
        return relaxed, "each difference by itself, as the polytope is flat"
    try:
        vertices = HalfspaceIntersection(halfspaces, inner.x[:-1]).intersections
    except QhullError:
        return relaxed, "each difference by itself, as the polytope is nearly flat"
    corners = np.unique(np.round(vertices, 9), axis=0)
    corners = np.hstack([np.zeros((len(corners), 1)), corners])
    centred = torch.from_numpy(corners - corners.mean(1, keepdims=True))
    farthest = float(torch.cdist(centred, centred).max()) ** 2 / count
    # Rounded vertices are off by 1e-9 at the most.
    return min(relaxed, farthest * (1 + 1e-7) + 1e-7), "vertices of the polytope"
