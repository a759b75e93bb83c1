"""Which changes of a picture are considered: ``perturbations=`` of every operator and module.

Each is a small frozen object that gives the linear map B right of J, from coordinates to pictures:
the problem is BᵀFB, of as many dimensions as are considered. Public as ``eigenexp.perturbations``.
"""

from eigenexp.operators.perturbations.base import (
    Composition,
    Everything,
    Intersection,
    Perturbations,
    coordinates_at,
)
from eigenexp.operators.perturbations.coordinates import Coordinates
from eigenexp.operators.perturbations.latent import Latent
from eigenexp.operators.perturbations.metrics import (
    ContrastSensitivity,
    LinearLight,
    Metric,
    Taper,
    Whitening,
)
from eigenexp.operators.perturbations.subspaces import Band, Colour, Mask, Orthogonal, ZeroMean

__all__ = [
    "Band",
    "Colour",
    "Composition",
    "ContrastSensitivity",
    "Coordinates",
    "Everything",
    "Intersection",
    "Latent",
    "LinearLight",
    "Mask",
    "Metric",
    "Orthogonal",
    "Perturbations",
    "Taper",
    "Whitening",
    "ZeroMean",
    "coordinates_at",
]
