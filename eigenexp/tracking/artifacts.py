"""Files of a run, fetched from the tracking store into one folder and never beside it."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from eigenexp.errors import CheckpointError, RunNotFoundError, TrackingError
from eigenexp.storage.atomic import copy_atomic
from eigenexp.tracking.files import safe_relative
from eigenexp.tracking.store import Store
from eigenexp.tracking.texts import one_line

__all__ = ["download_artifact", "download_checkpoint", "list_artifacts"]

_KINDS = ("last", "best")


def list_artifacts(store: Store, run_id: str, folder: str = "") -> list[str]:
    """Return the paths of all files under ``folder`` in a run's artifacts.

    Names that could lead out of a folder are left out, whoever wrote them.
    """
    run = store.find_run(run_id)
    found: list[str] = []
    waiting = [folder]
    while waiting:
        for entry in store.client.list_artifacts(run.info.run_id, waiting.pop() or None):
            try:
                path = safe_relative(entry.path)
            except TrackingError:
                continue
            (waiting if entry.is_dir else found).append(path)
    return sorted(found)


def download_artifact(
    store: Store, run_id: str, path: str, destination: str | os.PathLike[str]
) -> Path:
    """Fetch one file to ``destination/<name>``, whole or not at all.

    Raises
    ------
    RunNotFoundError
        When the run, or the file in it, is not there.
    TrackingError
        When ``path`` climbs, or the store sends something else than a file.
    """
    relative = safe_relative(path)
    run = store.find_run(run_id)
    target = Path(destination) / relative.rpartition("/")[2]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"{destination}: expected a folder that can be written, got {error.strerror}"
        ) from error
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        try:
            got = store.client.download_artifacts(run.info.run_id, relative, scratch)
        except Exception as error:
            raise RunNotFoundError(
                f"run {run.info.run_id}: expected the artifact {relative!r}, got {one_line(error)}"
            ) from error
        inside = Path(scratch).resolve()
        fetched = Path(got)
        if fetched.is_symlink() or not fetched.is_file() or inside not in fetched.resolve().parents:
            raise TrackingError(f"artifact {relative!r}: expected a plain file, got something else")
        copy_atomic(fetched, target)
    return target


def download_checkpoint(
    store: Store, run_id: str, destination: str | os.PathLike[str], kind: str | None = None
) -> Path:
    """Fetch a run's checkpoint, verified against the SHA-256 it was sealed with.

    Parameters
    ----------
    store, run_id
        Where; ``run_id`` may be a unique beginning.
    destination
        Folder for ``last.ckpt`` (or ``best.ckpt``) and its ``.metadata.json``.
    kind
        ``"last"`` or ``"best"``; ``None`` for ``last``, falling back on ``best``.

    Raises
    ------
    RunNotFoundError
        When there is no such run.
    CheckpointError
        When no checkpoint of it is whole.
    """
    from eigenexp.checkpoints.files import CheckpointWarning
    from eigenexp.checkpoints.seals import verify_checkpoint  # imports torch

    if kind is not None and kind not in _KINDS:
        raise CheckpointError(f"kind: expected 'last' or 'best', got {kind!r}")
    run = store.find_run(run_id).info.run_id
    problems = []
    for name in (kind,) if kind else _KINDS:
        try:
            path = download_artifact(store, run, f"checkpoints/{name}/{name}.ckpt", destination)
            verify_checkpoint(path)
        except (RunNotFoundError, CheckpointError, TrackingError) as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]}; using {name}.ckpt", CheckpointWarning, stacklevel=2)
        return path
    raise CheckpointError(
        f"run {run}: expected a checkpoint among its artifacts, got none that is whole "
        f"({' | '.join(problems)})"
    )
