"""What a model that the manifest does not know says of the stimuli: d′ between their files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenexp.errors import InputError, ModelError
from eigenexp.operators.noise import Gaussian, Noise
from eigenexp.scoring.design import Prediction
from eigenexp.stimuli.levels import Light, read_levels
from eigenexp.stimuli.manifest import read_manifest
from eigenexp.stimuli.sources import Observer

__all__ = ["predict"]


def predict(
    folder: str | os.PathLike[str],
    model: Callable[..., Any],
    noise: Noise | None = None,
    name: str = "",
) -> Prediction:
    """Return d′ of every stimulus of a folder under a model, from the files as they are.

    Parameters
    ----------
    folder
        With ``manifest.json`` and the pictures.
    model
        From a picture ``(1, C, H, W)`` to its response.
    noise
        Of the response; Gaussian of standard deviation 1 where none is given.
    name
        Of the model; by default its class.

    Returns
    -------
    Prediction
        Without eigenvalues: files have amplitudes, no infinitesimal changes.

    Raises
    ------
    CheckpointError, ImageError
        When the manifest or a file is missing or damaged.
    InputError
        When the model or its noise does not take a picture.

    Notes
    -----
    With those of the manifest it goes to :func:`~eigenexp.scoring.score` as ``predictions=``.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    root = place if place.is_dir() else place.parent
    light = Light(manifest.display)
    called = name or type(model).__name__
    used = noise if noise is not None else Gaussian()

    def shown(file: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(light.decode(read_levels(root / file))[None]))

    d_primes = np.full(len(manifest.stimuli), np.nan)
    for reference in manifest.references:
        original = shown(reference.file)
        try:
            look = Observer(model, used, called, original).at(original)
        except ModelError as error:
            raise InputError(f"model {called}: {error}") from error
        for i, one in enumerate(manifest.stimuli):
            if one.reference == reference.id:
                d_primes[i] = look.of(shown(one.file))
    unfit = [one.id for one, d in zip(manifest.stimuli, d_primes, strict=True) if np.isnan(d)]
    if unfit:
        raise InputError(
            f"model {called}: expected a noise that is defined at every stimulus, got {used}, "
            f"which is not at {unfit[0]} ({len(unfit)} of {len(d_primes)})"
        )
    return Prediction(called, d_primes, {})
