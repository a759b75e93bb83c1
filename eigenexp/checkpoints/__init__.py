"""Checkpoints: sealed files, whether they may be continued, where they came from.

:mod:`.lightning_io` is Lightning's door; it is not imported here, since reading needs no Lightning.
"""

from eigenexp.checkpoints.compatibility import (
    Difference,
    IntendedChange,
    ProvenanceWarning,
    Severity,
    check_metadata,
    compare_metadata,
    migrate_metadata,
)
from eigenexp.checkpoints.files import (
    METADATA_KEY,
    CheckpointWarning,
    find_checkpoint,
    load_checkpoint,
    load_metadata,
    metadata_path,
    save_checkpoint,
)
from eigenexp.checkpoints.provenance import SCHEMA_VERSION, checkpoint_metadata, model_fingerprint
from eigenexp.checkpoints.seals import Seal, sealed_step, verify_checkpoint

__all__ = [
    "METADATA_KEY",
    "SCHEMA_VERSION",
    "CheckpointWarning",
    "Difference",
    "IntendedChange",
    "ProvenanceWarning",
    "Seal",
    "Severity",
    "check_metadata",
    "checkpoint_metadata",
    "compare_metadata",
    "find_checkpoint",
    "load_checkpoint",
    "load_metadata",
    "metadata_path",
    "migrate_metadata",
    "model_fingerprint",
    "save_checkpoint",
    "sealed_step",
    "verify_checkpoint",
]
