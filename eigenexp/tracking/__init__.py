"""Tracking that never slows or stops a solve: an MLflow logger, its spool, the store.

None of these imports MLflow, Lightning or torch before it is used. The logger is of Lightning's
kind: ``eigenexp.MLflowLogger``, at home in :mod:`eigenexp.tracking.mlflow_logger`.
"""

from eigenexp.tracking.artifacts import download_artifact, download_checkpoint, list_artifacts
from eigenexp.tracking.store import Store, local_store
from eigenexp.tracking.syncing import SyncReport, sync

__all__ = [
    "Store",
    "SyncReport",
    "download_artifact",
    "download_checkpoint",
    "list_artifacts",
    "local_store",
    "sync",
]
