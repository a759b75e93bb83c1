"""A sweep as one table: a line a job, with what was swept, what came out and what it cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eigenexp.console import aligned
from eigenexp.runs.overview import BOUND_COLUMNS, ROW_COLUMNS, known_end
from eigenexp.storage.atomic import write_atomic
from eigenexp.sweeps.manifest import FINISHED, Job, SweepFolder

__all__ = ["COLUMNS", "format_table", "rows", "write_tables"]

COLUMNS = (
    "job",
    *ROW_COLUMNS,
    *BOUND_COLUMNS,
    "status",
    "products",
    "seconds",
)
"""``status`` the worst of the pairs', or the job's own state."""


def rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the table's lines: :data:`COLUMNS`, the settings that differ, run id and error."""
    lines = []
    for job in jobs:
        pairs = (override.partition("=") for override in job.swept)
        swept = {key.lstrip("+"): value for key, _, value in pairs}
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | dict(job.facts.get("row") or {})
        row["job"] = job.index
        if job.state != FINISHED:
            row["status"] = job.state
        lines.append(
            {column: row[column] for column in COLUMNS}
            | {key: value for key, value in swept.items() if key not in COLUMNS}
            | {"run_id": job.facts.get("run_id"), "error": job.facts.get("error")}
        )
    return lines


def write_tables(folder: SweepFolder, jobs: Sequence[Job]) -> list[Path]:
    """Write ``table.csv`` and ``table.parquet`` as the jobs stand; return their paths."""
    lines = rows(jobs)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    paths = [write_atomic(folder.table_path, text.getvalue().encode())]
    import pandas as pd

    frame = pd.DataFrame(lines)
    numbers = ("lambda_max", "lambda_min", "lambda_max_bound", "lambda_min_bound")
    for column in (*numbers, "worst_residual", "seconds"):
        frame[column] = frame[column].astype("float64")
    for column in ("k", "null_space", "products"):
        frame[column] = frame[column].astype("Int64")
    packed = io.BytesIO()
    frame.to_parquet(packed, index=False)
    paths.append(write_atomic(folder.path / "table.parquet", packed.getvalue()))
    return paths


def format_table(jobs: Sequence[Job]) -> str:
    """Return the table as text for a screen."""
    header = ("job", "model", "picture", "k", "λmax", "λmin", "residual", "status", "products", "s")
    cells = [header]
    for line in rows(jobs):
        cells.append(
            (
                str(line["job"]),
                str(line["model"] or "?"),
                Path(str(line["picture"] or "?")).name,
                str(line["k"] if line["k"] is not None else "?"),
                known_end(line, "lambda_max") or "-",
                known_end(line, "lambda_min") or "-",
                _number(line["worst_residual"], "{:.1e}"),
                str(line["status"]),
                _number(line["products"], "{:d}"),
                _number(line["seconds"], "{:.1f}"),
            )
        )
    return "\n".join(aligned(cells, right=[0, 3, 4, 5, 6, 8, 9]))


def _number(value: Any, style: str) -> str:
    if value is None:
        return "-"
    return style.format(int(value) if style == "{:d}" else float(value))
