"""Records of a spool: what kinds there are, and which lines are none."""

from __future__ import annotations

import json
import os
import socket
import uuid
from typing import Any

from eigenexp.tracking.names import STATUSES

__all__ = ["Record", "is_sound", "parse_record", "session_record"]

Record = dict[str, Any]

_LARGEST = 2**63 - 1  # of a step or time stamp in a store
_DEEPEST = 20  # levels in a record: parameters come flat


def parse_record(line: bytes) -> Record:
    """Return the record in a line; one without comes as ``{"k": "damaged", "line": …}``."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and _is_flat(record, _DEEPEST):
        return record
    return {"k": "damaged", "line": line[:2000].decode("utf-8", "replace")}


def _is_flat(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_flat(entry, levels - 1) for entry in inside)


def is_sound(record: Record) -> bool:
    """Whether a line is a record this version knows, of kinds and sizes that a store takes."""
    kinds = _KINDS.get(str(record.get("k")))
    if kinds is None or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        return False
    if any(not -_LARGEST <= record[key] <= _LARGEST for key in ("s", "t") if key in kinds):
        return False
    if record["k"] == "d":
        return all(isinstance(record["v"].get(name), str) for name in _DATASET)
    if record["k"] == "status":
        return record["v"] in STATUSES
    numbers = record["v"].values() if record["k"] == "m" else ()
    return all(isinstance(name, str) for name in record.get("files", [])) and all(
        isinstance(number, float) or (isinstance(number, int) and abs(number) <= _LARGEST)
        for number in numbers
    )


_FILES = {"files": list}
_DATASET = ("name", "digest", "source", "context", "profile")
_KINDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "session": {"pid": int, "host": str, "resume": bool},
    "m": {"t": int, "s": int, "v": dict},
    "p": {"v": dict},
    "t": {"v": dict},
    "a": {**_FILES, "to": str, "slot": (str, type(None))},
    "i": {**_FILES, "key": str, "t": int, "s": int},
    "d": {"v": dict},
    "l": {"role": str, "name": str, "key": str, "v": dict},
    "status": {"v": str},
    "end": {},
}


def session_record(*, resume: bool, run_id: str | None) -> Record:
    """Return the record a writing process begins with."""
    return {
        "k": "session",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "resume": resume,
        "run_id": run_id,
        "id": uuid.uuid4().hex,
    }
