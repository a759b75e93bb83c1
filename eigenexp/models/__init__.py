"""Models to start from, and how to take a layer of any other."""

from eigenexp.models.basic import CenterSurround, Gaussian, Identity
from eigenexp.models.front_end import (
    LinearNonlinear,
    LuminanceContrastGainControl,
    LuminanceGainControl,
    OnOff,
)

__all__ = [
    "CenterSurround",
    "Gaussian",
    "Identity",
    "LinearNonlinear",
    "LuminanceContrastGainControl",
    "LuminanceGainControl",
    "OnOff",
]
