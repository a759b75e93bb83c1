"""What MLflow reads from the environment of a process of ours."""

from __future__ import annotations

import logging
import os

__all__ = ["QUIET_ENVIRONMENT", "quiet_mlflow"]

QUIET_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def quiet_mlflow() -> None:
    """Keep MLflow's migrations, prints and usage reports to itself; a user's own setting wins."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
