"""The yardstick: the fewest products from one start vector without a preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.linalg import eigh_tridiagonal
from solver_problems import Cell
from torch import Tensor

EVERY_STEP = 128


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
    eigenvalue of its index. Beyond 128 steps every fourth is looked at, then those before it.

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
    looked = 0
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
        if step > EVERY_STEP and step % 4 and step < n:
            continue
        for size in range(step, looked, -1):
            reached = [
                goal
                for goal in goals
                if counts.get(goal, step) > looked
                and _is_reached(goal, alphas[:size], betas[:size], n, values)
            ]
            counts.update(dict.fromkeys(reached, size))
            if not reached:
                break
        if len(counts) == len(goals):
            break
        looked = step
    return counts


def _fresh(generator: torch.Generator, known: Tensor) -> Tensor:
    """Draw a random unit vector orthogonal to the rows of ``known``."""
    vector = torch.randn(known.shape[1], generator=generator, dtype=torch.float64)
    for _ in range(3):
        vector = vector / vector.norm()
        vector = vector - known.T @ (known @ vector)
    return vector / vector.norm()


def _is_reached(
    goal: Cell, alphas: list[float], betas: list[float], n: int, values: Tensor | None
) -> bool:
    """Whether the tridiagonal matrix holds every pair of ``goal``, right and to its tolerance."""
    size = len(alphas)
    if size < len(goal.wanted(n)):
        return False
    for end in ("top", "bottom") if goal.which == "both" else (goal.which,):
        first = 0 if end == "bottom" else size - goal.k
        ritz, vectors = eigh_tridiagonal(
            alphas, betas[:-1], select="i", select_range=(first, first + goal.k - 1)
        )
        if values is None:
            scale = _largest(alphas, betas)
            off = float(ritz.max()) if end == "bottom" else 0.0
        else:
            scale = float(values[0])
            true = values[-goal.k :] if end == "bottom" else values[: goal.k]
            off = float(abs(ritz - true.flip(0).numpy()).max())
        residual = betas[-1] * float(abs(vectors[-1]).max())
        if off > 2 * goal.tol * scale or residual > goal.tol * scale:
            return False
    return True


def _largest(alphas: list[float], betas: list[float]) -> float:
    last = len(alphas) - 1
    found = eigh_tridiagonal(
        alphas, betas[:-1], eigvals_only=True, select="i", select_range=(last, last)
    )
    return float(found[0])
