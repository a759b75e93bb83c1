"""Noise before the model, and an observer's own look at the pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from eigenexp.errors import InputTypeError, ModelError
from eigenexp.operators.noise.base import Adjoint, Noise, check_positive
from eigenexp.operators.noise.factors import Dense, Factor
from eigenexp.operators.noise.gaussian import Gaussian

__all__ = ["MOST_ROWS", "InputNoise", "PixelFloor"]

MOST_ROWS = 4096
"""Responses for which J and JJᵀ are gathered: m half products, once."""


@dataclass(frozen=True, eq=False)
class InputNoise(Noise):
    """White noise on the pixels, seen through the model, and more at its output.

    F = Jᵀ (σ² I + s² J Jᵀ)⁻¹ J with J held fixed: the vectors of JᵀJ, λ ↦ λ / (σ² + s² λ), where
    every perturbation is considered. The term that the change of the covariance would add is left
    out (``mean_only`` in the description).

    Parameters
    ----------
    input_std
        s, in the picture's units.
    std
        σ, in the response's units.

    Notes
    -----
    J is gathered once, m half products; m is at most :data:`MOST_ROWS`. For a spectrum of JᵀJ that
    is there already, :meth:`eigenvalues` is the exact map.
    """

    name: ClassVar[str] = "input_noise"
    input_std: float
    std: float = 1.0
    mean_only: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_positive("input_std", self.input_std)
        check_positive("std", self.std)
        object.__setattr__(self, "input_std", float(self.input_std))
        object.__setattr__(self, "std", float(self.std))

    def eigenvalues(self, eigenvalues: Tensor) -> Tensor:
        """Return λ / (σ² + s² λ) for eigenvalues λ of JᵀJ over all pixels."""
        return eigenvalues / (self.std**2 + self.input_std**2 * eigenvalues)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return the inverse root of σ² I + s² J Jᵀ."""
        m = len(response)
        if m > MOST_ROWS:
            raise ModelError(
                f"noise {self}: expected at most {MOST_ROWS} responses, for which J Jᵀ is "
                f"gathered, got {m}; solve with gaussian noise and map its eigenvalues by "
                "InputNoise(…).eigenvalues, which is exact where all pixels are free"
            )
        unit = torch.zeros_like(response)
        rows = []
        for i in range(m):
            unit[i] = 1
            rows.append(pull(unit).detach().reshape(-1).to(torch.float64))
            unit[i] = 0
        jacobian = torch.stack(rows)
        covariance = self.input_std**2 * (jacobian @ jacobian.T)
        covariance.diagonal().add_(self.std**2)
        lower = torch.linalg.cholesky(covariance)
        eye = torch.eye(m, dtype=torch.float64, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        return Dense(inverse.to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Refuse: the covariance at one picture is that of its J, which is not at hand here.

        Raises
        ------
        ModelError
            Always.
        """
        raise ModelError(
            f"noise {self}: expected a noise whose response g is a function of f alone for finite "
            "amplitudes, got one that depends on J; take d′ = α√λ"
        )


@dataclass(frozen=True, eq=False)
class PixelFloor(Noise):
    """An observer who also sees the pixels themselves, each with variance 1/κ: F + κ I.

    The vectors stay, λ ↦ λ + κ, so that a model that is blind to a change no longer predicts an
    infinite threshold. Part of the operator: with a metric B it is BᵀFB + κ BᵀB.

    Parameters
    ----------
    kappa
        κ, per squared unit of the picture.
    noise
        Of the model's response.
    """

    name: ClassVar[str] = "pixel_floor"
    kappa: float
    noise: Noise = field(default_factory=Gaussian)

    def __post_init__(self) -> None:
        check_positive("kappa", self.kappa)
        object.__setattr__(self, "kappa", float(self.kappa))
        if not isinstance(self.noise, Noise):
            raise InputTypeError(f"noise: expected a Noise, got {type(self.noise).__name__}")

    @property
    def floor(self) -> float:
        """κ, with that of the noise inside."""
        return self.kappa + self.noise.floor

    def factor(self, response: Tensor, pull: Adjoint) -> Factor | None:
        """Return that of the noise inside; κ is added to F beside it."""
        return self.noise.factor(response, pull)

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return that of the noise inside; κ α² is added to d′² beside it."""
        return self.noise.transform(response, at)
