"""Matrices with a prescribed spectrum, and dense float64 truth to hold results against."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.eigensolvers import Eigensolver, multiply
from eigenexp.operators import DenseOperator
from eigenexp.spectrum import PairStatus, Spectrum

EPS = torch.finfo(torch.float64).eps


def _line(start: float, stop: float, count: int) -> Tensor:
    return torch.linspace(start, stop, count, dtype=torch.float64)


def spectra(n: int = 48) -> dict[str, Tensor]:
    """Decreasing spectra of every awkward kind."""
    ones = torch.ones(n, dtype=torch.float64)
    return {
        "gap": torch.cat([ones[:1], _line(0.5, 0.1, n - 2), 0.001 * ones[:1]]),
        "geometric": torch.logspace(0, -8, n, dtype=torch.float64),
        "cluster": torch.cat(
            [1 - 1e-7 * _line(0, 3, 4), _line(0.6, 0.2, n - 8), 0.05 - 1e-7 * _line(0, 3, 4)]
        ),
        "repeated": torch.cat([ones[:3], _line(0.6, 0.2, n - 6), 0.1 * ones[:3]]),
        "rank_deficient": torch.cat([_line(1.0, 0.1, n // 2), 0 * ones[: n - n // 2]]),
        "one_ulp": torch.cat(
            [1 + EPS * _line(4, 0, 5), _line(0.6, 0.3, n - 10), 0.1 + EPS * _line(4, 0, 5)]
        ),
        "identity": ones,
        "zero": 0 * ones,
        "tiny_scale": 1e-12 * torch.cat([_line(1.0, 0.3, n - 1), 0.01 * ones[:1]]),
        "one_large": torch.cat([1e6 * ones[:1], _line(1.0, 0.5, n - 1)]),
    }


def jacobian(eigenvalues: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return J with JᵀJ of these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n, n, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(random)[0]
    return (eigenvalues.clamp_min(0).sqrt()[:, None] * q.T).to(dtype)


def true_eigenvalues(J: Tensor) -> Tensor:
    """Return all eigenvalues of JᵀJ, decreasing, from the singular values of J."""
    sigma = torch.linalg.svdvals(J.double())
    values = torch.zeros(J.shape[1], dtype=torch.float64)
    values[: len(sigma)] = sigma**2
    return values


def run(
    solver: Eigensolver, operator: DenseOperator, *, responses: bool = True, most: int = 100000
) -> Spectrum:
    """Drive a solver to its end, or for ``most`` turns."""
    for _ in range(most):
        if solver.done:
            break
        products, told = multiply(operator, solver.request, solver.ask())
        solver.tell(products, told if responses else None)
    return solver.result()


def assert_truthful(spectrum: Spectrum, J: Tensor, *, slack: float = 0.0) -> None:
    """Every claim of a spectrum, held against dense float64."""
    truth = true_eigenvalues(J)
    F = J.double().T @ J.double()
    scale = float(truth[0])
    X = spectrum.eigenvectors.reshape(len(spectrum), -1).double()
    gram = X @ X.T
    eps = torch.finfo(J.dtype).eps
    # Within an end pairs are orthogonal to the accuracy of one Rayleigh-Ritz; residuals bound
    # what two ends may overlap.
    torch.testing.assert_close(
        gram, torch.eye(len(X), dtype=torch.float64), rtol=0, atol=1e-3 if eps > 1e-10 else 1e-6
    )
    real = torch.linalg.vector_norm(X @ F - spectrum.eigenvalues[:, None] * X, dim=1)
    floor = 32 * eps * scale + slack
    assert (real <= 1.01 * spectrum.residuals + floor).all(), (real, spectrum.residuals)
    assert (spectrum.eigenvalues.diff() <= floor).all()
    nearest = (spectrum.eigenvalues[:, None] - truth[None, :]).abs().min(dim=1).values
    assert (nearest <= spectrum.error_bounds + floor).all()
    for i, status in enumerate(spectrum.status):
        if status is PairStatus.CONVERGED:
            assert spectrum.residuals[i] <= spectrum.tol * spectrum.scale
            wrong = float((spectrum.eigenvalues[i] - truth[spectrum.eigenindex[i]]).abs())
            assert wrong <= 2 * spectrum.tol * scale + floor, (i, wrong / scale)
        elif status is PairStatus.UNCONVERGED:
            assert spectrum.residuals[i] > spectrum.tol * spectrum.scale
