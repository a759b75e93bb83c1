"""A study as ``eigenexp show`` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eigenexp.console import known_digits
from eigenexp.runs.folder import RunFolder
from eigenexp.study.folder import StudyFolder

__all__ = ["study_lines"]


def study_lines(run: RunFolder, most: int = 40) -> list[str]:
    """Return a study's table, one line a picture, the last ``most`` of them, and its paths."""
    folder = StudyFolder(run.results)
    plan = folder.read_plan()
    if plan is None:
        return [f"no picture begun yet; go on with: eigenexp resume {run.run_id}"]
    records = folder.records()
    lines = [f"{len(records)} of {len(plan['pictures'])} pictures finished", ""]
    lines.append(f"{'picture':<24} {'largest':>14} {'smallest':>14} {'products':>8}  status")
    for record in list(records.values())[-most:]:
        pairs = record.get("pairs") or []
        values = [f"{_known(pairs[i]) if pairs else '':>14}" for i in (0, -1)]
        status = record["error"] or ("converged" if record["converged"] else record["stop_reason"])
        lines.append(
            f"{record['name'][:24]:<24} {values[0]} {values[1]} "
            f"{record.get('num_products', 0):>8}  {status}"
        )
    lines += ["", str(folder.path / "table.csv"), str(folder.path / "pictures")]
    if len(records) < len(plan["pictures"]):
        lines.append(f"go on with: eigenexp resume {run.run_id}")
    return lines


def _known(pair: Mapping[str, Any]) -> str:
    """Return a pair's eigenvalue with its known digits; records of before have numbers alone."""
    known = pair.get("known")
    return str(known or known_digits(float(pair["eigenvalue"]), float(pair["error_bound"])))
