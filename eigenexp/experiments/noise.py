"""Noise models from a configuration."""

from __future__ import annotations

from dataclasses import asdict

from eigenexp.errors import ConfigError, InputError
from eigenexp.experiments.arrays import read_array
from eigenexp.experiments.noise_schema import FUNCTIONS, NOISES, NoiseConfig
from eigenexp.experiments.targets import build_function
from eigenexp.operators.noise import FAMILIES, Noise, PixelFloor

__all__ = ["build_noise"]

_ARRAYS = {"gaussian": ("std",), "gaussian_covariance": ("covariance",),
           "low_rank": ("columns", "variance")}  # fmt: skip


def build_noise(config: NoiseConfig) -> Noise:
    """Return the configured noise model.

    Raises
    ------
    ConfigError
        Naming the key that cannot be used.
    """
    given = asdict(config)
    family, floor = given.pop("family"), given.pop("pixel_floor")
    if family not in NOISES:
        raise ConfigError(f"noise.family: expected one of {', '.join(NOISES)}, got {family!r}")
    for key in _ARRAYS.get(family, ()):
        if isinstance(given[key], str):
            given[key] = read_array(given[key], f"noise.{key}")
    if family in FUNCTIONS:
        key = FUNCTIONS[family]
        given[key] = build_function(str(given[key]), f"noise.{key}")
    try:
        noise = FAMILIES[family](**given)
        return PixelFloor(floor, noise) if floor else noise
    except (InputError, TypeError) as error:
        raise ConfigError(f"noise.{error}") from error
