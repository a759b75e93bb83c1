"""Noise that grows with the response: spike counts, and Weber's law.

Each response varies by itself, so W = diag(w) also where the variance carries information: the
mean and the variance are functions of one number, and their information adds up,
w² = 1/C + ½ (C′/C)² (Kay 1993, eq. 3.31).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eigenexp.operators.noise.base import Adjoint, Noise, check_positive, positive_responses
from eigenexp.operators.noise.factors import Diagonal, Factor

__all__ = ["Fano", "Multiplicative", "NegativeBinomial", "Poisson"]


@dataclass(frozen=True, eq=False)
class Poisson(Noise):
    """Counts of rate f + b: F = Jᵀ diag(1/(f+b)) J, g = 2√(f+b).

    Parameters
    ----------
    dark
        b, the rate in the dark; f + b must be above 0.
    """

    name: ClassVar[str] = "poisson"
    dark: float = 0.0

    def __post_init__(self) -> None:
        check_positive("dark", self.dark, zero=True)
        object.__setattr__(self, "dark", float(self.dark))

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return diag((f+b)^{-1/2})."""
        return Diagonal(positive_responses(self, response, self.dark).rsqrt().to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return 2√(f+b)."""
        return 2 * (response + self.dark).sqrt()


@dataclass(frozen=True, eq=False)
class NegativeBinomial(Noise):
    """Counts whose rate is itself modulated: variance μ + σ²μ², F = Jᵀ diag(1/(μ+σ²μ²)) J.

    A Poisson process with a gamma-distributed gain (Goris, Movshon and Simoncelli 2014). σ → 0 is
    :class:`Poisson`.

    Parameters
    ----------
    sigma
        σ, the standard deviation of the gain.
    dark
        b; μ = f + b must be above 0.
    """

    name: ClassVar[str] = "negative_binomial"
    sigma: float
    dark: float = 0.0

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        check_positive("dark", self.dark, zero=True)
        object.__setattr__(self, "sigma", float(self.sigma))
        object.__setattr__(self, "dark", float(self.dark))

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return diag((μ+σ²μ²)^{-1/2})."""
        mean = positive_responses(self, response, self.dark)
        return Diagonal((mean + (self.sigma * mean).square()).rsqrt().to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return (2/σ) asinh(σ√μ)."""
        return 2 / self.sigma * torch.asinh(self.sigma * (response + self.dark).sqrt())


@dataclass(frozen=True, eq=False)
class Fano(Noise):
    """Gaussian noise of variance αf: F = Jᵀ diag(1/(αf) + 1/(2f²)) J (Kay 1993, eq. 3.31).

    Parameters
    ----------
    fano
        α, the Fano factor, in units of the response; f must be above 0.
    mean_only
        Leave out 1/(2f²), which the change of the variance tells.
    """

    name: ClassVar[str] = "fano"
    fano: float = 1.0
    mean_only: bool = False

    def __post_init__(self) -> None:
        check_positive("fano", self.fano)
        object.__setattr__(self, "fano", float(self.fano))

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return diag(√(1/(αf) + 1/(2f²)))."""
        rate = positive_responses(self, response)
        information = 1 / (self.fano * rate)
        if not self.mean_only:
            information = information + 0.5 / rate.square()
        return Diagonal(information.sqrt().to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return [f/√(αf₀); log f/√2]."""
        mean = response / (self.fano * at).sqrt()
        return mean if self.mean_only else torch.cat([mean, response.log() / 2**0.5])


@dataclass(frozen=True, eq=False)
class Multiplicative(Noise):
    """Gaussian noise of standard deviation σf (Weber): F = (1/σ² + 2) J_{log f}ᵀ J_{log f}.

    Parameters
    ----------
    sigma
        σ, without a unit; f must be above 0.
    mean_only
        Leave out the 2, which the change of the standard deviation tells.
    """

    name: ClassVar[str] = "multiplicative"
    sigma: float
    mean_only: bool = False

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        object.__setattr__(self, "sigma", float(self.sigma))

    @property
    def _gain(self) -> float:
        return float((self.sigma**-2 + (0 if self.mean_only else 2)) ** 0.5)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return √(1/σ² + 2) diag(1/f)."""
        return Diagonal((self._gain / positive_responses(self, response)).to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return √(1/σ² + 2) log f."""
        return self._gain * response.log()
