"""Networks by their names in timm and torchvision, where these are installed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eigenexp.errors import InputError, ModelError, one_line
from eigenexp.models.layers import LayerOutput, freeze
from eigenexp.models.normalized import Normalized
from eigenexp.models.weights import load_weights, say_weights

__all__ = ["timm_network", "torchvision_network"]

OWN = "own"


def timm_network(
    name: str,
    weights: str | None = None,
    layer: str | None = None,
    *,
    pretrained: bool = False,
    mean: Any = OWN,
    std: Any = OWN,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Return a network of timm, frozen and in ``eval`` mode, behind its own scaling of pictures.

    Parameters
    ----------
    name
        As ``timm.list_models()`` has it, with a tag or without: ``resnet18``, ``resnet18.a1_in1k``.
    weights
        A file of its state (safetensors, or ``torch.save`` of ``state_dict()``).
    layer
        Dotted name of a layer whose output to return: ``layer2``.
    pretrained
        Take the published weights, which timm downloads where it has not got them yet. Without
        ``weights`` and this they are random, and every result says so.
    mean, std
        As for :class:`~eigenexp.models.Normalized`; ``"own"``: those the network was trained with;
        ``None`` for both: none.
    seed
        Of random weights; the global random state stays as it was.
    options
        More of ``timm.create_model``: ``img_size=64``, ``in_chans=1``.

    Raises
    ------
    ModelError
        When timm is missing, has no such network, or its weights do not load.
    """
    timm = _package("timm")
    stem = str(name).partition(".")[0]
    if not timm.is_model(stem):  # no address of a hub either
        raise _unknown("timm", str(name), timm.list_models())
    network = _made(
        f"timm.{name}",
        lambda: timm.create_model(name, pretrained=pretrained, **options),
        seed,
    )
    trained = timm.data.resolve_model_data_config(network)
    published = pretrained and weights is None
    scaling = (trained["mean"], trained["std"])
    return _finish(network, f"timm.{name}", weights, layer, mean, std, seed, scaling, published)


def torchvision_network(
    name: str,
    weights: str | None = None,
    layer: str | None = None,
    *,
    pretrained: bool = False,
    mean: Any = OWN,
    std: Any = OWN,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Return a network of torchvision, frozen and in ``eval`` mode, behind its scaling of pictures.

    Parameters
    ----------
    name
        As ``torchvision.models.list_models()`` has it: ``resnet18``, ``vit_b_16``.
    weights
        A file of its state, or the name of published weights (``IMAGENET1K_V1``), which torchvision
        downloads where it has not got them yet.
    pretrained
        Take the weights that torchvision calls ``DEFAULT``.
    layer, mean, std, seed
        As for :func:`timm_network`.
    options
        More of the network's own arguments.

    Raises
    ------
    ModelError
        When torchvision is missing, has no such network, or its weights do not load.
    """
    models = _package("torchvision").models
    if name not in models.list_models():
        raise _unknown("torchvision", str(name), models.list_models())
    chosen = "DEFAULT" if pretrained and weights is None else None
    if weights is not None and not Path(weights).is_file() and str(weights).isidentifier():
        chosen, weights = str(weights), None
    network = _made(
        f"torchvision.{name}", lambda: models.get_model(name, weights=chosen, **options), seed
    )
    trained = models.get_model_weights(name)
    one = trained[chosen] if chosen else next(iter(trained), None)
    scaling = _scaling_of(one)
    return _finish(
        network, f"torchvision.{name}", weights, layer, mean, std, seed, scaling, chosen is not None
    )


def _scaling_of(weights: Any) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the mean and deviation that torchvision scales a network's pictures by, if any."""
    if weights is None:
        return None
    preset = weights.transforms()
    named = vars(preset)
    return (named["mean"], named["std"]) if {"mean", "std"} <= named.keys() else None


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name}: expected the package {error.name}, which is not installed; "
            f"pip install 'eigenexp[{name}]'"
        ) from error
    except Exception as error:  # a build for another torch
        raise ModelError(
            f"{name}: expected a package that fits torch {torch.__version__}, got one that does "
            f"not load: {one_line(error, 200)}"
        ) from error


def _unknown(package: str, name: str, known: Sequence[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(known)}"
    return ModelError(f"{package}.{name}: expected a network that {package} has; {hint}")


def _made(name: str, make: Any, seed: int) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = make()
    except Exception as error:  # whatever the package raises, also over a network
        raise ModelError(
            f"{name}: {type(error).__name__}: {one_line(error, 300)}; see its package"
        ) from error
    return network


def _finish(
    network: nn.Module,
    name: str,
    weights: str | None,
    layer: str | None,
    mean: Any,
    std: Any,
    seed: int,
    scaling: tuple[Sequence[float], Sequence[float]] | None,
    published: bool,
) -> nn.Module:
    if weights is not None:
        load_weights(network, str(weights))
    elif not published:
        say_weights(network, f"{name} has random weights (seed {seed}), not trained ones")
    frozen = freeze(network)
    cut = frozen if layer is None else LayerOutput(frozen, layer)
    if (mean == OWN or std == OWN) and scaling is None:
        raise InputError(f"{name}: expected mean and std, of which it publishes none")
    own = scaling or ((), ())
    mean, std = (own[0] if mean == OWN else mean), (own[1] if std == OWN else std)
    return cut if mean is None and std is None else Normalized(cut, mean, std)
