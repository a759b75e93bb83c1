"""One MLflow child run a finished picture of a study, made in a process of its own.

What a picture's record says is what the child run gets; a file ``published.json`` beside the record
says that it has it. A child that was made while the file was not yet written is found again by its
tags, so every picture has one child however often the process is killed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from eigenexp.storage.atomic import write_json_atomic
from eigenexp.storage.processes import module_arguments, start_module
from eigenexp.tracking.environment import QUIET_ENVIRONMENT
from eigenexp.tracking.lineage import Lineage, dataset_record
from eigenexp.tracking.store import Store
from eigenexp.tracking.watching import beside_parent, deliver

__all__ = ["ChildRuns", "PictureWatch", "publish_pictures"]

log = logging.getLogger(__name__)

_PARENT = "mlflow.parentRunId"
_POSITION = "eigenexp.position"
_POLL_SECONDS = 2.0
_GRACE_SECONDS = 60.0
_LOCK_SECONDS = 120.0


def publish_pictures(
    store: Store, parent: str, folder: Path, published: dict[str, int] | None = None
) -> int:
    """Make the child runs that are missing; return how many were made.

    Parameters
    ----------
    store
        Where the parent run is.
    parent
        The parent's run id.
    folder
        The study's folder.
    published
        What earlier calls saw to be published, which is not read again; filled here.
    """
    seen = {} if published is None else published
    waiting = [picture for picture in _finished(folder, seen) if not _is_published(picture)]
    if not waiting:
        return 0
    experiment = store.client.get_run(parent).info.experiment_id
    known = _children(store, experiment, parent)
    for picture in waiting:
        record = json.loads((picture / "record.json").read_text())
        child = _publish(store, experiment, parent, picture, record, known)
        facts = {"run_id": child, "sha256": _digest(record)}
        write_json_atomic(picture / "published.json", facts)
    return len(waiting)


def _finished(folder: Path, seen: dict[str, int]) -> list[Path]:
    """Return the finished pictures whose record is not one that was seen before."""
    found = []
    if (folder / "pictures").is_dir():
        with os.scandir(folder / "pictures") as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    changed = os.stat(os.path.join(entry.path, "record.json")).st_mtime_ns
                except OSError:
                    continue  # at work
                if seen.get(entry.name) != changed:
                    seen[entry.name] = changed
                    found.append(Path(entry.path))
    return found


def _is_published(picture: Path) -> bool:
    """Whether this record, and not an earlier one of the same picture, was published."""
    try:
        published = json.loads((picture / "published.json").read_text())
        record = json.loads((picture / "record.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(published.get("sha256") == _digest(record))


def _digest(record: dict[str, Any]) -> str:
    return f"{record['status']} {record['turn']} {record['seconds']}"


def _children(store: Store, experiment: str, parent: str) -> dict[str, str]:
    found: dict[str, str] = {}
    token = None
    while True:
        page = store.client.search_runs(
            [experiment], f"tags.`{_PARENT}` = '{parent}'", max_results=1000, page_token=token
        )
        found |= {run.data.tags.get(_POSITION, ""): run.info.run_id for run in page}
        token = page.token
        if not token:
            return found


def _delete_twins(store: Store, experiment: str, parent: str, position: str, child: str) -> None:
    """Delete what a creation left that the client sent again because its answer was lost."""
    query = f"tags.`{_PARENT}` = '{parent}' and tags.`{_POSITION}` = '{position}'"
    for run in store.client.search_runs([experiment], query):
        if run.info.run_id != child:
            store.client.delete_run(run.info.run_id)


def _publish(
    store: Store,
    experiment: str,
    parent: str,
    picture: Path,
    record: dict[str, Any],
    known: dict[str, str],
) -> str:
    from mlflow.entities import Metric, Param

    client = store.client
    position = str(record["position"])
    child = known.get(position)
    if child is None:
        tags = {_PARENT: parent, _POSITION: position, "picture": record["name"]}
        child = client.create_run(experiment, run_name=picture.name, tags=tags).info.run_id
        _delete_twins(store, experiment, parent, position, child)
    end = int((picture / "record.json").stat().st_mtime * 1000)
    start = end - int(1000 * record["seconds"])
    metrics = [Metric("seconds", record["seconds"], end, 0)]
    for pair in record.get("pairs") or []:
        for name in ("eigenvalue", "residual", "relative_residual", "error_bound"):
            metrics.append(Metric(f"{name}/{pair['index']}", float(pair[name]), end, 0))
    for row in _rows(picture / "convergence.csv"):
        step = int(float(row["products"]))
        value = float(row["worst_residual"])
        if value < float("inf"):
            metrics.append(Metric("worst_residual", value, end, step))
    facts = {
        "picture": record["name"],
        "where": record["where"],
        "sha256": (record.get("picture") or {}).get("sha256"),
        "num_products": record.get("num_products"),
    }
    params = [Param(key, str(value)[:250]) for key, value in facts.items() if value is not None]
    with contextlib.suppress(Exception):  # parameters of a child found again cannot be set twice
        client.log_batch(child, params=params)
    known = record.get("picture") or {}
    if known.get("sha256"):
        Lineage(store).send(
            child, dataset_record(record["name"], known["sha256"], record["where"], {})
        )
    for first in range(0, len(metrics), 900):
        client.log_batch(child, metrics=metrics[first : first + 900])
    for key in ("status", "stop_reason", "error"):
        if record.get(key):
            client.set_tag(child, key, str(record[key])[:500])
    for path in sorted(picture.iterdir()):
        if path.is_file() and path.name != "published.json" and not path.name.startswith("."):
            store.upload(child, path, "results")
    failed = record["status"] == "failed"
    client.set_terminated(child, "FAILED" if failed else "FINISHED", end_time=max(end, start))
    return str(child)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class ChildRuns:
    """Keeps the process that makes the child runs, beside a study.

    Parameters
    ----------
    store
        The tracking store.
    parent
        The parent's run id; nothing is done for a provisional one.
    folder
        The study's folder.
    """

    def __init__(self, store: Store, parent: str, folder: Path) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        if parent.startswith("offline-"):
            log.warning("no child runs: the tracking store has not named the parent run yet")
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.process = start_module(
            "eigenexp.tracking.children",
            {"root": str(store.root), "uri": store.uri, "run": parent, "folder": str(folder)},
            output=folder / "children.log",
            environment=QUIET_ENVIRONMENT,
        )

    def close(self, timeout: float = 60.0) -> bool:
        """Let it make the last ones and wait for it; return whether it ended in time."""
        if self.process is None:
            return False
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            return self.process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False  # it ends by itself


class PictureWatch:
    """The finished pictures of a study, whose child runs are made while it goes on.

    Parameters
    ----------
    store, parent, folder
        As of :func:`publish_pictures`.
    """

    idle_seconds = _POLL_SECONDS

    def __init__(self, store: Store, parent: str, folder: Path) -> None:
        self._place = (store, parent, folder)
        self._published: dict[str, int] = {}

    def step(self) -> bool:
        """Make the child runs that are missing."""
        return publish_pictures(*self._place, self._published) > 0

    def fail(self, error: BaseException) -> None:
        """Look again at what was not published."""
        self._published.clear()

    def is_over(self, parent_is_gone: bool) -> bool:
        """Whether the study has ended, or its process is dead."""
        return parent_is_gone


def main() -> int:
    """Entry point of the process; its messages go to the study's ``children.log``."""
    given = module_arguments()
    folder = Path(given["folder"])
    with beside_parent(folder / ".children.lock", _LOCK_SECONDS) as gone:
        if gone is None:
            return 1
        watch = PictureWatch(Store(given["root"], given["uri"]), given["run"], folder)
        return 0 if deliver(watch, gone, _GRACE_SECONDS) else 1


if __name__ == "__main__":
    raise SystemExit(main())
