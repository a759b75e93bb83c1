"""The judge of a proof: whether what a solve said of itself is true of the dense matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from proof_problems import Truth

import eigenexp as ee
from eigenexp.spectrum import PairStatus

__all__ = ["Verdict", "judge", "most_products", "run"]


def most_products(n: int) -> int:
    """Return the number of products that no solve may exceed."""
    return 60 * n + 2000


@dataclass(frozen=True)
class Verdict:
    """What one solve said that is not true, and how it ended.

    Attributes
    ----------
    wrong
        Sentences: pairs said to be ``converged`` that are not the pairs of their index.
    false_bounds
        Sentences: pairs with no true eigenvalue within their printed bound.
    error
        The exception, or empty.
    status
        The worst of the pairs'.
    over
        Whether it took more than :func:`most_products`.
    skew
        The largest entry of |VᵀV − I|.
    """

    wrong: tuple[str, ...] = ()
    false_bounds: tuple[str, ...] = ()
    error: str = ""
    status: str = ""
    stop_reason: str = ""
    products: int = 0
    over: bool = False
    skew: float = 0.0
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether anything said is false."""
        return bool(self.wrong or self.false_bounds or self.error or self.over)


def run(truth: Truth, settings: Mapping[str, Any]) -> Verdict:
    """Solve and judge; whatever is raised is part of the verdict."""
    begun = time.perf_counter()
    limit = most_products(truth.n)
    try:
        found = ee.solve(truth.operator, max_products=limit + 1, **settings)
    except Exception as error:  # a benchmark of faults: each is told, none ends it
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Verdict(error=text, seconds=time.perf_counter() - begun)
    return judge(
        truth, found, float(settings["tol"]), int(settings["k"]), time.perf_counter() - begun
    )


def judge(truth: Truth, found: ee.Spectrum, tol: float, k: int, seconds: float = 0.0) -> Verdict:
    """Hold every pair of a spectrum against the dense truth, index by index.

    A converged pair is wrong when its eigenvalue is further than (1 + √k) · tol · λmax from the
    true one of its index, or further than its own bound, or when its true residual is above
    tol · λmax by more than rounding; k pairs are wanted at an end. A bound is false when no true
    eigenvalue lies within it.
    """
    n, count, scale = truth.n, len(found), truth.scale
    slack = truth.slack * scale
    eps = torch.finfo(found.eigenvectors.dtype).eps
    limit = (1 + math.sqrt(k)) * tol * scale + slack
    vectors = found.eigenvectors.reshape(count, -1).double().T
    values = found.eigenvalues.double()
    residuals = (truth.product(vectors) - vectors * values).norm(dim=0)
    wrong, false = [], []
    for i in range(count):
        index, value = int(found.eigenindex[i]), float(values[i])
        bound = float(found.error_bounds[i])
        error = abs(value - float(truth.values[index]))
        nearest = float((truth.values - value).abs().min())
        if not nearest <= bound + slack:
            false.append(
                f"pair {index}: θ = {value:.6g}, bound {bound:.1e}, nearest eigenvalue "
                f"{nearest:.1e} away (λmax {scale:.3g})"
            )
        if found.status[i] is not PairStatus.CONVERGED:
            continue
        if not error <= limit:
            said = f"off by {error / scale:.1e} λmax, allowed {limit / scale:.1e}"
        elif not error <= bound + slack:
            said = f"off by {error:.1e}, beyond its bound {bound:.1e}"
        elif not float(residuals[i]) <= (tol * (1 + 1e-6) + 8 * eps * math.sqrt(n)) * scale:
            said = f"residual {float(residuals[i]) / scale:.1e} λmax, tol {tol:.0e}"
        else:
            continue
        wrong.append(f"pair {index}: θ = {value:.6g}, λ = {float(truth.values[index]):.6g}: {said}")
    ranks = [s.value for s in PairStatus]
    statuses = [s.value for s in found.status]
    gram = vectors.T @ vectors - torch.eye(count, dtype=torch.float64)
    return Verdict(
        wrong=tuple(wrong),
        false_bounds=tuple(false),
        status=max(statuses, key=ranks.index, default="none"),
        stop_reason=found.stop_reason.value,
        products=found.num_products,
        over=found.num_products > most_products(n),
        skew=float(gram.abs().max()) if count else 0.0,
        seconds=seconds,
        notes=found.notes,
    )
