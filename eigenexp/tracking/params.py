"""Parameters of a run, which never change in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eigenexp.tracking.names import clean_key
from eigenexp.tracking.store import Store

__all__ = ["MAX_PARAM_LENGTH", "log_params"]

MAX_PARAM_LENGTH = 500


def log_params(
    store: Store,
    run_id: str,
    params: Mapping[str, Any],
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Log parameters; a changed one becomes the tag ``drift.<name>``. Return what was logged.

    Values longer than 500 characters are cut. Parameters of a run never change in MLflow.
    """
    from mlflow.entities import Param, RunTag

    if known is None:
        known = store.client.get_run(run_id).data.params
    values = {clean_key(str(key)): _cut(value) for key, value in params.items()}
    fresh = {key: value for key, value in values.items() if key not in known}
    tags = [
        RunTag(f"drift.{key}", _cut(f"{known[key]} → {value}"))
        for key, value in values.items()
        if key in known and known[key] != value
    ]
    entries = [Param(key, value) for key, value in fresh.items()]
    for start in range(0, max(len(entries), len(tags)), 100):
        store.client.log_batch(
            run_id, params=entries[start : start + 100], tags=tags[start : start + 100]
        )
    return fresh


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 1] + "…"
