"""One MLflow child run a finished picture of a study, made in a process of its own.

``python -m eigenexp.tracking.children`` watches the study's folder and ends when its standard input
closes, which a killed parent does too. What a picture's record says is what the child run gets; a
file ``published.json`` beside the record says that it has it. A child that was made while the file
was not yet written is found again by its tags, so every picture has one child however often the
process is killed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import eigenexp
from eigenexp.storage.atomic import write_json_atomic
from eigenexp.tracking.store import QUIET_ENVIRONMENT, Store, one_line

__all__ = ["ChildRuns", "publish_pictures"]

log = logging.getLogger(__name__)

_PARENT = "mlflow.parentRunId"
_POSITION = "eigenexp.position"
_POLL_SECONDS = 2.0


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
    root, uri
        The project's ``mlruns`` folder and the tracking store.
    parent
        The parent's run id; nothing is done for a provisional one.
    folder
        The study's folder.
    """

    def __init__(self, root: Path, uri: str, parent: str, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if parent.startswith("offline-"):
            log.warning("no child runs: the tracking store has not named the parent run yet")
            return
        package = str(Path(eigenexp.__file__).parent.parent)
        paths = [package, os.environ.get("PYTHONPATH", "")]
        environment = {
            **QUIET_ENVIRONMENT,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        folder.mkdir(parents=True, exist_ok=True)
        module = [sys.executable, "-m", "eigenexp.tracking.children"]
        with (folder / "children.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*module, str(root), uri, parent, str(folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C is meant for the solve
            )

    def close(self, timeout: float = 60.0) -> bool:
        """Let it make the last ones and wait for it; return whether it ended in time."""
        if self._process is None:
            return False
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            return self._process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False  # it ends by itself


def main(arguments: list[str] | None = None) -> int:
    """Watch a study's folder until standard input closes, then once more."""
    root, uri, parent, folder = arguments or sys.argv[1:5]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    closed = threading.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        closed.set()

    threading.Thread(target=watch, daemon=True).start()
    from filelock import FileLock

    with FileLock(Path(folder) / ".children.lock"):
        return _serve(Store(root, uri), parent, Path(folder), closed)


def _serve(store: Store, parent: str, folder: Path, closed: threading.Event) -> int:
    failures = 0
    published: dict[str, int] = {}
    while True:
        last = closed.is_set()
        try:
            publish_pictures(store, parent, folder, published)
            failures = 0
        except Exception as error:
            log.warning("%s", one_line(error))
            failures += 1
            published.clear()  # what was not published is looked at again
        if last and (failures == 0 or failures > 5):
            return int(failures > 0)
        closed.wait(_POLL_SECONDS * (1 + failures))


if __name__ == "__main__":
    sys.exit(main())
