"""Whether a study's files hold what this version writes: they may be damaged, or others'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["plan_fault", "record_fault"]

_NUMBER = (int, float)
_RECORD: dict[str, Any] = {
    "position": int,
    "name": str,
    "where": str,
    "status": str,
    "error": (str, type(None)),
    "seconds": _NUMBER,
    "turn": int,
    "stop_reason": (str, type(None)),
    "converged": bool,
    "num_products": int,
    "pairs": (list, type(None)),
    "picture": (dict, type(None)),
}
_ALWAYS = ("position", "name", "where", "status", "error")
_SOLVED = ("converged", "stop_reason", "num_products")
# A number that is no finite one has its name in a record: JSON has none for it.
_PAIR = {name: (*_NUMBER, str) for name in ("index", "eigenvalue", "residual", "error_bound")}


def plan_fault(plan: Mapping[str, Any]) -> str | None:
    """Return the key of a plan whose value is not of its kind, if any."""
    if not isinstance(plan.get("schema_version", 0), int):
        return "schema_version"
    return None if isinstance(plan.get("pictures"), list) else "pictures"


def record_fault(record: Mapping[str, Any], position: int, name: str) -> str | None:
    """Return the key of a picture's record whose value is missing or not of its kind, if any.

    Parameters
    ----------
    record
        From a file.
    position, name
        Of the folder it lies in, which a record must not lead out of.
    """
    if (record.get("position"), record.get("name")) != (position, name):
        return "name"
    needed = _ALWAYS if record.get("status") == "failed" else (*_ALWAYS, *_SOLVED)
    for key, kind in _RECORD.items():
        if (key in record or key in needed) and not isinstance(record.get(key), kind):
            return key
    for pair in record.get("pairs") or []:
        if not isinstance(pair, dict):
            return "pairs"
        if any(not isinstance(pair.get(key, 0), kind) for key, kind in _PAIR.items()):
            return "pairs"
    return None
