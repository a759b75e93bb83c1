"""What a hand-written Trainer with our callbacks leaves in TensorBoard and MLflow, unasked."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eigenexp as ee
from eigenexp.callbacks.sending import enlarge, send_settings
from tests.training import quiet_trainer


def fit(folder: Path, logger: Logger) -> ee.EigendistortionModule:
    picture = ee.load_picture("camera", crop=12)
    module = ee.EigendistortionModule(
        ee.models.Gaussian(kernel_size=5), picture, k=1, method="lanczos", tol=1e-3
    )
    callbacks = [
        ee.ConvergenceStopping(),
        ee.ConvergenceLogging(1),
        ee.DistortionPictures(10),
        ee.ResultFiles(folder / "results", title="<b>Net</b> at camera"),
    ]
    quiet_trainer(folder, callbacks, logger=logger, max_steps=200).fit(module)
    return module


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """TensorBoard's events and the spectrum."""
    folder = tmp_path_factory.mktemp("board")
    logger = TensorBoardLogger(folder, "tb", version="run", default_hp_metric=False)
    send_settings(logger, {"model": "Gaussian", "solver.k": 1, "image.crop": [1, 2]})
    module = fit(folder, logger)
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    events = EventAccumulator(str(folder / "tb" / "run"), size_guidance=sizes)
    events.Reload()
    return events, module.spectrum()


def test_residuals_come_as_logarithms_too(board: tuple[Any, Any]) -> None:
    events, _ = board
    plain = {point.step: point.value for point in events.Scalars("residual/0")}
    logs = {point.step: point.value for point in events.Scalars("residual_log10/0")}
    assert len(logs) >= 3
    for step, value in logs.items():
        assert value == pytest.approx(math.log10(plain[step]), abs=1e-4)


def test_distortions_have_a_slider_and_fill_a_card(board: tuple[Any, Any]) -> None:
    events, _ = board
    points = events.Images("distortion/0")
    assert len({point.step for point in points}) >= 2
    side = Image.open(io.BytesIO(points[-1].encoded_image_string)).size
    assert side == (252, 252)  # 21 times 12


def test_figures_and_a_summary_are_there(board: tuple[Any, Any]) -> None:
    events, spectrum = board
    tags = events.Tags()
    assert {f"figure/{name}" for name in ("spectrum", "convergence", "distortions")} <= set(
        tags["images"]
    )
    (text,) = events.Tensors("summary/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert f"{float(spectrum.eigenvalues[0]):.7g}" in shown
    assert "<b>" not in shown


def test_the_table_of_runs_has_settings_and_results(board: tuple[Any, Any]) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    events, spectrum = board
    assert events.Scalars("lambda_max")[-1].value == pytest.approx(float(spectrum.eigenvalues[0]))
    assert events.Scalars("pairs_proven")[-1].value == int(spectrum.converged.sum())
    found = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(found).session_start_info
    assert start.hparams["model"].string_value == "Gaussian"
    assert start.hparams["image.crop"].string_value == "[1, 2]"


@pytest.mark.parametrize(("shape", "wanted"), [((64, 32), (256, 128)), ((200, 300), (200, 300))])
def test_small_pictures_are_enlarged_by_whole_pixels(
    shape: tuple[int, int], wanted: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    large = enlarge(pixels)
    assert large.shape == (*wanted, 3)
    times = wanted[0] // shape[0]
    assert (large[::times, ::times] == pixels).all()


@pytest.mark.slow
def test_lightnings_own_mlflow_logger_gets_files_and_description(tmp_path: Path) -> None:
    logger = MLFlowLogger(
        "e",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        artifact_location=(tmp_path / "artifacts").as_uri(),
    )
    fit(tmp_path, logger)
    client = logger.experiment
    run = client.get_run(logger.run_id)
    assert run.data.metrics["lambda_max"] > 0
    assert run.data.tags["status"] in ("converged", "unverified", "unconverged")
    note = run.data.tags["mlflow.note.content"]
    assert "eigenvalue" in note
    assert "<b>" not in note
    files = {file.path for file in client.list_artifacts(logger.run_id, "results")}
    assert {"results/spectrum.safetensors", "results/spectrum.png"} <= files
