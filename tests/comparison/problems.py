"""Pencils whose answers are known: dense float64 oracles."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor

from eigenexp.operators import DenseOperator


def semidefinite(n: int, rank: int, seed: int, null: Tensor | None = None) -> Tensor:
    """A random F of a rank, eigenvalues over four decades, that takes ``null`` ``(n, d)`` to 0."""
    generator = torch.Generator().manual_seed(seed)
    values = 10 ** (-4 * torch.rand(rank, generator=generator, dtype=torch.float64))
    root = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    root = torch.linalg.qr(root.mT).Q.mT * values.sqrt()[:, None]
    if null is not None:
        root = root - (root @ null) @ null.mT
    return root.mT @ root


def directions(n: int, count: int, seed: int) -> Tensor:
    """Random orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, count, generator=generator, dtype=torch.float64)).Q


def truth(a: Tensor, b: Tensor, delta: float, scales: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Every μ of both sides, decreasing."""
    a, b = a / scales[0], b / scales[1]
    s = (a + b + delta * torch.eye(len(a), dtype=torch.float64)).numpy()
    found = (scipy.linalg.eigh(m.numpy(), s, eigvals_only=True)[::-1].copy() for m in (a, b))
    first, second = (torch.from_numpy(values) for values in found)
    return first, second


def operators(*matrices: Tensor) -> list[DenseOperator]:
    return [DenseOperator((m + m.mT) / 2) for m in matrices]
