"""Radii of distortions as lines a person reads, from an amplitude's record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eigenexp.console import aligned, printable

__all__ = ["AMPLITUDE_FILE", "BEYOND", "COLUMNS", "amplitude_lines", "cell", "radius_text"]

AMPLITUDE_FILE = "amplitude.json"
"""Name of the file of radii and curves in a folder of results."""

COLUMNS = {
    "index": "index",
    "known_threshold": "d′ = 1 at",
    "validity_radius": "valid to",
    "ordering_radius": "ordered to",
    "clip_radius": "clips at",
    "strict_radius": "in range to",
    "clipped_pixels": "clipped",
}
"""Keys of a pair's record and what a table calls them."""


def radius_text(value: Any) -> str:
    """Return a radius with the digits it was found to; ``∞``, or ``–`` where it is undefined."""
    if value is None or isinstance(value, str):
        value = {"inf": math.inf, "Infinity": math.inf}.get(str(value))
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def amplitude_lines(record: Mapping[str, Any]) -> list[str]:
    """Return a table of amplitudes α (2-norm of αe), a line a pair, and what it means.

    Parameters
    ----------
    record
        Of :meth:`~eigenexp.analysis.Amplitude.as_record`; what a foreign one lacks is ``–``.
    """
    given = record.get("pairs")
    pairs = [p for p in given if isinstance(p, Mapping)] if isinstance(given, list) else []
    rows = [list(COLUMNS.values())]
    rows += [[cell(pair, key) for key in COLUMNS] for pair in pairs]
    lines = aligned(rows, right=range(len(COLUMNS)))
    valid, clip = (_percent(record.get(f"{name}_tolerance")) for name in ("validity", "clip"))
    lines.append(
        f"amplitudes α: valid while d′ is α√λ within {valid}; ordered while the top is above the "
        f"bottom; clipping changes d′ by {clip} where it clips"
    )
    notes: dict[str, list[str]] = {}
    for pair in pairs:
        if _beyond(pair):
            notes.setdefault(BEYOND, []).append(str(pair.get("index")))
    for pair in pairs:
        for note in pair.get("notes") or []:
            notes.setdefault(str(note), []).append(str(pair.get("index")))
    lines += [
        f"note: {note}" + ("" if len(where) == len(pairs) else f" (index {', '.join(where)})")
        for note, where in notes.items()
    ]
    return lines


BEYOND = "d′ = 1 lies beyond the validity radius: 1/√λ is extrapolated there, take d_true of that α"


def cell(pair: Mapping[str, Any], key: str) -> str:
    """Return what a table shows of one number of a pair's record."""
    value = pair.get(key)
    return printable(str(value or "–")) if key == "known_threshold" else radius_text(value)


def _beyond(pair: Mapping[str, Any]) -> bool:
    valid, reached = pair.get("validity_radius"), pair.get("threshold")
    if not isinstance(valid, (int, float)) or not isinstance(reached, (int, float)):
        return False
    return reached > valid


def _percent(value: Any) -> str:
    return f"{100 * value:g} %" if isinstance(value, (int, float)) else "the tolerance"
