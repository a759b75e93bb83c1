"""Models to start from, and how to take a layer of any other."""

from eigenexp.models.basic import CenterSurround, Gaussian, Identity
from eigenexp.models.efficientnet import EfficientNetLite0, efficientnet_lite0
from eigenexp.models.front_end import (
    LinearNonlinear,
    LuminanceContrastGainControl,
    LuminanceGainControl,
    OnOff,
)
from eigenexp.models.layers import LayerOutput, available_layers, freeze, frozen
from eigenexp.models.networks import resnet50, vit_b16
from eigenexp.models.normalized import Normalized
from eigenexp.models.zoos import timm_network, torchvision_network

__all__ = [
    "CenterSurround",
    "EfficientNetLite0",
    "Gaussian",
    "Identity",
    "LayerOutput",
    "LinearNonlinear",
    "LuminanceContrastGainControl",
    "LuminanceGainControl",
    "Normalized",
    "OnOff",
    "available_layers",
    "efficientnet_lite0",
    "freeze",
    "frozen",
    "resnet50",
    "timm_network",
    "torchvision_network",
    "vit_b16",
]
