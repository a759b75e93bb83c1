"""The table of a study: one row an eigenpair, as plain rows, CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenexp.storage.atomic import write_atomic

__all__ = ["COLUMNS", "table_rows", "write_tables"]

COLUMNS = (
    "position",
    "picture",
    "where",
    "status",
    "index",
    "eigenvalue",
    "residual",
    "relative_residual",
    "error_bound",
    "pair_status",
    "stop_reason",
    "num_products",
    "seconds",
    "sha256",
    "error",
)


def table_rows(records: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row an eigenpair, by position and index; one row for a picture that failed."""
    rows = []
    for position, record in sorted(records.items()):
        picture = record.get("picture") or {}
        base = {
            "position": position,
            "picture": record["name"],
            "where": record["where"],
            "status": record["status"],
            "stop_reason": record.get("stop_reason"),
            "num_products": record.get("num_products"),
            "seconds": record["seconds"],
            "sha256": picture.get("sha256"),
            "error": record["error"],
        }
        for pair in record.get("pairs") or [{}]:
            numbers = {
                "index": pair.get("index"),
                "eigenvalue": pair.get("eigenvalue"),
                "residual": pair.get("residual"),
                "relative_residual": pair.get("relative_residual"),
                "error_bound": pair.get("error_bound"),
                "pair_status": pair.get("status"),
            }
            row = {**base, **numbers}
            rows.append({name: row[name] for name in COLUMNS})
    return rows


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write ``table.csv`` and ``table.parquet`` atomically; return their paths."""
    import pandas as pd

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    paths = [write_atomic(folder / "table.csv", text.getvalue().encode())]
    frame = pd.DataFrame([dict(row) for row in rows], columns=list(COLUMNS))
    frame = frame.astype({"index": "Int64", "num_products": "Int64", "position": "int64"})
    frame = frame.astype({name: "float64" for name in COLUMNS[5:9]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    paths.append(write_atomic(folder / "table.parquet", buffer.getvalue()))
    return paths
