"""Saved configurations, command lines and servers' answers of somebody who means harm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eigenexp.errors import EigenexpError
from eigenexp.experiments.config import compose_config, override_config, plain_config
from eigenexp.experiments.experiment import fit, resume
from eigenexp.experiments.resuming import fetch_run
from eigenexp.experiments.targets import build_model
from tests.attacks import (
    Attacks,
    Place,
    check_nothing_happens,
    saved_run,
)

ATTACKS = Attacks()
attack = ATTACKS.add


def resume_with(place: Place, **config: Any) -> object:
    run = saved_run(place, **config)
    return resume(run.run_id, root=run.root, say=lambda _: None)


@attack
def target_os_system(place: Place) -> object:
    return resume_with(place, model={"_target_": "os.system", "command": place.touch()})


@attack
def target_reached_through_a_trusted_module(place: Place) -> object:
    target = "torch.nn.parallel.distributed.os.system"
    return resume_with(place, model={"_target_": target, "command": place.touch()})


@attack
def target_partial_through_a_trusted_module(place: Place) -> object:
    target = "torch.nn.modules.module.functools.partial"
    return build_model({"_target_": target, "func": {"_target_": "os.system"}}, trust=False)


@attack
def target_deep_in_an_argument(place: Place) -> object:
    inner = {"_target_": "os.system", "command": place.touch()}
    return resume_with(place, model={"_target_": "torch.nn.Sequential", "args": [[{"a": inner}]]})


@attack
def target_as_an_argument_of_a_trusted_class(place: Place) -> object:
    inner = {"_target_": "subprocess.getoutput", "cmd": place.touch()}
    model = {"_target_": "torch.nn.Conv2d", "in_channels": inner, "out_channels": 1,
             "kernel_size": 1}  # fmt: skip
    return resume_with(place, model=model)


@attack
def target_with_a_prefix_that_looks_trusted(place: Place) -> object:
    return resume_with(place, model={"_target_": "torch.nnx.evil", "x": 1})


@attack
def environment_read_by_an_interpolation(place: Place) -> object:
    return resume_with(place, tags={"leak": "${oc.env:PATH}"})


@attack
def file_read_by_an_interpolation(place: Place) -> object:
    return resume_with(place, run_name="${oc.decode:${oc.env:PATH}}")


@attack
def python_tag_in_yaml(place: Place) -> object:
    text = f"run_name=!!python/object/apply:os.system [{place.touch()!r}]"
    return override_config(plain_config(compose_config()), [text])


@attack
def python_tag_on_the_command_line(place: Place) -> object:
    return compose_config([f"run_name=!!python/object/apply:os.system ['{place.touch()}']"])


@attack
def root_in_a_saved_configuration(place: Place) -> object:
    """A saved root is not where the resumed run writes."""
    return resume_with(place, root=str(place.outside / "elsewhere"), image={"source": "absent.png"})


@attack
def picture_source_in_a_saved_configuration(place: Place) -> object:
    return resume_with(place, image={"source": str(place.outside / "secret")})


@attack
def server_that_names_a_run_with_a_path(place: Place) -> object:
    info = SimpleNamespace(run_id="../../outside/x", status="FAILED", run_name="x")
    store = SimpleNamespace(find_run=lambda _: SimpleNamespace(info=info), uri="http://x")
    return fetch_run(store, "x", place.here / "mlruns", lambda _: None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)


def test_the_harness_sees_an_execution(place: Place) -> None:
    """What the test above relies on: the payload does work where somebody runs it."""
    model = {"_target_": "torch.nn.parallel.distributed.os.system", "command": place.touch()}
    build_model(model)
    assert place.canary.exists()
    with pytest.raises(EigenexpError):
        fit({"root": str(place.here / "mlruns"), "resume": "maybe"})
