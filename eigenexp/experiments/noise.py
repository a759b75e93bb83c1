"""Noise models from a configuration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from eigenexp.errors import ConfigError, InputError
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
            given[key] = _read_array(given[key], f"noise.{key}")
    if family in FUNCTIONS:
        key = FUNCTIONS[family]
        given[key] = build_function(str(given[key]), f"noise.{key}")
    try:
        noise = FAMILIES[family](**given)
        return PixelFloor(floor, noise) if floor else noise
    except (InputError, TypeError) as error:
        raise ConfigError(f"noise.{error}") from error


def _read_array(path: str, key: str) -> torch.Tensor:
    """Read numbers from a file; nothing in it is executed.

    Raises
    ------
    ConfigError
        When there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{key}: expected a number or a file of numbers, got {path!r}")
    try:
        if Path(path).suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader raises: the file is not what it should be
        raise ConfigError(
            f"{key}: expected a .npy file, or a tensor saved by torch, got {path} "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"{key}: expected a tensor in {path}, got {type(found).__name__}")
    return found
