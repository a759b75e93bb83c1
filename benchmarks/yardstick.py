"""The yardstick: the fewest products from one start vector without a preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from solver_problems import Cell
from torch import Tensor


def least_products(
    multiply: Callable[[Tensor], Tensor],
    n: int,
    seed: int,
    goals: Sequence[Cell],
    values: Tensor | None = None,
) -> dict[Cell, int]:
    """Return the products that Lanczos without restarts needs for every goal, from one run.

    Full reorthogonalisation, twice; started from the random vector our own solvers draw for
    ``seed``; continued with a fresh random vector when its Krylov space is exhausted. A goal is
    reached at the first step where, for every pair of it, the residual (β |s|, exact in exact
    arithmetic) is at most ``tol · λmax`` and the Ritz value lies within ``2 · tol · λmax`` of the
    eigenvalue of its index.

    Parameters
    ----------
    multiply
        F·v for v of shape ``(n,)``, float64.
    values
        The true eigenvalues, decreasing. Without them (too large to decompose) λmax is the largest
        Ritz value, the top counts as right where its residual is small, and the bottom where its
        Ritz values, bounds from above of eigenvalues of at least 0, are at most ``2 · tol · λmax``.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.empty(min(n, 256), n, dtype=torch.float64)
    alphas: list[float] = []
    betas: list[float] = []
    counts: dict[Cell, int] = {}
    q = _fresh(generator, basis[:0])
    for step in range(1, n + 1):
        if step > len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[step - 1] = q
        known = basis[:step]
        w = multiply(q)
        alphas.append(float(q @ w))
        for _ in range(2):
            w = w - known.T @ (known @ w)
        beta = float(w.norm())
        exhausted = beta <= 1e-13 * max(alphas)
        betas.append(0.0 if exhausted else beta)
        if step < n:
            q = _fresh(generator, known) if exhausted else w / beta
        left = [goal for goal in goals if goal not in counts]
        counts.update(dict.fromkeys(_reached(left, alphas, betas, n, values), step))
        if len(counts) == len(goals):
            break
    return counts


def _fresh(generator: torch.Generator, known: Tensor) -> Tensor:
    """Draw a random unit vector orthogonal to the rows of ``known``."""
    vector = torch.randn(known.shape[1], generator=generator, dtype=torch.float64)
    for _ in range(3):
        vector = vector / vector.norm()
        vector = vector - known.T @ (known @ vector)
    return vector / vector.norm()


def _reached(
    goals: list[Cell], alphas: list[float], betas: list[float], n: int, values: Tensor | None
) -> list[Cell]:
    """Return those goals of which the tridiagonal matrix holds every pair, right and accurate."""
    size = len(alphas)
    goals = [goal for goal in goals if size >= len(goal.wanted(n))]
    k = min(size, max((goal.k for goal in goals), default=0))
    if k == 0:
        return []

    def extreme(first: int, last: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        ritz, vectors = eigh_tridiagonal(alphas, betas[:-1], select="i", select_range=(first, last))
        return ritz, betas[-1] * abs(vectors[-1])

    # Outermost pair first, at both ends.
    found = {"bottom": extreme(0, k - 1)}
    found["top"] = tuple(part[::-1] for part in extreme(size - k, size - 1))
    scale = float(found["top"][0][0] if values is None else values[0])

    def holds(goal: Cell, end: str) -> bool:
        ritz, residuals = (part[: goal.k] for part in found[end])
        if values is not None:
            true = values if end == "top" else values.flip(0)
            off = abs(ritz - true[: goal.k].numpy())
        else:
            off = ritz if end == "bottom" else 0 * ritz
        return bool((residuals <= goal.tol * scale).all() and (off <= 2 * goal.tol * scale).all())

    ends = {"both": ("top", "bottom")}
    return [g for g in goals if all(holds(g, end) for end in ends.get(g.which, (g.which,)))]
