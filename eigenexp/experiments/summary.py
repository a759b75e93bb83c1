"""What a person reads at the end of a run, and the exit code that tells a script the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from eigenexp.distributed.ranks import is_first_rank
from eigenexp.experiments.picture import RunResult
from eigenexp.experiments.study import StudyResult
from eigenexp.runs.folder import OUT_OF_TIME
from eigenexp.runs.overview import result_row
from eigenexp.spectrum import Spectrum, StopReason
from eigenexp.storage.plain import plain

__all__ = ["NOT_PROVEN", "as_json", "exit_code", "is_proven", "summary"]

NOT_PROVEN = 3
"""Exit code of a run that ended by itself with a pair that is not proven."""


def is_proven(result: RunResult | StudyResult) -> bool:
    """Whether every pair that was asked for is proven, at every picture."""
    if isinstance(result, StudyResult):
        return len(result.records) == result.num_pictures and all(
            record["status"] != "failed" and record["converged"]
            for record in result.records.values()
        )
    return len(result.spectrum) > 0 and bool(result.spectrum.converged.all())


def exit_code(result: RunResult | StudyResult) -> int:
    """Return the run's own exit code, or :data:`NOT_PROVEN`; the first process's alone."""
    if result.exit_code or not is_first_rank() or is_proven(result):
        return result.exit_code
    return NOT_PROVEN


def as_json(result: RunResult | StudyResult) -> dict[str, Any]:
    """Return what a run came to as plain values: ids, how it ended, its pairs or its pictures."""
    facts: dict[str, Any] = {
        "run_id": result.run_id,
        "status": result.status,
        "exit_code": exit_code(result),
        "proven": is_proven(result),
    }
    if isinstance(result, StudyResult):
        facts |= {"results": result.folder, "pictures": list(result.records.values())}
    else:
        row = result_row(result.spectrum)
        facts |= {
            **{key: value for key, value in row.items() if key not in ("status", "pairs")},
            "pairs_status": row["status"],
            "stop_reason": result.spectrum.stop_reason,
            "pairs": result.spectrum.rows(),
            "files": dict(result.paths),
        }
    return dict(plain(facts))


def summary(result: RunResult | StudyResult) -> list[str]:
    """Return the closing lines of a run."""
    if not is_first_rank():
        return []
    if isinstance(result, StudyResult):
        return study_summary(result)
    lines = ["", str(result.spectrum), ""]
    if "distortions.png" in result.paths:
        lines.append(f"picture:   {result.paths['distortions.png']}")
        lines.append(f"results:   {result.paths['distortions.png'].parent}")
    if result.status == "KILLED":
        cause = "at trainer.max_time" if result.exit_code == OUT_OF_TIME else "by a signal"
        lines.append(f"stopped {cause}; go on with: eigenexp resume {result.run_id}")
    elif not is_proven(result):
        lines.append(f"not every pair is proven; {_advice(result.run_id, result.spectrum)}")
    lines.append("dashboard: eigenexp ui")
    return lines


def _advice(run_id: str, spectrum: Spectrum) -> str:
    """Say what to type next; only what the command line takes and what can help."""
    resume = f"go on with: eigenexp resume {run_id}"
    if spectrum.stop_reason is StopReason.RUNNING:
        return f"{resume} trainer.max_steps=…"
    if spectrum.stop_reason is StopReason.MAX_PRODUCTS:
        return f"{resume} solver.max_products=…"
    if spectrum.stop_reason is StopReason.FLOOR:
        if spectrum.eigenvectors.dtype.itemsize < 8:
            return f"rounding is in the way; {resume} trainer.precision=64-true"
        return "rounding is in the way, in double precision too: ask for less with solver.tol=…"
    if spectrum.stop_reason is StopReason.UNVERIFIED:
        return f"{resume} solver.miss_chance=… (the chance of a missed pair that you accept)"
    return f"try another method in a new run: eigenexp fit … solver=lanczos (this one: {run_id})"


def _failure(record: Mapping[str, Any]) -> str:
    error, where = str(record["error"]), str(record["where"])
    return error if error.startswith(where) else f"{where}: {error}"


def study_summary(result: StudyResult) -> list[str]:
    """Return the closing lines of a study."""
    records = list(result.records.values())
    solved = [record for record in records if record["status"] != "failed"]
    failed = [record for record in records if record["status"] == "failed"]
    proven = sum(bool(record["converged"]) for record in solved)
    products = sum(record["num_products"] for record in solved)
    lines = [
        "",
        f"{len(solved)} of {result.num_pictures} pictures solved, every pair proven at {proven}; "
        f"{products} products",
    ]
    reasons = Counter(record["stop_reason"] for record in solved if not record["converged"])
    lines += [
        f"not proven at {count}: {StopReason(reason).message}"
        for reason, count in reasons.most_common()
    ]
    lines += [f"failed: {_failure(record)}" for record in failed[:20]]
    if len(failed) > 20:
        lines.append(f"… and {len(failed) - 20} more, in the table")
    if (result.folder / "table.csv").is_file():
        lines.append(f"table:     {result.folder / 'table.csv'} (and .parquet)")
    lines.append(f"pictures:  {result.folder / 'pictures'}")
    if len(records) < result.num_pictures:
        lines.append(f"go on with: eigenexp resume {result.run_id}")
    else:
        resume = f"try again: eigenexp resume {result.run_id} study.retry_"
        lines += [f"{resume}failed=true"] if failed else []
        lines += [f"{resume}unproven=true solver.…"] if reasons else []
    lines.append("dashboard: eigenexp ui")
    return lines
