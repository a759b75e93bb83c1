"""The operator's options on their way from the command line and the trainer to the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eigenexp as ee
from eigenexp.cli import main
from eigenexp.experiments.building import build_module, build_picture
from eigenexp.experiments.config import compose_config, override_config, plain_config
from tests.training import quiet_trainer


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Softplus()) for _ in range(4)]
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *blocks)


def fitted(options: dict[str, Any], folder: Path, **settings: Any) -> ee.EigendistortionModule:
    picture = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    settings = {"which": "top", "tol": 1e-3, **settings}
    module = ee.EigendistortionModule(network(), picture, operator_options=options, **settings)
    trainer = quiet_trainer(folder, [ee.ConvergenceStopping()], max_steps=300)
    trainer.fit(module)
    return module


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_recomputed_activations_give_the_same_pairs(tmp_path: Path) -> None:
    kept, less = (fitted({"recompute": r}, tmp_path) for r in (False, True))
    assert (kept.operator.route, less.operator.route) == ("traced", "recompute")
    torch.testing.assert_close(
        kept.spectrum().eigenvalues, less.spectrum().eigenvalues, rtol=1e-4, atol=0
    )


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_low_precision_network_under_a_float32_solver(tmp_path: Path) -> None:
    low = fitted({"model_dtype": torch.float16}, tmp_path, tol=0.02)
    assert isinstance(low.model, nn.Module)
    assert {weight.dtype for weight in low.model.parameters()} == {torch.float16}
    assert low.operator.dtype == low.solver.dtype == torch.float32
    full = fitted({}, tmp_path)
    value = low.spectrum().eigenvalues[0]
    expected = full.spectrum().eigenvalues[0]
    assert float((value - expected).abs() / expected) < 0.02
    assert float(full.operator.product_eps) < 1e-6 < float(low.operator.product_eps)


def test_the_configuration_reaches_the_operator() -> None:
    overrides = ["operator.recompute=true", "operator.chunk_size=3", "operator.model_dtype=fp16"]
    settings = compose_config(["image.crop=16", *overrides])
    module = build_module(settings, network(), build_picture(settings))
    expected = {
        "route": "auto",
        "chunk_size": 3,
        "recompute": True,
        "compile": False,
        "model_dtype": torch.float16,
    }
    assert module.operator_options == expected
    saved = plain_config(settings)
    del saved["operator"]  # a run saved before there was such a group
    older = override_config(saved, [])
    build_module(older, network(), build_picture(older))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("operator.model_dtype=int8", ["operator.model_dtype", "bfloat16", "int8"]),
        ("operator.recompute=true", ["recompute", "nn.Sequential", "OnOff"]),
        ("operator.route=magic", ["route", "traced", "magic"]),
        ("operator.rout=rows", ["operator.rout", "did you mean route?"]),
    ],
)
def test_mistakes_are_one_line(
    override: str, words: list[str], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["image.crop=[120,220,16,16]", "logger=none", "trainer.enable_progress_bar=false"]
    assert main(["fit", override, *small]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line
