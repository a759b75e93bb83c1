"""The types of the configuration's group ``perturbations``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

__all__ = ["PERTURBATIONS", "EverythingConfig", "PerturbationsConfig"]


@dataclass
class PerturbationsConfig:
    """What every kind takes.

    ``zero_mean`` and ``orthogonal`` (a file of distortions, .npy, .pt or a result's
    spectrum.safetensors) are intersected with a subspace, and done before a metric or generator.
    """

    kind: str = "everything"
    zero_mean: bool = False
    orthogonal: str | None = None


@dataclass
class EverythingConfig(PerturbationsConfig):
    """Every change of every pixel."""


@dataclass
class MaskConfig(PerturbationsConfig):
    """Some pixels: a file (.npy, .pt) of what may change, or a ``border`` that may not."""

    kind: str = "mask"
    mask: str | None = None
    border: int = 0


@dataclass
class BandConfig(PerturbationsConfig):
    """Frequencies in cycles a pixel, orientations in degrees; then a ``taper``."""

    kind: str = "band"
    low: float = 0.0
    high: float = 1.0
    orientation: float | None = None
    width: float = 45.0
    taper: int = 0


@dataclass
class ColourConfig(PerturbationsConfig):
    """``directions`` of luminance, red-green, blue-yellow."""

    kind: str = "colour"
    directions: Any = "luminance"


@dataclass
class TaperConfig(PerturbationsConfig):
    """Fades towards the border, over so many pixels."""

    kind: str = "taper"
    width: int = MISSING


@dataclass
class MetricConfig(PerturbationsConfig):
    """A price of each pixel: a file (.npy, .pt)."""

    kind: str = "metric"
    weights: str = MISSING


@dataclass
class LinearLightConfig(PerturbationsConfig):
    """Changes measured in light."""

    kind: str = "linear_light"
    gamma: float = 2.2


@dataclass
class WhiteningConfig(PerturbationsConfig):
    """Changes measured by what is usual in ``pictures``: a folder, a glob or a list."""

    kind: str = "whitening"
    pictures: Any = MISSING
    floor: float = 1e-6


@dataclass
class ContrastSensitivityConfig(PerturbationsConfig):
    """Changes measured by how visible their frequencies are."""

    kind: str = "contrast_sensitivity"
    pixels_per_degree: float = MISSING
    floor: float = 0.01


PERTURBATIONS: dict[str, type[PerturbationsConfig]] = {
    "everything": EverythingConfig,
    "mask": MaskConfig,
    "band": BandConfig,
    "colour": ColourConfig,
    "taper": TaperConfig,
    "metric": MetricConfig,
    "linear_light": LinearLightConfig,
    "whitening": WhiteningConfig,
    "contrast_sensitivity": ContrastSensitivityConfig,
}
