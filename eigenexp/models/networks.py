"""ResNet-50 and ViT-B/16 from the package transformers (extra ``networks``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigenexp.errors import ModelError, one_line
from eigenexp.models.layers import LayerOutput, freeze
from eigenexp.models.normalized import SCALINGS
from eigenexp.models.weights import say_weights

__all__ = ["Classifier", "resnet50", "vit_b16"]


class Classifier(nn.Module):
    """A classifier of transformers behind the scaling of its training pictures.

    Takes RGB pictures ``(B, 3, H, W)`` in [0, 1]; gives logits ``(B, classes)``.

    Parameters
    ----------
    network
        Takes ``pixel_values`` and returns an output with ``logits``.
    mean, std
        Of the training pictures, one a channel.
    options
        Further arguments of the network's forward pass.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], **options: Any
    ) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures ``(B, 3, H, W)`` in [0, 1]."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ModelError(
                f"{type(self.network).__name__}: expected RGB pictures (B, 3, H, W), got "
                f"{tuple(x.shape)}; load them with channels='color'"
            )
        logits: Tensor = self.network((x - self.mean) / self.std, **self.options).logits
        return logits


def resnet50(weights: str | None = None, layer: str | None = None, seed: int = 0) -> nn.Module:
    """Return ResNet-50 (He et al. 2016), frozen and in ``eval`` mode.

    Parameters
    ----------
    weights
        Folder written by ``save_pretrained``; ``None`` for random weights. Nothing is downloaded.
    layer
        Dotted name of a layer whose output to return: ``network.resnet.encoder.stages.1``.
    seed
        Of random weights; the global random state stays as it was.

    Raises
    ------
    ModelError
        When transformers is missing, the folder does not load or there is no such layer.
    """
    network = _build("ResNet", weights, seed, {"num_labels": 1000})
    return _finish(Classifier(network, *SCALINGS["imagenet"]), layer)


def vit_b16(
    weights: str | None = None,
    layer: str | None = None,
    seed: int = 0,
    image_size: int = 224,
) -> nn.Module:
    """Return ViT-B/16 (Dosovitskiy et al. 2021), frozen and in ``eval`` mode.

    Parameters
    ----------
    weights, layer, seed
        As for :func:`resnet50`; a layer: ``network.vit.layers.5``.
    image_size
        Side of the pictures with random weights; pretrained ones are interpolated to any.
    """
    network = _build("ViT", weights, seed, {"num_labels": 1000, "image_size": image_size})
    return _finish(Classifier(network, *SCALINGS["half"], interpolate_pos_encoding=True), layer)


def _build(family: str, weights: str | None, seed: int, settings: dict[str, Any]) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"{family}: expected the package transformers, which is not installed; "
            "pip install 'eigenexp[networks]'"
        ) from error
    from safetensors import SafetensorError

    kind = getattr(transformers, f"{family}ForImageClassification")
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: nn.Module = kind(getattr(transformers, f"{family}Config")(**settings))
        say_weights(made, f"{family} has random weights (seed {seed}), not trained ones")
        return made
    if not Path(weights).is_dir():
        raise ModelError(
            f"{family}: expected a folder that save_pretrained wrote, got {weights!r}, which is "
            "none; nothing is downloaded"
        )
    try:
        loaded: nn.Module = kind.from_pretrained(
            weights, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 200)
        raise ModelError(f"{family}: the weights in {weights} do not load: {reason}") from error
    return loaded


def _finish(model: nn.Module, layer: str | None) -> nn.Module:
    frozen = freeze(model)
    return frozen if layer is None else LayerOutput(frozen, layer)
