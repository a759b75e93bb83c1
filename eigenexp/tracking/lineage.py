"""What a run came from and led to, in MLflow 3's words: datasets in, models in and out.

A picture is a dataset whose digest is the picture's hash; the model under test is an input; the
result and the last checkpoint are models that the run put out, ranked by the run's own metrics in
MLflow's ``search_logged_models``. Every call may be repeated and doubles nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from eigenexp.tracking.records import Record
from eigenexp.tracking.store import Store

__all__ = ["CHECKPOINT_PLACE", "RANKED", "Lineage", "dataset_record", "model_record"]

log = logging.getLogger(__name__)

RANKED = ("worst_residual", "lambda_max", "lambda_min", "pairs_proven", "products")
"""Metrics of a run that its result and its checkpoint are ranked by."""
CHECKPOINT_PLACE = "checkpoints/last"
_KEY = "eigenexp.key"
_DIGEST = 36  # characters that MLflow takes
_PATIENCE = 3
_UNKNOWN = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


def dataset_record(
    name: str, digest: str, source: str, facts: Mapping[str, Any], context: str = "input"
) -> Record:
    """Return the record of a dataset that a run reads.

    Parameters
    ----------
    name, digest
        What tells it from others.
    source
        Where it was read.
    facts
        Plain values, shown as its profile.
    context
        What the run does with it.
    """
    value = {"name": name, "digest": digest, "source": source, "context": context}
    return {"k": "d", "v": {**value, "profile": json.dumps(dict(facts))}}


def model_record(role: str, name: str, facts: Mapping[str, Any], key: str = "") -> Record:
    """Return the record of a model.

    Parameters
    ----------
    role
        ``input`` (the model under test), ``result`` or ``checkpoint``.
    name
        Shown.
    facts
        Its parameters.
    key
        What tells an input from others; an output is told by its run.
    """
    return {"k": "l", "role": role, "name": name, "key": key, "v": dict(facts)}


class Lineage:
    """Hands inputs and outputs of one run to its store.

    Parameters
    ----------
    store
        Where the run is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, str] = {}
        self._unanswered = 0

    def send(self, run_id: str, record: Record) -> None:
        """Tell the store of a dataset or a model; a store of before MLflow 3 is passed over.

        Raises
        ------
        Exception
            Whatever the store raises; the same may be sent again.
        """
        from mlflow.exceptions import MlflowException

        try:
            if record["k"] == "d":
                self._log_dataset(run_id, record["v"])
            else:
                self._log_model(run_id, record)
        except MlflowException as error:
            if error.error_code not in _UNKNOWN:
                raise
            self._store.client.get_run(run_id)  # raises where it answers nothing else either
            self._unanswered += 1
            if self._unanswered < _PATIENCE:
                raise
            log.info("%s knows no inputs or models; they are left out", self._store.address)

    def update_checkpoint(self, run_id: str) -> None:
        """Tell the store that the run's last checkpoint is there, and how good it is."""
        facts = {"artifact": f"{CHECKPOINT_PLACE}/last.ckpt"}
        self.send(run_id, model_record("checkpoint", "checkpoint", facts))

    def _log_dataset(self, run_id: str, value: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=str(value["name"])[:500],
            digest=str(value["digest"])[:_DIGEST],
            source_type="local",
            source=json.dumps({"uri": str(value["source"])[:4000]}),
            profile=str(value["profile"])[:10_000],
        )
        tags = [InputTag("mlflow.data.context", str(value["context"]))]
        self._store.client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def _log_model(self, run_id: str, record: Record) -> None:
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        client, role = self._store.client, record["role"]
        run = client.get_run(run_id)  # MLflow refuses what a run has already
        if role == "input":
            model_id = self._model(run_id, record["key"], record, None)
            there = [] if run.inputs is None else run.inputs.model_inputs
            if model_id not in [each.model_id for each in there]:
                client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
            return
        model_id = self._model(run_id, f"{role} of {run_id}", record, run_id)
        step = self._rank(run_id, model_id)
        put_out = [] if run.outputs is None else run.outputs.model_outputs
        if model_id not in [each.model_id for each in put_out]:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])

    def _model(self, run_id: str, key: str, record: Record, source: str | None) -> str:
        """Return the id of the model with a key, made where there is none."""
        if key in self._known:
            return self._known[key]
        client = self._store.client
        experiment = client.get_run(run_id).info.experiment_id
        escaped = key.replace("'", "")
        found = client.search_logged_models([experiment], f"tags.`{_KEY}` = '{escaped}'")
        model_id = found[0].model_id if found else None
        if model_id is None:
            params = {name: str(value)[:500] for name, value in record["v"].items()}
            made = client.create_logged_model(
                experiment,
                name=_plain_name(record["name"]),
                source_run_id=source,
                tags={_KEY: escaped},
                params=params,
                model_type="model under test" if record["role"] == "input" else record["role"],
            )
            model_id = made.model_id
            client.finalize_logged_model(model_id, "READY")
        self._known[key] = str(model_id)
        return str(model_id)

    def _rank(self, run_id: str, model_id: str) -> int:
        """Give a model the run's last values, which are the run's own points; return their step."""
        from mlflow.entities import Metric

        points = self._store.client.get_run(run_id).data.to_proto().metrics
        mine = [point for point in points if point.key in RANKED]
        if mine:
            # The same time and step as the run's: there they are the same points.
            metrics = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id) for p in mine]
            self._store.client.log_batch(run_id, metrics=metrics)
        return max((int(point.step) for point in mine), default=0)


def _plain_name(name: str) -> str:
    """Return a name without what MLflow refuses in a model's."""
    plain = "".join("_" if c in "/:.%\"'" or not c.isprintable() else c for c in name)
    return plain.strip()[:200] or "model"
