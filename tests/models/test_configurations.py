"""The configurations of models and pictures build what they name."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from eigenexp import models
from eigenexp.pictures.picture import load_picture

CONF = Path(__file__).parents[2] / "conf"
FRONT_END = {
    "ln": models.LinearNonlinear,
    "lg": models.LuminanceGainControl,
    "lgg": models.LuminanceContrastGainControl,
    "onoff": models.OnOff,
}


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_every_model_has_its_file():
    linear = {"identity", "gaussian", "center_surround"}
    assert set(names("model")) == {
        *FRONT_END,
        *linear,
        *("efficientnet_lite0", "resnet50", "vit_b16", "timm", "torchvision", "custom"),
    }


@pytest.mark.parametrize("name", [*FRONT_END, "identity", "gaussian", "center_surround"])
def test_models_build_and_answer(name):
    config = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    config.pop("layer", None)  # which layer to take is the run's business, not the model's
    model = instantiate(config)
    x = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(model(x)).all())
    # All parameters stand in the file, and the published ones are the defaults.
    arguments = set() if name == "identity" else set(inspect.signature(type(model)).parameters)
    assert set(config) - {"_target_"} == arguments
    if name in FRONT_END:
        assert torch.equal(model(x), FRONT_END[name]()(x))


def test_efficientnet_is_built_by_its_function():
    config = OmegaConf.load(CONF / "model" / "efficientnet_lite0.yaml")
    assert config._target_ == "eigenexp.models.efficientnet_lite0"
    assert callable(models.efficientnet_lite0)


@pytest.mark.parametrize("name", ["resnet50", "vit_b16"])
def test_networks_are_built_by_their_functions(name):
    config = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    assert config._target_ == f"eigenexp.models.{name}"
    assert set(config) - {"_target_"} == set(inspect.signature(getattr(models, name)).parameters)


def test_custom_wants_a_target():
    assert OmegaConf.is_missing(OmegaConf.load(CONF / "model" / "custom.yaml"), "_target_")


@pytest.mark.parametrize("name", names("image"))
def test_pictures_load(name):
    config = OmegaConf.load(CONF / "image" / f"{name}.yaml")
    assert set(config) - {"path"} == {"source", "crop", "resize", "channels", "value_range"}
    if name == "folder":  # many pictures: study sources load them
        assert OmegaConf.is_missing(config, "path")
        return
    if name == "file":
        assert OmegaConf.is_missing(config, "source")
        return
    picture = load_picture(**config)
    assert picture.name == name
    assert picture.tensor.shape[1] == 1
    if name == "camera":
        assert picture.tensor.shape == (1, 1, 64, 64)
        assert picture.record["crop"] == [120, 220, 64, 64]
        assert float(picture.tensor.std()) > 0.2
