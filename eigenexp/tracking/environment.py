"""What MLflow reads from the environment of a process of ours."""

from __future__ import annotations

import logging
import os

from eigenexp.tracking.texts import ScrubbedFormatter

__all__ = ["QUIET_ENVIRONMENT", "quiet_mlflow", "scrub_mlflow"]

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
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # It prints the whole text of an error that it raises, too: whoever catches that tells it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each try of several


def scrub_mlflow() -> None:
    """Let no escape or password that a server sends through what MLflow says, once it is imported.

    It writes to the screen by a handler of its own.
    """
    for handler in logging.getLogger("mlflow").handlers:
        if not isinstance(handler.formatter, ScrubbedFormatter):
            handler.setFormatter(
                ScrubbedFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
            )
