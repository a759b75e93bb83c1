"""Every group composes; every mistake names the key and what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenexp.errors import ConfigError
from eigenexp.experiments.config import compose_config, options, override_config, plain_config

GROUPS = ("model", "image", "solver", "trainer", "logger", "callbacks", "experiment")
MANDATORY = {
    ("model", "custom"): ["model._target_=torch.nn.Identity"],
    ("model", "timm"): ["model.name=resnet18"],
    ("model", "torchvision"): ["model.name=resnet18"],
    ("image", "file"): ["image.source=cat.png"],
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_composes(group: str) -> None:
    assert options(group), f"no files in conf/{group}"
    for option in options(group):
        config = compose_config([f"{group}={option}", *MANDATORY.get((group, option), [])])
        assert plain_config(config)["solver"]["k"] >= 1


def test_options_are_the_files_of_the_repository() -> None:
    folder = Path(__file__).parents[2] / "conf"
    for group in GROUPS:
        assert options(group) == sorted(p.stem for p in (folder / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("solver.kk=3", ["solver.kk", "max_products", "did you mean k?"]),
        ("bogus=3", ["bogus", "image", "solver"]),
        ("image.sorce=x", ["image.sorce", "did you mean source?"]),
        ("model.kernel=3", ["model.kernel", "kernel_size"]),
        ("model=fou", ["model", "onoff", "'fou'"]),
        ("solver=lanczosh", ["lanczos", "did you mean lanczos?"]),
        ("solver.k=abc", ["solver.k", "'abc'", "Integer"]),
        ("solver.k=1.5", ["solver.k", "1.5"]),
        ("solver.k", ["key=value", "'solver.k'"]),
        ("tags.a=b", ["tags.a", "+tags.a=…"]),
        ("image=file", ["image.source", "expected a value"]),
        ("model=custom", ["model._target_", "expected a value"]),
    ],
)
def test_a_mistake_names_key_and_choices_in_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config([override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_demo_is_what_it_promises() -> None:
    config = plain_config(compose_config(["experiment=demo"]))
    assert config["model"]["_target_"] == "eigenexp.models.OnOff"
    assert config["image"]["source"] == "camera"
    assert config["image"]["crop"][2:] == [64, 64]
    assert (config["solver"]["k"], config["solver"]["which"]) == (2, "both")
    assert config["solver"]["tol"] == 1e-4


def test_overriding_a_saved_configuration_keeps_types() -> None:
    saved = plain_config(compose_config(["solver=lanczos", "solver.basis_size=30"]))
    changed = plain_config(override_config(saved, ["solver.tol=1e-7", "trainer.max_steps=9"]))
    assert changed["solver"] == {**saved["solver"], "tol": 1e-7}
    assert changed["trainer"]["max_steps"] == 9
    assert plain_config(override_config(saved, [])) == saved


@pytest.mark.parametrize("override", ["solver.tool=1", "solver.k=x", "solver", "model=ln"])
def test_a_wrong_override_of_a_saved_configuration_is_refused(override: str) -> None:
    saved = plain_config(compose_config())
    with pytest.raises(ConfigError) as caught:
        override_config(saved, [override])
    assert "\n" not in str(caught.value)


def test_composing_leaves_hydra_as_it_was() -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose_config()
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("given", "crop"),
    [
        (["image.crop=48"], [128, 228, 48, 48]),  # within the photographer's face, the default
        (["image.crop=65"], [119, 219, 65, 65]),
        (["image.crop=400"], [0, 52, 400, 400]),
        (["image.crop=[1,2,3,4]"], [1, 2, 3, 4]),
        (["image.crop=null"], None),
        (["image=coins", "image.crop=48"], 48),  # no place of its own: the middle
    ],
)
def test_a_size_alone_keeps_the_place_of_the_pictures_crop(given: list[str], crop: object) -> None:
    assert plain_config(compose_config(given))["image"]["crop"] == crop
