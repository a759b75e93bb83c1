"""The history that convergence logging keeps, through a checkpoint and back."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from tests.problems import Quadratic
from tests.training import quiet_trainer as trainer


@pytest.mark.parametrize("saved_as", ["today", "lists"])
def test_the_history_goes_on_where_it_was_saved(
    saved_as: str, small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    logging = ee.ConvergenceLogging()
    module = ee.EigendistortionModule(model, image, method="lanczos", tol=1e-9)
    trainer(tmp_path, [logging], max_steps=9).fit(module)
    state = logging.state_dict()
    if saved_as == "lists":  # as checkpoints of before have it
        state["history"] = copy.deepcopy(logging.history)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = ee.ConvergenceLogging()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.history["products"] == list(range(1, 10))
    # Gaps of pairs that were not known yet are NaN, which equals nothing.
    assert repr(again.history) == repr(logging.history)
    assert {type(again.history["products"][0]), type(again.history["seconds"][0])} == {int, float}
