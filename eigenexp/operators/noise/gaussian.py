"""Gaussian noise whose covariance does not depend on the picture: F = Jᵀ Σ⁻¹ J."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.errors import EigenexpError, InputError, InputTypeError, ModelError
from eigenexp.operators.memory import check_fits
from eigenexp.operators.noise.base import Adjoint, Noise, check_positive, values
from eigenexp.operators.noise.factors import Dense, Diagonal, Factor, LowRankRoot

__all__ = ["Gaussian", "GaussianCovariance", "LowRank", "noise_or_default"]


@dataclass(frozen=True, eq=False)
class Gaussian(Noise):
    """Independent Gaussian noise: F = Jᵀ diag(1/s²) J (Kay 1993, eq. 3.31).

    Parameters
    ----------
    std
        s, in the units of the response: a number, or one a response.
    """

    name: ClassVar[str] = "gaussian"
    std: Any = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.std, int | float) and not isinstance(self.std, bool):
            check_positive("std", self.std)
            object.__setattr__(self, "std", float(self.std))
            return
        std = values("std", self.std)
        if not bool((std > 0).all()):
            raise InputError(f"std: expected numbers above 0, got {float(std.min())}")
        object.__setattr__(self, "std", std)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor | None:
        """Return diag(1/s)."""
        if not isinstance(self.std, Tensor):
            if self.std == 1.0:
                return None
            return Diagonal(torch.full_like(response, 1 / self.std))
        _check_size(self, len(self.std), response)
        return Diagonal(self.std.reciprocal().to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return f/s."""
        std = self.std.to(response) if isinstance(self.std, Tensor) else self.std
        return response / std


@dataclass(frozen=True, eq=False)
class GaussianCovariance(Noise):
    """Gaussian noise of one covariance Σ: F = Jᵀ Σ⁻¹ J (Kay 1993, eq. 3.31).

    A product costs 2 m² operations more, and m² numbers are kept.

    Parameters
    ----------
    covariance
        Σ ``(m, m)``, symmetric and positive definite.
    """

    name: ClassVar[str] = "gaussian_covariance"
    covariance: Any

    def __post_init__(self) -> None:
        matrix = values("covariance", self.covariance, 2)
        if matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"covariance: expected a square, got shape {tuple(matrix.shape)}")
        skew = float((matrix - matrix.T).abs().max())
        if skew > 1e-10 * float(matrix.abs().max()):
            raise InputError(f"covariance: expected a symmetric matrix, got |Σ − Σᵀ| to {skew:.3g}")
        if torch.linalg.cholesky_ex(matrix).info:
            least = float(torch.linalg.eigvalsh(matrix)[0])
            raise InputError(
                f"covariance: expected a positive definite matrix, got eigenvalues from "
                f"{least:.3g}; add a variance to its diagonal"
            )
        object.__setattr__(self, "covariance", matrix)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return L⁻¹, Σ = LLᵀ."""
        _check_size(self, len(self.covariance), response)
        return Dense(_inverse_root(self.covariance).to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return L⁻¹ f."""
        scaled: Tensor = _inverse_root(self.covariance).to(response) @ response
        return scaled


@dataclass(frozen=True, eq=False)
class LowRank(Noise):
    """Independent noise and a few common causes: Σ = diag(d) + U Uᵀ, F = Jᵀ Σ⁻¹ J.

    By Woodbury's identity: a product costs 2 m r operations more.

    Parameters
    ----------
    columns
        U ``(m, r)``.
    variance
        d: a number, or one a response; above 0.
    """

    name: ClassVar[str] = "low_rank"
    columns: Any
    variance: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", values("columns", self.columns, 2))
        if isinstance(self.variance, int | float):
            check_positive("variance", self.variance)
            object.__setattr__(self, "variance", float(self.variance))
            return
        variance = values("variance", self.variance)
        if len(variance) != len(self.columns) or not bool((variance > 0).all()):
            raise InputError(
                f"variance: expected a number above 0, or {len(self.columns)} of them, got "
                f"{len(variance)} from {float(variance.min()):.3g}"
            )
        object.__setattr__(self, "variance", variance)

    def _root(self) -> LowRankRoot:
        diagonal = torch.as_tensor(self.variance, dtype=torch.float64).expand(len(self.columns))
        return LowRankRoot(diagonal, self.columns)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return Σ^{-1/2} up to a rotation."""
        _check_size(self, len(self.columns), response)
        return self._root().to(response)

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return W f."""
        return self._root().to(response).apply(response)


def _inverse_root(covariance: Tensor) -> Tensor:
    m = len(covariance)
    check_fits(m, 3 * m, torch.float64, torch.device("cpu"))
    lower = torch.linalg.cholesky(covariance)
    eye = torch.eye(m, dtype=torch.float64)
    inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
    return inverse


def _check_size(noise: Noise, size: int, response: Tensor) -> None:
    if size != len(response):
        raise ModelError(
            f"noise {noise}: expected a response of {size} values, got {len(response)}; give one "
            "parameter a response"
        )


def noise_or_default(given: object, refusal: type[EigenexpError] = InputTypeError) -> Noise:
    """Return the noise model given; independent Gaussian noise of standard deviation 1 for None.

    Raises
    ------
    EigenexpError
        A ``refusal``, of what is no noise model.
    """
    if given is None:
        return Gaussian()
    if not isinstance(given, Noise):
        raise refusal(f"noise: expected one of eigenexp.noise, got {type(given).__name__}")
    return given
