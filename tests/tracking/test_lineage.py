"""Inputs, outputs and rankings in MLflow 3's words, asked back through the REST API of a server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import eigenexp as ee
from eigenexp.callbacks.sending import send_origin, send_point
from eigenexp.runs.overview import study_description, sweep_description
from eigenexp.tracking import Store
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.lineage import dataset_record, model_record
from eigenexp.tracking.mlflow_logger import MLflowLogger
from tests.tracking.conftest import history, new_spool, point
from tests.training import quiet_trainer


def ask(uri: str, path: str, **body: Any) -> Any:
    """Call the REST API without MLflow's client."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def ranked(uri: str, experiment: str, key: str, ascending: bool = True) -> list[Any]:
    order = [{"field_name": f"metrics.{key}", "ascending": ascending}]
    found = ask(uri, "logged-models/search", experiment_ids=[experiment], order_by=order)
    return [model["info"] for model in found.get("models", [])]


def solve(root: Path, uri: str, crop: int, tol: float) -> tuple[str, ee.EigendistortionModule]:
    logger = MLflowLogger("lineage", root=root, tracking_uri=uri, drain_timeout=60)
    picture = ee.load_picture("camera", crop=crop)
    model = ee.models.Gaussian(kernel_size=5)
    module = ee.EigendistortionModule(model, picture, k=5, method="lanczos", tol=tol)
    callbacks = [
        ee.ConvergenceStopping(),
        ee.ConvergenceLogging(1),
        ee.SolverCheckpoint(root / "checkpoints", 10, max_share=None),
        ee.ResultFiles(root / f"results-{crop}", title=f"Gaussian at {crop}"),
    ]
    quiet_trainer(root, callbacks, logger=logger, max_steps=200, enable_checkpointing=True).fit(
        module
    )
    assert logger.close()
    return str(logger.version), module


def test_a_run_has_its_picture_and_models_and_is_ranked(server, tmp_path: Path) -> None:
    (first, module), (second, _) = (
        solve(tmp_path, server.uri, crop, tol) for crop, tol in ((12, 1e-3), (14, 1e-7))
    )
    store = Store(tmp_path, server.uri)
    run = store.client.get_run(first)
    (picture,) = run.inputs.dataset_inputs
    assert picture.dataset.name == "camera"
    sha256 = module.metadata()["picture"]["sha256"]
    assert picture.dataset.digest == sha256[:36]
    experiment = run.info.experiment_id
    inputs = {
        run_id: store.client.get_run(run_id).inputs.model_inputs for run_id in (first, second)
    }
    assert len(inputs[first]) == 1
    assert inputs[first][0].model_id == inputs[second][0].model_id  # the same weights
    for key in ("worst_residual", "lambda_max", "lambda_min"):
        results = [
            m for m in ranked(server.uri, experiment, key) if m.get("model_type") == "result"
        ]
        values = [store.client.get_run(m["source_run_id"]).data.metrics[key] for m in results]
        assert len(values) == 2
        assert values == sorted(values)
    kinds = [m.get("model_type") for m in ranked(server.uri, experiment, "worst_residual")]
    assert kinds.count("checkpoint") == 2
    assert {m["status"] for m in ranked(server.uri, experiment, "worst_residual")} == {
        "LOGGED_MODEL_READY"
    }
    assert len(run.outputs.model_outputs) == 2
    # What ranks a model is the run's own point, and stays one.
    steps = [step for step, _ in history(store, first, "worst_residual")]
    assert len(steps) == len(set(steps))
    assert len(run.data.metrics) <= 40
    assert "eigenvalue/0" in run.data.metrics
    assert "eigenvalue/-1" in run.data.metrics


def test_all_of_it_sent_twice_is_there_once(store) -> None:
    spool = new_spool(store)
    spool.append(dataset_record("cat", "ab" * 32, "/photos/cat.png", {"shape": [1, 8, 8]}))
    spool.append(model_record("input", "a/b: c", {"class": "x.Net"}, "x.Net it's"))
    spool.append(point(7, worst_residual=0.5))
    spool.append(model_record("result", "Net at cat", {"tol": 1e-3}))
    sender = Sender(spool, store)
    while sender.step():
        pass
    sender.state.segment, sender.state.offset = 1, 0  # as when the answers were lost
    spool.write_state(sender.state)
    again = Sender(spool, store)
    while again.step():
        pass
    assert again.state.rejected == 0
    run = store.client.get_run(again.state.run_id)
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.inputs.model_inputs) == 1
    assert len(run.outputs.model_outputs) == 1
    models = store.client.search_logged_models([run.info.experiment_id])
    assert sorted(model.model_type for model in models) == ["model under test", "result"]
    assert history(store, again.state.run_id, "worst_residual") == [(7, 0.5)]


def test_a_server_without_models_gets_everything_else(store, monkeypatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def unknown(*_, **__):
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    spool = new_spool(store)
    spool.append(model_record("result", "x", {}))
    spool.append(point(1, a=1.0))
    sender = Sender(spool, store)
    monkeypatch.setattr(store.client, "search_logged_models", unknown)
    for _ in range(2):  # a gateway may answer so once
        with pytest.raises(MlflowException):
            sender.step()
    while sender.step():
        pass
    assert history(store, sender.state.run_id, "a") == [(1, 1.0)]
    assert sender.state.rejected == 0


def test_a_run_of_many_pairs_has_few_curves_in_mlflow_and_others_are_told_nothing() -> None:
    class Plain:
        shows_few_metrics = True

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.seen = metrics

    logger: Any = Plain()
    pairs = {f"{kind}/{i}": 1.0 for kind in ("eigenvalue", "residual") for i in range(-9, 9)}
    send_point(logger, {**pairs, "products": 1.0}, 3)
    assert {name for name in logger.seen if name.startswith("residual")} == {
        f"residual/{i}" for i in range(-3, 4)
    }
    assert "products" in logger.seen
    send_origin(logger, "cat", {})  # has no inputs


def test_descriptions_of_parents_show_foreign_names_and_obey_none() -> None:
    pair = {"known": "1.0(2)", "status": "converged"}
    record = {"name": "<b>|cat", "pairs": [pair, pair], "converged": True, "status": "finished"}
    failed = {"name": "x", "status": "failed", "error": "no <i>picture</i>", "pairs": None}
    text = study_description("Net at photos", {0: record, 1: failed}, 3)
    assert "1 of 3 pictures solved, every pair proven at 1" in text
    assert "1\\.0\\(2\\)" in text
    assert "<" not in text
    rows = [("model=ln", {"lambda_max": 2.0, "lambda_max_bound": 1e-3, "status": "converged"})]
    text = sweep_description("sweep 1", [*rows, ("model=<b>", {})])
    assert "model=ln" in text.replace("\\", "")
    assert "2 jobs" in text
    assert "<" not in text
