"""States of a wrong kind in a checkpoint that is otherwise whole: refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import eigenexp as ee
from eigenexp.checkpoints.files import METADATA_KEY
from eigenexp.errors import CheckpointError, EigenexpError
from tests.problems import Quadratic
from tests.training import Problem, quiet_trainer

WRONG: list[Any] = [None, "x", [1, "a"], {"a": 1}, -1.5, torch.zeros(3, dtype=torch.int64)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every entry of nested mappings."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield (*path, key)
            yield from places(entry, (*path, key))


def put(value: Any, path: tuple[Any, ...], other: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = other


def whole(problem: Problem, folder: Path, method: str) -> dict[str, Any]:
    model, image, _ = problem
    module = ee.EigendistortionModule(model, image, method=method, k=1, tol=1e-12)
    quiet_trainer(folder, max_steps=4).fit(module)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    return {**checkpoint, "global_step": 4}


@pytest.mark.parametrize("method", ["lanczos", "power", "davidson"])
def test_a_state_of_a_wrong_kind_is_refused_or_of_no_account(
    method: str, small_problem: tuple[Quadratic, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    sound = whole(small_problem, tmp_path, method)
    refused = 0
    saved = sound[METADATA_KEY]
    found = [path for path in places(saved) if path[0] in ("solver", "rng_state", "route")]
    for i, path in enumerate(found):
        damaged = copy.deepcopy(sound)
        put(damaged[METADATA_KEY], path, WRONG[i % len(WRONG)])
        module = ee.EigendistortionModule(model, image, method=method, k=1, tol=1e-12)
        try:
            module.on_load_checkpoint(damaged)
        except EigenexpError:
            refused += 1
    assert refused > len(found) / 3


@pytest.mark.parametrize("wrong", [*WRONG, {"cpu": torch.zeros(9)}, {"cpu": [1]}])
def test_a_random_state_of_a_wrong_kind_is_refused(
    wrong: Any, small_problem: tuple[Quadratic, torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    checkpoint = whole(small_problem, tmp_path, "lanczos")
    checkpoint[METADATA_KEY]["rng_state"] = wrong
    module = ee.EigendistortionModule(model, image, method="lanczos", k=1, tol=1e-12)
    with pytest.raises(CheckpointError, match="wrong kind"):
        module.on_load_checkpoint(checkpoint)
