"""The types of the configuration's group ``noise``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

__all__ = ["FUNCTIONS", "NOISES", "GaussianConfig", "NoiseConfig", "noise_function"]


@dataclass
class NoiseConfig:
    """What every family takes; ``pixel_floor`` is κ of F + κI (``eigenexp.noise.PixelFloor``)."""

    family: str = "gaussian"
    pixel_floor: float = 0.0


@dataclass
class GaussianConfig(NoiseConfig):
    """Independent Gaussian noise; ``std`` is a number, a list, or a file (.npy, .pt)."""

    std: Any = 1.0


@dataclass
class GaussianCovarianceConfig(NoiseConfig):
    """Gaussian noise of one covariance; a file (.npy, .pt) of an m × m matrix."""

    family: str = "gaussian_covariance"
    covariance: str = MISSING


@dataclass
class LowRankConfig(NoiseConfig):
    """Independent variance and common causes; ``columns`` is a file of an m × r matrix."""

    family: str = "low_rank"
    columns: str = MISSING
    variance: Any = 1.0


@dataclass
class PoissonConfig(NoiseConfig):
    """Counts of rate f + ``dark``."""

    family: str = "poisson"
    dark: float = 0.0


@dataclass
class NegativeBinomialConfig(NoiseConfig):
    """Counts of variance μ + σ²μ²."""

    family: str = "negative_binomial"
    sigma: float = MISSING
    dark: float = 0.0


@dataclass
class FanoConfig(NoiseConfig):
    """Gaussian noise of variance αf."""

    family: str = "fano"
    fano: float = 1.0
    mean_only: bool = False


@dataclass
class MultiplicativeConfig(NoiseConfig):
    """Gaussian noise of standard deviation σf."""

    family: str = "multiplicative"
    sigma: float = MISSING
    mean_only: bool = False


@dataclass
class StateDependentConfig(NoiseConfig):
    """Gaussian noise of any s(f): ``package.module.function`` or ``./file.py:function``."""

    family: str = "state_dependent"
    std: str = MISSING
    mean_only: bool = False


@dataclass
class CovarianceConfig(NoiseConfig):
    """Gaussian noise of any C(f): ``package.module.function`` or ``./file.py:function``."""

    family: str = "covariance"
    covariance: str = MISSING
    mean_only: bool = False


@dataclass
class CategoricalConfig(NoiseConfig):
    """One of C answers; ``of`` is ``logits`` or ``probabilities``."""

    family: str = "categorical"
    of: str = "logits"
    classes: int | None = None


@dataclass
class BernoulliConfig(NoiseConfig):
    """Yes or no at each response."""

    family: str = "bernoulli"
    of: str = "logits"


@dataclass
class InputNoiseConfig(NoiseConfig):
    """White noise on the pixels before the model, and ``std`` after it."""

    family: str = "input_noise"
    input_std: float = MISSING
    std: float = 1.0


NOISES: dict[str, type[NoiseConfig]] = {
    "gaussian": GaussianConfig,
    "gaussian_covariance": GaussianCovarianceConfig,
    "low_rank": LowRankConfig,
    "poisson": PoissonConfig,
    "negative_binomial": NegativeBinomialConfig,
    "fano": FanoConfig,
    "multiplicative": MultiplicativeConfig,
    "state_dependent": StateDependentConfig,
    "covariance": CovarianceConfig,
    "categorical": CategoricalConfig,
    "bernoulli": BernoulliConfig,
    "input_noise": InputNoiseConfig,
}
FUNCTIONS = {"state_dependent": "std", "covariance": "covariance"}
"""Families that are a person's own function, and the key that names it."""


def noise_function(config: NoiseConfig) -> str | None:
    """Return the key of a configured noise that names a function, if there is one."""
    key = FUNCTIONS.get(config.family)
    return None if key is None else f"noise.{key}"
