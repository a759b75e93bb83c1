"""Noise models: how a response varies, and so what F is. ``noise=`` of every operator and module.

Each is a small frozen object that gives the linear factor W left of J, F = (W J)ᵀ(W J): routes,
preconditioner, certificates and resuming see J alone. Public as ``eigenexp.noise``.
"""

from eigenexp.operators.noise.base import Noise
from eigenexp.operators.noise.gaussian import Gaussian, GaussianCovariance, LowRank
from eigenexp.operators.noise.general import Covariance, StateDependent
from eigenexp.operators.noise.observer import InputNoise, PixelFloor
from eigenexp.operators.noise.probabilities import Bernoulli, Categorical
from eigenexp.operators.noise.rates import Fano, Multiplicative, NegativeBinomial, Poisson

__all__ = [
    "FAMILIES",
    "Bernoulli",
    "Categorical",
    "Covariance",
    "Fano",
    "Gaussian",
    "GaussianCovariance",
    "InputNoise",
    "LowRank",
    "Multiplicative",
    "NegativeBinomial",
    "Noise",
    "PixelFloor",
    "Poisson",
    "StateDependent",
]

FAMILIES: dict[str, type[Noise]] = {
    kind.name: kind
    for kind in (
        Gaussian,
        GaussianCovariance,
        LowRank,
        Poisson,
        NegativeBinomial,
        Fano,
        Multiplicative,
        StateDependent,
        Covariance,
        Categorical,
        Bernoulli,
        InputNoise,
        PixelFloor,
    )
}
"""The families, by the names of the configuration's group ``noise``."""
