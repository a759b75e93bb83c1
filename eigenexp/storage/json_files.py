"""Reading JSON files of ours, without the imports that writing them takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eigenexp.errors import CheckpointError
from eigenexp.storage.regular import file_fault

__all__ = ["read_json"]

_MOST_BYTES = 64 << 20  # a record of a study of 100 000 pictures has 30 MB


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a JSON file of ours.

    Raises
    ------
    CheckpointError
        Naming ``what`` was expected, when the file is missing, a pipe or device, larger than 64 MB,
        damaged or no mapping.
    """
    try:
        fault = file_fault(path, _MOST_BYTES)
        if fault is not None:
            raise CheckpointError(f"{path}: expected {what}, got {fault}")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected {what}, got no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected {what}, got a damaged file ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a mapping, got another kind")
    return value
