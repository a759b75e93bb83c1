"""Stimuli for other programs: one MATLAB file, or an array a file."""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eigenexp.errors import InputError
from eigenexp.stimuli.levels import read_levels
from eigenexp.stimuli.manifest import Manifest, Passport
from eigenexp.stimuli.settings import Settings
from eigenexp.storage.atomic import write_atomic

__all__ = ["MATLAB_FILE", "RAW", "raw_file", "write_matlab", "write_raw"]

MATLAB_FILE = "stimuli.mat"
RAW = "raw"
"""Folder of the arrays."""

_MOST_BYTES = (1 << 31) - 1  # of a variable in a MATLAB file of version 5


def raw_file(name: str) -> str:
    """Return the array's path of a stimulus or reference, from the manifest's folder."""
    return f"{RAW}/{name}.npy"


def write_raw(manifest: Manifest, folder: Path, settings: Settings) -> Path:
    """Write the whole levels of each stimulus and reference as ``raw/<id>.npy``.

    ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16: what the picture files hold.

    Returns
    -------
    Path
        The folder of the arrays.
    """
    files = {one.id: one.file for one in manifest.references}
    files |= {one.id: one.file for one in manifest.stimuli}
    for name, picture in files.items():
        file = io.BytesIO()
        np.save(file, _shown(folder / picture), allow_pickle=False)
        path = folder / raw_file(name)
        content = file.getvalue()
        if not (path.is_file() and path.read_bytes() == content):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content, sync=False)
    return folder / RAW


def write_matlab(manifest: Manifest, folder: Path, settings: Settings) -> Path:
    """Write ``stimuli.mat`` (version 5): everything of the manifest, and the pixels.

    Variables: ``manifest`` (its id), ``task``, ``alternatives``, ``display``, and the structure
    arrays ``references`` and ``stimuli``: the fields of a passport, with ``pixels`` as uint8 or
    uint16 ``(H, W)`` or ``(H, W, 3)``, and ``reference_index``, from 1, into ``references``.

    Raises
    ------
    InputError
        When it would be larger than that format allows.
    """
    from scipy.io import loadmat, savemat
    from scipy.io.matlab import MatReadError

    path = folder / MATLAB_FILE
    try:
        if str(loadmat(path, variable_names=["manifest"])["manifest"][0]) == manifest.id:
            return path
    except (
        OSError,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        NotImplementedError,
        MatReadError,
    ):
        pass  # none yet, or of another export, or damaged
    place = {one.id: i for i, one in enumerate(manifest.references, 1)}
    references = [
        {
            "id": one.id,
            "picture": one.picture,
            "file": one.file,
            "pixels": _shown(folder / one.file),
        }
        for one in manifest.references
    ]
    stimuli = [
        {
            **_passport(one),
            "reference_index": place[one.reference],
            "pixels": _shown(folder / one.file),
        }
        for one in manifest.stimuli
    ]
    size = sum(one["pixels"].nbytes for one in stimuli)
    if size > _MOST_BYTES:
        raise InputError(
            f"format: expected at most {_MOST_BYTES / 1e9:.2g} GB of pixels for matlab, whose "
            f"version 5 has no more, got {size / 1e9:.2g} GB; use format=raw"
        )
    display = manifest.display
    content = {
        "manifest": manifest.id,
        "task": manifest.task,
        "alternatives": float(manifest.alternatives),
        "display": {field.name: _cell(getattr(display, field.name)) for field in fields(display)},
        "references": _structures(references),
        "stimuli": _structures(stimuli),
    }
    file = io.BytesIO()
    savemat(file, content, do_compression=True, long_field_names=True, oned_as="row")
    write_atomic(path, file.getvalue(), sync=False)
    return path


def _shown(path: Path) -> npt.NDArray[Any]:
    levels = read_levels(path)
    return levels[0] if len(levels) == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1))


def _passport(one: Passport) -> dict[str, Any]:
    return {name: _cell(value) for name, value in one.row().items()}


def _cell(value: Any) -> Any:
    """Return a value as MATLAB has it: numbers as doubles, NaN where there is none."""
    if value is None:
        return np.nan
    return float(value) if isinstance(value, int | float) else str(value)


def _structures(rows: list[dict[str, Any]]) -> npt.NDArray[Any]:
    found = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        found[i] = tuple(row.values())
    return found
