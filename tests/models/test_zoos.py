"""Networks of timm and torchvision by their names, and the scaling of a model's pictures.

Neither package is needed: stand-ins with the functions that are called do what theirs do.
"""

from __future__ import annotations

import sys
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from eigenexp.errors import InputError, ModelError
from eigenexp.experiments.config import compose_config
from eigenexp.experiments.targets import build_model
from eigenexp.models import Normalized, timm_network, torchvision_network
from eigenexp.models.weights import weights_note
from eigenexp.runs.overview import model_name

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def network(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Flatten())


class Weights(Enum):
    """As torchvision's enumerations of weights are."""

    V1 = "V1"
    DEFAULT = "V1"

    @staticmethod
    def transforms() -> Any:
        return SimpleNamespace(mean=MEAN, std=STD)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def create_model(name: str, pretrained: bool = False, in_chans: int = 3) -> nn.Module:
        made.append((name, pretrained))
        return network(in_chans)

    def get_model(name: str, weights: str | None = None) -> nn.Module:
        made.append((name, weights))
        if weights not in (None, "V1", "DEFAULT"):
            raise KeyError(weights)
        return network()

    timm = SimpleNamespace(
        is_model=lambda name: name == "net18",
        list_models=lambda: ["net18"],
        create_model=create_model,
        data=SimpleNamespace(resolve_model_data_config=lambda _: {"mean": MEAN, "std": STD}),
    )
    models = SimpleNamespace(
        list_models=lambda: ["net18"], get_model=get_model, get_model_weights=lambda _: Weights
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    return made


@pytest.mark.parametrize("package", ["timm", "torchvision"])
@pytest.mark.parametrize("middle", ["", "models."])
def test_a_network_by_its_name_is_behind_its_own_scaling(package: str, middle: str) -> None:
    settings = compose_config([f"model={package}.{middle}net18", "model.layer='1'"])
    assert model_name(settings.model) == f"{package}.net18.1"
    model = build_model(settings.model, trust=False)
    x = torch.rand(1, 3, 6, 6)
    scaled = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    inner = model.model.model
    assert torch.equal(model(x), inner[:2](scaled))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert f"{package}.net18 has random weights (seed 0)" in weights_note(model)
    again = build_model(settings.model)
    assert torch.equal(model(x), again(x))
    other = build_model(compose_config([f"model={package}.net18", "model.seed=1"]).model)
    assert not torch.equal(other.model[:2](x), inner[:2](x))


def test_weights_of_a_file_or_published_ones_are_not_random(tmp_path: Any, packages: Any) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "w.pt")
    for make in (timm_network, torchvision_network):
        model: Any = make("net18", weights=str(tmp_path / "w.pt"))
        assert torch.equal(model.model[0].weight, state["0.weight"])
        assert weights_note(model) == ""
        assert weights_note(make("net18", pretrained=True)) == ""
    assert weights_note(torchvision_network("net18", weights="V1")) == ""
    assert packages == [
        *(("net18", False), ("net18", True), ("net18", None), ("net18", "DEFAULT")),
        ("net18", "V1"),
    ]


def test_a_tag_of_weights_and_options_go_to_timm(packages: Any) -> None:
    settings = compose_config(
        ["model=timm.net18.a1_in1k", "model.in_chans=1", "model.mean=0.5", "model.std=0.25"]
    )
    model = build_model(settings.model)
    assert packages == [("net18.a1_in1k", False)]
    assert model(torch.rand(1, 1, 6, 6)).shape == (1, 32)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=timm.net19"], "timm.net19: expected a network .* did you mean net18?"),
        (["model=torchvision.net19"], "did you mean net18?"),
        (["model=timm.net18", "model.wide=3"], "timm.net18: TypeError: .*wide"),
        (["model=torchvision.net18", "model.weights=V2"], "torchvision.net18: KeyError: 'V2'"),
        (["model=timm.net18", "model.weights=absent.pt"], "expected a file, got 'absent.pt'"),
        (["model=timm.net18", "model.mean=imagnet"], "expected numbers or one of imagenet"),
        (["model=timm.net18", "model.layer=9"], "expected a submodule"),
        (["model=timm"], "model.name: expected a value"),
    ],
)
def test_what_is_wrong_is_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(Exception, match=words) as caught:
        build_model(compose_config(overrides).model)
    assert type(caught.value).__module__ == "eigenexp.errors"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [timm_network, torchvision_network])
def test_a_package_that_is_not_there(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make.__name__.removesuffix("_network")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=rf"{name}: .*pip install 'eigenexp\[{name}\]'"):
        make("net18")


def test_a_class_or_maker_of_theirs_is_no_network_by_name() -> None:
    for target in ("timm.create_model", "torchvision.models.ResNet", "timm.layers.SwiGLU"):
        assert compose_config([f"model={target}"]).model["_target_"] == target


# -- scaling ---------------------------------------------------------------------------------------


def test_scaling_by_name_by_numbers_and_by_one_alone() -> None:
    x = torch.rand(2, 3, 4, 4)
    named = Normalized(nn.Identity(), "imagenet")
    assert torch.allclose(named(x)[:, 0], (x[:, 0] - 0.485) / 0.229)
    assert torch.equal(named(x), Normalized(nn.Identity(), std="imagenet")(x))
    assert torch.equal(Normalized(nn.Identity(), mean=0.5)(x), x - 0.5)
    assert torch.equal(Normalized(nn.Identity(), std=[0.5, 0.5, 0.5])(x), x / 0.5)
    assert list(Normalized(nn.Conv2d(3, 1, 1), "half").state_dict()) == [
        "model.weight",
        "model.bias",
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": "imagnet"}, "one of imagenet"),
        ({"std": 0.0}, "positive"),
        ({"std": [0.5, -1.0, 1.0]}, "positive"),
        ({"mean": []}, "expected a number"),
        ({"mean": ["a", "b", "c"]}, "expected a number"),
        ({"mean": True}, "expected a number"),
    ],
)
def test_scaling_that_is_none(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Normalized(nn.Identity(), **given)


def test_gray_pictures_of_a_color_network_are_told() -> None:
    with pytest.raises(ModelError, match=r"\(B, 3, H, W\).*channels='color'"):
        Normalized(nn.Identity(), "imagenet")(torch.rand(1, 1, 4, 4))


def test_any_model_of_the_configuration_takes_a_scaling() -> None:
    settings = compose_config(["model=center_surround", "model.mean=0.5", "model.std=0.25"])
    x = torch.rand(1, 1, 20, 20)
    plain = build_model(compose_config(["model=center_surround"]).model)
    assert torch.allclose(build_model(settings.model)(x), plain((x - 0.5) / 0.25))
