"""Words that MLflow takes: names of runs, experiments, metrics and stores; states of a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from eigenexp.errors import TrackingError

__all__ = [
    "STATUSES",
    "check_experiment_name",
    "check_run_id",
    "clean_key",
    "is_run_id",
    "sqlite_uri",
]

STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")

_RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LONGEST_EXPERIMENT = 500  # of MLflow's own


def is_run_id(text: str) -> bool:
    """Whether a text can be a run's id, or the beginning of one."""
    return bool(_RUN_ID.fullmatch(text))


def check_run_id(run_id: str) -> str:
    """Return ``run_id`` if it can name a folder.

    Raises
    ------
    TrackingError
        When a server answers with something else.
    """
    if not isinstance(run_id, str) or not is_run_id(run_id):
        raise TrackingError(f"run id: expected letters and digits from the store, got {run_id!r}")
    return run_id


def clean_key(key: str) -> str:
    """Return ``key`` with what MLflow refuses in names replaced."""
    cleaned = re.sub(r"[^\w\-./ :]", "_", key, flags=re.ASCII).strip("/ ")[:250] or "_"
    parts = [part if part.strip(".") else "_" for part in cleaned.split("/") if part]
    return "/".join(parts) or "_"


def check_experiment_name(name: str) -> str:
    """Return a name that MLflow takes for an experiment.

    Raises
    ------
    TrackingError
        When it is empty, too long, or holds control characters.
    """
    if not name or len(name) > _LONGEST_EXPERIMENT or not name.isprintable():
        raise TrackingError(
            f"experiment_name: expected 1 to {_LONGEST_EXPERIMENT} letters without control "
            f"characters, got {name[:80]!r}{'…' if len(name) > 80 else ''}"
        )
    return name


def sqlite_uri(root: str | os.PathLike[str]) -> str:
    """Return the address of the SQLite store under a folder of runs."""
    return f"sqlite:///{(Path(root).absolute() / 'mlflow.db').as_posix()}"
