"""Radii of distortions as texts a person reads, from an amplitude's record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigenexp.console import aligned, printable
from eigenexp.storage.json_files import read_json

__all__ = ["AMPLITUDE_FILE", "amplitude_lines", "amplitude_view", "read_amplitude"]

AMPLITUDE_FILE = "amplitude.json"
"""Name of the file of radii and curves in a folder of results."""

_COLUMNS = {
    "index": "index",
    "known_threshold": "d′ = 1 at",
    "validity_radius": "valid to",
    "fraction_correct": "2AFC there",
    "ordering_radius": "ordered to",
    "clip_radius": "clips at",
    "strict_radius": "in range to",
    "clipped_pixels": "clipped",
}
_BEYOND = "d′ = 1 lies beyond the validity radius, so that 1/√λ is extrapolated; d_true(α) is not"


def read_amplitude(folder: Path) -> dict[str, Any] | None:
    """Return the record in a folder of results; None where there is none.

    Raises
    ------
    CheckpointError
        When the file is damaged.
    """
    path = folder / AMPLITUDE_FILE
    return read_json(path, "amplitudes of a run") if path.is_file() else None


def amplitude_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of amplitudes α (2-norm of αe) as texts.

    Parameters
    ----------
    record
        Of :meth:`~eigenexp.analysis.Amplitude.as_record`; what a foreign one lacks is ``–``.

    Returns
    -------
    dict
        ``headings``, ``rows`` (a list of cells a pair), ``legend`` and ``notes``.
    """
    given = record.get("pairs")
    pairs = [p for p in given if isinstance(p, Mapping)] if isinstance(given, list) else []
    valid, clip = (_percent(record.get(f"{name}_tolerance")) for name in ("validity", "clip"))
    notes: dict[str, list[str]] = {}
    for pair in pairs:
        told = pair.get("notes")
        told = [str(note) for note in told] if isinstance(told, list) else []
        for note in [*([_BEYOND] if _is_beyond(pair) else []), *told]:
            notes.setdefault(note, []).append(str(pair.get("index")))
    return {
        "headings": list(_COLUMNS.values()),
        "rows": [[_cell(pair, key) for key in _COLUMNS] for pair in pairs],
        "legend": (
            f"amplitudes α: valid while d′ is α√λ within {valid}; ordered while the top is above "
            f"the bottom; clipping to black and white changes d′ by {clip} where it clips, and "
            "this many values are clipped there"
        ),
        "notes": [
            note + ("" if len(where) == len(pairs) else f" (index {', '.join(where)})")
            for note, where in notes.items()
        ],
    }


def amplitude_lines(record: Mapping[str, Any]) -> list[str]:
    """Return :func:`amplitude_view` as lines for a screen."""
    view = amplitude_view(record)
    lines = aligned([view["headings"], *view["rows"]], right=range(len(_COLUMNS)))
    return [*lines, view["legend"], *(f"note: {note}" for note in view["notes"])]


def _cell(pair: Mapping[str, Any], key: str) -> str:
    value = pair.get(key)
    if key == "known_threshold":
        return printable(str(value or "–"))
    if key == "fraction_correct" and isinstance(value, (int, float)) and 0 <= value <= 1:
        return f"{100 * value:.1f} %"
    if isinstance(value, str):  # JSON knows no infinity
        value = {"inf": math.inf, "Infinity": math.inf}.get(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _is_beyond(pair: Mapping[str, Any]) -> bool:
    valid, reached = pair.get("validity_radius"), pair.get("threshold")
    if not isinstance(valid, (int, float)) or not isinstance(reached, (int, float)):
        return False
    return reached > valid


def _percent(value: Any) -> str:
    return f"{100 * value:g} %" if isinstance(value, (int, float)) else "the tolerance"
