"""The principal pair within a subspace: pure functions of small matrices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

__all__ = ["best_pair", "log_ratios", "ritz_starts", "spread"]

Array = NDArray[np.float64]


def log_ratios(matrices: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ln uᵀG_iu − ln vᵀG_iv, ``(N,)``, for G ``(N, m, m)`` and u, v ``(m,)``."""
    seen = torch.einsum("j,ijk,k->i", u, matrices, u)
    unseen = torch.einsum("j,ijk,k->i", v, matrices, v)
    return seen.log() - unseen.log()


def spread(ratios: Tensor, projector: Tensor) -> float:
    """Return ‖Q r‖²/N: the variance of the ratios, off the axes that Q leaves out."""
    return float((projector @ ratios).square().mean())


def best_pair(matrices: Tensor, projector: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """Return the best (u, v), ``(2, m)`` of unit rows, that L-BFGS reaches from the starts.

    Maximises ‖Q r‖²/N with r_i = ln uᵀG_iu − ln vᵀG_iv. With d = Q r the gradient in u is
    4/N Σ d_i G_iu/uᵀG_iu, and that in v the same with the other sign.

    Parameters
    ----------
    matrices
        G, ``(N, m, m)``, symmetric, positive definite.
    projector
        Q, ``(N, N)``.
    starts
        ``(2, m)`` each.
    """
    g, q = matrices.numpy(), projector.numpy()
    count, m, _ = g.shape

    def negative(z: Array) -> tuple[float, Array]:
        u, v = z[:m], z[m:]
        gu, gv = g @ u, g @ v
        su, sv = gu @ u, gv @ v
        d = q @ (np.log(su) - np.log(sv))
        slope_u = (4 / count) * (d / su) @ gu
        slope_v = (-4 / count) * (d / sv) @ gv
        return -float(d @ d) / count, -np.concatenate([slope_u, slope_v])

    best, found = np.inf, starts[0].numpy()
    for start in starts:
        unit = (start / start.norm(dim=1, keepdim=True)).numpy()
        reached = minimize(
            negative,
            unit.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 300, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-10},
        )
        if reached.fun < best:
            best, found = reached.fun, reached.x.reshape(2, m)
    pair = torch.from_numpy(np.array(found))
    reached_pair: Tensor = pair / pair.norm(dim=1, keepdim=True)
    return reached_pair


def ritz_starts(matrices: Tensor) -> list[Tensor]:
    """Return the two ends of the pencil of every pair of matrices, ``(2, m)`` each."""
    found = []
    for i, j in itertools.combinations(range(len(matrices)), 2):
        _, vectors = scipy.linalg.eigh(matrices[i].numpy(), matrices[j].numpy())
        found.append(torch.from_numpy(np.stack([vectors[:, -1], vectors[:, 0]])))
    return found
