"""The operator's options under many pictures: batches, studies, means, the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.cli import main
from eigenexp.errors import CheckpointError, InputError, ModelError
from eigenexp.modules.average import AverageModule
from eigenexp.modules.study import StudyModule
from eigenexp.operators import AverageFisherOperator, BatchedFisherOperator
from eigenexp.runs.folder import list_runs
from eigenexp.study.folder import StudyFolder
from tests.problems import Small, fit
from tests.training import quiet_trainer


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Softplus()) for _ in range(4)]
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *blocks).eval().requires_grad_(False)


def some(count: int = 3, side: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 1, side, side, generator=generator) for _ in range(count)]


def compiled_by(calls: list[Any], **options: Any) -> Any:
    real = torch.compile

    def compile(function: Any, **given: Any) -> Any:
        calls.append(function)
        return real(function, **{**given, "backend": "eager", **options})

    return compile


# -- the operators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("one_pass", [True, False])
def test_recomputed_batches_have_the_same_products(one_pass: bool) -> None:
    blocks = {i: torch.ones(64, 1 + i) for i in range(3)}
    expected = BatchedFisherOperator(network(), some()).apply(blocks)
    batch = BatchedFisherOperator(network(), some(), one_pass=one_pass, recompute=True)
    assert batch.route == "recompute"
    assert batch.one_pass is one_pass
    for i, (products, responses) in batch.apply(blocks).items():
        torch.testing.assert_close(products, expected[i][0])
        torch.testing.assert_close(responses, expected[i][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_low_precision_a_picture_does_not_feel_the_size_of_the_others(
    dtype: torch.dtype,
) -> None:
    model = network().to(dtype)
    images = some()
    batch = BatchedFisherOperator(model, images, model_dtype=dtype)
    assert batch.one_pass
    assert batch.dtype == torch.float32
    block = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    expected = batch.apply({0: block})[0][0]
    # 1e-6 of float16's range is lost unless each picture has a scale of its own.
    for size in (1e-12, 1.0, 1e12):
        together = batch.apply({0: block, 1: size * block, 2: block})[0][0]
        assert torch.equal(together, expected)
    alone = ee.FisherOperator(model, images[0], model_dtype=dtype)
    eps = alone.product_eps
    torch.testing.assert_close(expected, alone @ block, rtol=0, atol=4 * eps * float(block.norm()))
    assert batch.at(0).problem.product_eps == pytest.approx(eps, rel=1.0)
    assert batch.at(0).problem.product_eps > 1e-4
    other = BatchedFisherOperator(model, [images[0], images[2], images[1]], model_dtype=dtype)
    assert other.at(0).problem.product_eps == batch.at(0).problem.product_eps


def test_a_network_that_mixes_pictures_is_found_out_in_low_precision() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x) + 0.05 * x.mean(0)

    with pytest.raises(ModelError, match="depend"):
        BatchedFisherOperator(Mixing(), some(), one_pass=True, model_dtype=torch.bfloat16)


def test_compiled_products_are_used_at_every_picture_of_a_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dynamo gives up after eight functions that share their code."""
    calls: list[Any] = []
    monkeypatch.setattr(torch, "compile", compiled_by(calls))
    model, block = network(), torch.ones(64, 1)
    for image in some(5):
        compiled = ee.FisherOperator(model, image, compile=True)  # a warning would be an error
        torch.testing.assert_close(compiled @ block, ee.FisherOperator(model, image) @ block)
    batch = BatchedFisherOperator(model, some(3), compile=True)
    assert batch.one_pass
    torch.testing.assert_close(
        batch.apply({1: block})[1][0], ee.FisherOperator(model, some()[1]) @ block
    )
    assert len(calls) == 12
    average = AverageFisherOperator(model, some(2), compile=True)
    torch.testing.assert_close(average @ block, AverageFisherOperator(model, some(2)) @ block)
    assert len(calls) == 16


# -- studies ---------------------------------------------------------------------------------------


def test_a_study_takes_the_options_and_keeps_them(tmp_path: Path) -> None:
    def study(folder: str, **options: Any) -> StudyModule:
        module = StudyModule(
            network(), some(5), tmp_path / folder, tol=1e-3, batch_size=2, operator_options=options
        )
        return fit(module, tmp_path, precision="32-true")

    plain = study("plain")
    less = study("less", recompute=True)
    plan = less.folder.read_plan()
    assert plan is not None
    assert (plan["route"], plan["operator"]) == ("recompute", {"recompute": "True"})
    for position in range(5):
        torch.testing.assert_close(
            less.spectrum(position).eigenvalues[0],
            plain.spectrum(position).eigenvalues[0],
            rtol=1e-3,
            atol=0,
        )
    assert len(study("less", recompute=True, compile=False).table()) == 10
    with pytest.raises(CheckpointError, match=r"recompute.*begin a new study"):
        study("less")
    with pytest.raises(CheckpointError, match="chunk_size"):
        study("plain", chunk_size=2)


def test_a_low_precision_network_at_many_pictures(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"which": "top", "tol": 0.02, "batch_size": 3}
    low = StudyModule(
        network(),
        some(),
        tmp_path / "low",
        operator_options={"model_dtype": torch.float16},
        **settings,
    )
    fit(low, tmp_path, precision="32-true")
    full = StudyModule(network(), some(), tmp_path / "full", **settings)
    fit(full, tmp_path, precision="32-true")
    for position in range(3):
        spectrum = low.spectrum(position)
        assert spectrum.eigenvectors.dtype == torch.float32
        assert bool(spectrum.converged.all())
        expected = full.spectrum(position).eigenvalues
        torch.testing.assert_close(spectrum.eigenvalues, expected, rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_mean_takes_the_options(tmp_path: Path) -> None:
    found = {}
    for options in ({}, {"recompute": True}, {"model_dtype": torch.float16}):
        module = AverageModule(
            network(), some(), which="top", tol=0.02, operator_options=dict(options)
        )
        quiet_trainer(tmp_path).fit(module)
        found[str(options)] = module.spectrum()
        if "recompute" in options:
            assert module.operator.route == "recompute"
        if "model_dtype" in options:
            assert isinstance(module.model, nn.Module)
            assert next(module.model.parameters()).dtype == torch.float16
            assert module.operator.product_eps > 1e-4
    plain, less, low = (spectrum.eigenvalues[0] for spectrum in found.values())
    torch.testing.assert_close(less, plain, rtol=1e-4, atol=0)
    torch.testing.assert_close(low, plain, rtol=0.02, atol=0)


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    for make in (
        lambda options: StudyModule(network(), some(), tmp_path / "s", operator_options=options),
        lambda options: AverageModule(network(), some(), operator_options=options),
        lambda options: ee.EigendistortionModule(Small(), some()[0], operator_options=options),
    ):
        with pytest.raises(InputError, match=r"expected route, chunk_size.*'recompte'"):
            make({"recompte": True})


# -- the command line ------------------------------------------------------------------------------

QUIET = ["logger=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
NETWORK = ["model=custom", "model._target_=tests.modules.test_study_operator_options.network"]
FOLDER = ["image=folder", "image.path=photos", "solver.which=top", "solver.tol=5e-2"]


def test_the_command_line_takes_them_for_studies_and_means(in_tmp: Path) -> None:
    (in_tmp / "photos").mkdir()
    values = np.random.default_rng(0)
    for name in "ab":
        np.save(in_tmp / "photos" / f"{name}.npy", values.random((16, 16), dtype=np.float32))
    options = ["operator.recompute=true", "operator.model_dtype=bf16"]
    # Half precision drowns a witness; a space as large as F needs none.
    assert main(["fit", *NETWORK, *FOLDER, *options, *QUIET]) == 0
    (run,) = list_runs(in_tmp / "mlruns")
    study = StudyFolder(run.results)
    plan = study.read_plan()
    assert plan is not None
    assert plan["operator"] == {"model_dtype": "torch.bfloat16", "recompute": "True"}
    assert {record["status"] for record in study.records().values()} == {"solved"}
    assert main(["fit", *NETWORK, *FOLDER, *options, *QUIET, "parallel=average", "root=mean"]) == 0


@pytest.mark.parametrize("parallel", ["pictures", "average"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("operator.model_dtype=int8", ["operator.model_dtype", "bfloat16", "int8"]),
        ("operator.recompute=true", ["recompute", "nn.Sequential"]),
        ("operator.route=magic", ["route", "traced", "magic"]),
        ("operator.chunk_size=0", ["chunk_size", "at least 1"]),
    ],
)
def test_mistakes_are_one_line(
    override: str,
    words: list[str],
    parallel: str,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (in_tmp / "photos").mkdir()
    for name in "ab":
        np.save(in_tmp / "photos" / f"{name}.npy", np.eye(16, dtype=np.float32))
    assert main(["fit", "model=ln", *FOLDER, override, *QUIET, f"parallel={parallel}"]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("eigenexp: ")]
    for word in words:
        assert word in line
