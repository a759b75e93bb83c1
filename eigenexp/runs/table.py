"""All runs under a root as one table, sorted by any of its columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenexp.console import aligned
from eigenexp.errors import CheckpointError, InputError
from eigenexp.runs.folder import RunFolder
from eigenexp.runs.overview import BOUND_COLUMNS, ROW_COLUMNS, known_end

__all__ = ["COLUMNS", "format_runs", "run_rows"]

COLUMNS = (
    "run",
    "created",
    "status",
    *ROW_COLUMNS,
    "pairs",
    "products",
)
"""``pairs`` the worst status of the pairs."""

_HEADINGS = {
    "lambda_max": "λmax",
    "lambda_min": "λmin",
    "worst_residual": "residual",
}
_ENDS = ("lambda_max", "lambda_min")
_RIGHT = ("k", "lambda_max", "lambda_min", "worst_residual", "products")
_WIDEST = 40


def run_rows(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return one row a run, :data:`COLUMNS` and what bounds λ; ``None`` for what it lacks."""
    rows = []
    for run in runs:
        try:
            record = run.read_record()
        except CheckpointError:
            record = {"status": "DAMAGED"}
        given = record.get("row")
        facts = dict(given) if isinstance(given, dict) else {}
        if not facts:  # of a run whose record has a title alone
            model, _, picture = str(record.get("title") or "").partition(" at ")
            facts = {"model": model, "picture": picture}
        facts["pairs"] = facts.get("status")
        facts |= {key: record.get(key) for key in ("created", "status")}
        for column in (*_RIGHT, *BOUND_COLUMNS):
            if not isinstance(facts.get(column), (int, float)):
                facts[column] = None  # JSON has no NaN: a record holds its name
        columns = (*COLUMNS, *BOUND_COLUMNS)
        rows.append({column: facts.get(column) for column in columns} | {"run": run.run_id})
    return rows


def format_runs(runs: Sequence[RunFolder], sort: str = "-created", limit: int = 0) -> list[str]:
    """Return the table as lines for a screen.

    Parameters
    ----------
    runs
        Which.
    sort
        One of :data:`COLUMNS`, ``-`` before it for the largest first; runs without a value last.
    limit
        How many lines at most; 0: all.

    Raises
    ------
    InputError
        When there is no such column.
    """
    column = sort.removeprefix("-")
    if column not in COLUMNS:
        raise InputError(f"--sort: expected one of {', '.join(COLUMNS)}, got {sort!r}")
    rows = run_rows(runs)
    if not rows:
        return ["no runs yet; begin one with: eigenexp fit"]
    known = [row for row in rows if _is_known(row[column])]
    known.sort(key=lambda row: _key(row[column]), reverse=sort.startswith("-"))
    rows = known + [row for row in rows if not _is_known(row[column])]
    left_out = max(0, len(rows) - limit) if limit > 0 else 0
    rows = rows[: len(rows) - left_out]
    cells = [[_HEADINGS.get(name, name) for name in COLUMNS]]
    cells += [[_cell(name, row) for name in COLUMNS] for row in rows]
    lines = aligned(cells, right=[i for i, name in enumerate(COLUMNS) if name in _RIGHT])
    return [*lines, *([f"… and {left_out} more: --limit 0"] if left_out else [])]


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _key(value: Any) -> tuple[bool, float, str]:
    """Sort numbers as numbers and words as words, whatever a record holds."""
    if isinstance(value, (int, float)):
        return (False, float(value), "")
    return (True, 0.0, str(value).lower())


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if not _is_known(value):
        return "-"
    if name in _ENDS:
        return known_end(row, name)
    if name == "worst_residual":
        return f"{value:.1e}"
    text = str(value)
    if name == "picture":
        text = Path(text).name or text
    if name == "created":
        text = text[:19].replace("T", " ")
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
