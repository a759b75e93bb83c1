"""What a dead process leaves to whoever sends for it: a checkpoint not handed over, or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from eigenexp.errors import CheckpointError, RunNotFoundError
from eigenexp.runs.folder import RunFolder
from eigenexp.tracking.artifacts import download_artifact
from eigenexp.tracking.files import snapshot
from eigenexp.tracking.records import Record
from eigenexp.tracking.spool import Spool
from eigenexp.tracking.store import Store

__all__ = ["came_to_nothing", "unsent_checkpoint"]

_PLACE = "checkpoints/last"


def unsent_checkpoint(spool: Spool, store: Store, run_id: str) -> Record | None:
    """Return the record of an upload: of a run's last checkpoint, where the store has none as late.

    A process that dies right after it wrote one has not told anybody of it, and another machine
    would begin at the one before, or have none to begin with.
    """
    folder = _folder(spool, run_id)
    last = folder.checkpoints / "last.ckpt"
    if not folder.record_path.is_file() or not last.is_file():
        return None
    from eigenexp.checkpoints.files import load_metadata  # imports torch
    from eigenexp.checkpoints.seals import sealed_step

    step = sealed_step(last)
    if step is None or step <= _stored_step(store, run_id):
        return None
    place = spool.new_file_folder()
    try:
        kept = snapshot(last, place, last.name)
        facts = {**load_metadata(kept), "file": kept.name}  # proves that the file is whole
    except (CheckpointError, OSError):
        return None
    with kept.open("rb") as file:
        facts["file_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    told = place / "metadata.json"
    told.write_text(json.dumps(facts, indent=2))
    files = [str(path.relative_to(spool.folder)) for path in (kept, told)]
    return {"k": "a", "files": files, "to": _PLACE, "slot": _PLACE}


def _stored_step(store: Store, run_id: str) -> int:
    """Return the step of the checkpoint a store has; -1 without one."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = download_artifact(store, run_id, f"{_PLACE}/metadata.json", Path(scratch))
            step: Any = json.loads(path.read_text())["step"]
        except (RunNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return -1
    return step if isinstance(step, int) else -1


def came_to_nothing(spool: Spool, store: Store, run_id: str) -> bool:
    """Whether a run has neither a record on this machine nor anything in its store.

    Its process died between the making of the run and the first thing it had to tell.
    """
    if _folder(spool, run_id).checkpoints.exists():
        return False
    data = store.client.get_run(run_id).data
    if data.params or data.metrics:
        return False
    with contextlib.suppress(OSError):  # a folder of artifacts that was never made
        return not store.client.list_artifacts(run_id)
    return True


def _folder(spool: Spool, run_id: str) -> RunFolder:
    root = Path(spool.meta["root"])
    folder = RunFolder(root, run_id)
    return folder if folder.checkpoints.exists() else RunFolder(root, spool.meta["local_id"])
