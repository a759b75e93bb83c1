"""Perturbations from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from eigenexp.errors import ConfigError, EigenexpError
from eigenexp.experiments.arrays import read_array
from eigenexp.experiments.perturbations_schema import PERTURBATIONS, PerturbationsConfig
from eigenexp.experiments.schema import ImageConfig
from eigenexp.operators import perturbations as kinds
from eigenexp.operators.perturbations import Everything, Perturbations
from eigenexp.pictures.sources import picture_sources

__all__ = ["build_perturbations"]


def build_perturbations(config: PerturbationsConfig, image: ImageConfig) -> Perturbations:
    """Return the configured perturbations.

    Parameters
    ----------
    config
        The group ``perturbations``.
    image
        How pictures are cropped, for those that a metric is made of.

    Raises
    ------
    ConfigError
        Naming the key that cannot be used.
    """
    given = asdict(config)
    kind, zero_mean, orthogonal = (given.pop(key) for key in ("kind", "zero_mean", "orthogonal"))
    if kind not in PERTURBATIONS:
        known = ", ".join(PERTURBATIONS)
        raise ConfigError(f"perturbations.kind: expected one of {known}, got {kind!r}")
    try:
        chosen = _chosen(kind, given, image)
        rest: Perturbations = kinds.ZeroMean() if zero_mean else Everything()
        if orthogonal is not None:
            to = read_array(orthogonal, "perturbations.orthogonal")
            rest = rest & kinds.Orthogonal(to.to(torch.float64))
        if isinstance(rest, Everything):
            return chosen
        if isinstance(chosen, Everything):
            return rest
        return chosen @ rest if chosen.kind == "metric" else chosen & rest
    except ConfigError:
        raise
    except (EigenexpError, TypeError) as error:
        raise ConfigError(f"perturbations.{error}") from error


def _chosen(kind: str, given: dict[str, Any], image: ImageConfig) -> Perturbations:
    if kind == "everything":
        return Everything()
    if kind == "mask":
        mask = given["mask"]
        read = None if mask is None else read_array(mask, "perturbations.mask")
        return kinds.Mask(read, given["border"])
    if kind == "band":
        taper = given.pop("taper")
        band = kinds.Band(**given)
        return kinds.Taper(taper) @ band if taper else band
    if kind == "colour":
        names = given["directions"]
        return kinds.Colour(*([names] if isinstance(names, str) else names))
    if kind == "metric":
        return kinds.Metric(read_array(given["weights"], "perturbations.weights"))
    if kind == "linear_light":
        return kinds.LinearLight(**given)
    if kind == "whitening":
        return kinds.Whitening(_pictures(given["pictures"], image), given["floor"])
    if kind == "taper":
        return kinds.Taper(**given)
    return kinds.ContrastSensitivity(**given)


def _pictures(where: Any, image: ImageConfig) -> Sequence[torch.Tensor]:
    options = asdict(image)
    for key in ("source", "path"):
        del options[key]
    tensors = [source.load().tensor for source in picture_sources(where, **options)]
    if len({tuple(tensor.shape) for tensor in tensors}) > 1:
        raise ConfigError(
            "perturbations.pictures: expected pictures of one size, got several; set image.crop "
            "or image.resize"
        )
    return tensors
