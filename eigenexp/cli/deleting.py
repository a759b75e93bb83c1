"""Delete a run: its files on this machine, and its mark in the tracking store."""

from __future__ import annotations

import shutil
from pathlib import Path

from eigenexp.errors import EigenexpError, InputError, RunNotFoundError
from eigenexp.runs.folder import RunFolder

__all__ = ["delete_run"]


def delete_run(run: RunFolder) -> list[str]:
    """Delete a run that nobody works on; return lines that say what became of it.

    Its folders under ``checkpoints``, ``results``, ``tb`` and ``csv`` go. In a tracking store it is
    marked as deleted, as MLflow's own page does it.

    Raises
    ------
    CheckpointError
        When another process works on it; nothing is deleted then.
    """
    with run.hold():
        said = _mark(run)
        places = [run.results, run.root / "tb" / run.run_id]
        places += (run.root / "csv").glob(f"{run.run_id}*")
        for place in places:
            _remove(place)
    _remove(run.checkpoints)
    return [f"run {run.run_id}: deleted{said}"]


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    elif place.is_dir():
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise InputError(
                f"{place}: expected a folder that can be deleted, got {error.strerror or error}"
            ) from error


def _mark(run: RunFolder) -> str:
    """Mark the run as deleted in the store that it was sent to; say where that failed."""
    from eigenexp.tracking import Store

    try:
        store = Store(run.root)
        if not store.is_server and not store.database.exists():
            return ""
        store.client.delete_run(store.find_run(run.run_id).info.run_id)
    except RunNotFoundError:
        return ""
    except (EigenexpError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        return f" here; the tracking store still has it ({reason})"
    return ", and marked as deleted in the tracking store"
