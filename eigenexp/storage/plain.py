"""Plain containers: what JSON and checkpoints hold."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["leaves", "plain"]


def plain(value: Any) -> Any:
    """Turn configurations, paths, enums, tensors and arrays into plain containers.

    What has no plain form becomes its ``str``.
    """
    if value is None:
        return None
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, (bool, int, float, str)):  # subclasses, numpy scalars among them
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(entry) for entry in value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # tensors, arrays, numpy scalars
        return plain(value.tolist())
    return str(value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return what nested mappings hold, each entry with its dotted path; empty mappings hold none.

    Parameters
    ----------
    value
        A mapping, or an entry alone, which is then the only one.
    path
        Put before the paths.

    Examples
    --------
    >>> list(leaves({"a": {"b": 1, "c": {}}, "d": [2, 3]}, "x"))
    [('x.a.b', 1), ('x.d', [2, 3])]
    """
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, entry in value.items():
        yield from leaves(entry, f"{path}.{key}" if path else str(key))
