"""Arrays that a configuration names by their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from eigenexp.errors import ConfigError
from eigenexp.spectrum import Spectrum

__all__ = ["read_array"]


def read_array(path: str, key: str) -> torch.Tensor:
    """Read numbers from a file (.npy, .pt, a spectrum's vectors); nothing in it is executed.

    Raises
    ------
    ConfigError
        When there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{key}: expected a number or a file of numbers, got {path!r}")
    try:
        if Path(path).suffix == ".safetensors":
            return Spectrum.load(path).eigenvectors
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
