"""What a run has so far: the pairs in its checkpoint, or what its tracking server keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eigenexp.analysis.amplitude_table import AMPLITUDE_FILE
from eigenexp.analysis.card_files import CARD_FILE, MAP_FILE
from eigenexp.checkpoints.files import METADATA_KEY, find_checkpoint, load_checkpoint
from eigenexp.eigensolvers import Problem, make_solver
from eigenexp.eigensolvers.recasting import state_dtype
from eigenexp.errors import CheckpointError, RunNotFoundError, one_line
from eigenexp.pictures.saving import PICTURE_FILE
from eigenexp.runs.folder import CONVERGENCE_FILE, RunFolder
from eigenexp.spectrum import SPECTRUM_FILE, Spectrum
from eigenexp.tracking import Store, download_artifact, download_checkpoint
from eigenexp.tracking.names import check_run_id

__all__ = ["fetch_result", "spectrum_so_far"]

_FILES = (SPECTRUM_FILE, PICTURE_FILE, CONVERGENCE_FILE, AMPLITUDE_FILE, CARD_FILE, MAP_FILE)


def spectrum_so_far(checkpoints: Path) -> Spectrum:
    """Return the pairs in a run's newest whole checkpoint, with the certificates they have.

    Parameters
    ----------
    checkpoints
        Folder of the checkpoints.

    Raises
    ------
    CheckpointError
        When there is none, or it holds no solver.
    """
    path = find_checkpoint(checkpoints, clean=False)
    checkpoint = load_checkpoint(path)
    try:
        saved = checkpoint[METADATA_KEY]
        metadata, state = dict(saved["metadata"]), saved["solver"]
        sizes = _find_settings(state)
        shape = tuple(int(side) for side in sizes["image_shape"])
        problem = Problem.of_size(shape, state_dtype(state))
        if sizes["rank_bound"] is not None:
            problem = replace(problem, rank_bound=int(sizes["rank_bound"]))
        if metadata.get("perturbations", "everything") != "everything":
            raise CheckpointError(
                f"{path}: expected a run of every perturbation to show before its end, got one of "
                f"{metadata['perturbations']}; resume it first"
            )
        solver = make_solver(problem, **metadata["solver"])
        solver.load_state_dict(state)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a solver's state, got one that cannot be read "
            f"({type(error).__name__}: {one_line(error, 100)})"
        ) from error
    note = str(metadata.get("weights") or "")
    return solver.result().reshape(shape).with_metadata(metadata).with_notes(note)


def _find_settings(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the sizes in a state; ``auto`` keeps them with the method it chose."""
    settings = state["chosen"]["settings"] if "chosen" in state else state["settings"]
    if not isinstance(settings, Mapping):
        raise TypeError("settings")
    return settings


def fetch_result(name: str, root: Path) -> RunFolder:
    """Fetch a run's result from the tracking store; without one, its last checkpoint.

    Nothing is executed, and nothing is written beside the run's own folders under ``root``.

    Raises
    ------
    RunNotFoundError, CheckpointError, TrackingError
        When the store does not have it, or does not answer.
    """
    store = Store(root)
    if store.is_local and not store.database.exists():
        raise RunNotFoundError(
            f"{name}: expected a run of {store.address}, got a store without runs"
        )
    found = store.find_run(name)
    run = RunFolder(root, check_run_id(found.info.run_id))
    for file in _FILES:
        with contextlib.suppress(RunNotFoundError):  # each of them may be missing
            download_artifact(store, run.run_id, f"results/{file}", run.results)
    if not (run.results / SPECTRUM_FILE).is_file():
        download_checkpoint(store, run.run_id, run.checkpoints)
    title = str(found.info.run_name or name)
    run.write_record(status=str(found.info.status), title=title, fetched=True)
    return run
