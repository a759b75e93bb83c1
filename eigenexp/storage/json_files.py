"""Reading JSON files of ours, without the imports that writing them takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eigenexp.errors import CheckpointError

__all__ = ["read_json"]


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a JSON file of ours.

    Raises
    ------
    CheckpointError
        Naming ``what`` was expected, when the file is missing, damaged or no mapping.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected {what}, got a damaged file ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a mapping, got another kind")
    return value
