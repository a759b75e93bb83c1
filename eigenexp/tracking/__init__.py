"""Tracking that never slows or stops a solve: an MLflow logger, its spool, the store.

Every name loads when first used: ``import eigenexp.tracking`` imports neither MLflow nor Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eigenexp.tracking.artifacts import download_artifact, download_checkpoint, list_artifacts
    from eigenexp.tracking.mlflow_logger import MLflowLogger
    from eigenexp.tracking.store import Store, local_store
    from eigenexp.tracking.syncing import SyncReport, sync

_HOMES = {
    "MLflowLogger": "mlflow_logger",
    "Store": "store",
    "SyncReport": "syncing",
    "download_artifact": "artifacts",
    "download_checkpoint": "artifacts",
    "list_artifacts": "artifacts",
    "local_store": "store",
    "sync": "syncing",
}

__all__ = [
    "MLflowLogger",
    "Store",
    "SyncReport",
    "download_artifact",
    "download_checkpoint",
    "list_artifacts",
    "local_store",
    "sync",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eigenexp.tracking' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"eigenexp.tracking.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
