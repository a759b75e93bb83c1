"""Delivers one spool to the tracking store: in order, repeatable, nothing twice."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import socket
import uuid
from pathlib import Path
from typing import Any

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.tracking.files import remove_leftovers, write_text_atomic
from eigenexp.tracking.spool import Record, Spool, is_sound
from eigenexp.tracking.store import (
    LOCAL_ID_TAG,
    MAX_PARAM_LENGTH,
    WRITER_TAG,
    Store,
    check_run_id,
    clean_key,
    one_line,
)

__all__ = ["Sender", "is_alive"]

log = logging.getLogger(__name__)

BATCH_POINTS = 1000
# MLflow's own is 256, in which the text of a figure cannot be read.
_THUMBNAIL = 640
_PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class Sender:
    """Delivers one spool; every step may fail and be repeated, nothing is delivered twice.

    Parameters
    ----------
    spool
        The run's spool; the caller holds its lock.
    store
        Where to; by default what the spool's ``meta.json`` says.
    """

    def __init__(self, spool: Spool, store: Store | None = None) -> None:
        self.spool = spool
        self.meta = spool.meta
        self.store = store or Store(self.meta["root"], self.meta["uri"])
        self.state = spool.read_state()
        self._connected = False
        self._taken_over = False
        self._images_tagged = False

    # -- steps -----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Send one batch and one upload; return whether there was anything to do.

        Raises
        ------
        Exception
            Whatever the store raises; the same step may be tried again later.
        """
        try:
            self._connect()
            moved = self._send_batch()
            return self._upload_one() or moved
        except Exception:
            # What was noted for points that did not arrive must be forgotten.
            self.state = self.spool.read_state()
            raise

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits."""
        return not self.state.uploads and not self.spool.has_more(self.state)

    def fail(self, error: BaseException) -> None:
        """Note why sending fails, for whoever waits."""
        self.state.error = one_line(error)
        with contextlib.suppress(OSError):
            self.spool.write_state(self.state)

    def mark_dead(self) -> None:
        """Set FAILED on a run whose process is gone without a word."""
        if not self._taken_over and self.state.status in (None, "RUNNING") and self.state.run_id:
            self.store.finish_run(self.state.run_id, "FAILED")
            self.state.status = "FAILED"
            self._keep()

    def _keep(self) -> None:
        self.state.error = None
        self.spool.write_state(self.state)

    # -- the run ---------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Create the run, or find out what the store has of it already."""
        if self._connected:
            return
        state = self.state
        if state.run_id is None:
            state.run_id = self._existing_run() or self._create_run()
            self._keep()
        run = self.store.client.get_run(state.run_id)
        if state.lost:
            state.floor, state.lost = self._steps_of_store(), False
            self._keep()
        state.params = {**state.params, **run.data.params}
        writer = run.data.tags.get(WRITER_TAG)
        # Another spool (another machine) has continued this run: what it sent must not be doubled,
        # nor its checkpoints and status be overwritten by older ones.
        self._taken_over = writer not in (None, self.meta["local_id"]) and bool(state.session)
        if self._taken_over:
            state.floor = self._steps_of_store()
            self._keep()
        folder = self.store.local_artifacts(state.run_id)
        if folder is not None:
            remove_leftovers(folder)
        self._connected = True

    def _existing_run(self) -> str | None:
        """Return the id of the run to continue, or ``None`` where the store has none.

        A run that began without this store, or whose store was lost, is made anew there; its id is
        then its ``local_id``.
        """
        wanted = self.meta.get("run_id")
        if wanted is None:
            return None
        try:
            return check_run_id(self.store.find_run(str(wanted)).info.run_id)
        except RunNotFoundError:
            log.warning("run %s is not in %s: it begins there anew", wanted, self.store.uri)
            return None

    def _create_run(self) -> str:
        meta, state = self.meta, self.state
        local_id = meta.get("run_id") or meta["local_id"]
        experiment_id = self.store.experiment_id(meta["experiment"])
        if state.creating:  # a creation was cut off: did it happen?
            query = f"tags.`{LOCAL_ID_TAG}` = '{local_id}'"
            found = self.store.client.search_runs([experiment_id], query, max_results=1)
            if found:
                return check_run_id(found[0].info.run_id)
        state.creating = True
        self.spool.write_state(state)
        tags = {**meta["tags"], LOCAL_ID_TAG: local_id, WRITER_TAG: meta["local_id"]}
        return self.store.create_run(meta["experiment"], meta["run_name"], tags)

    def _steps_of_store(self) -> dict[str, int]:
        run_id = self._run_id
        steps = self.store.last_steps(run_id)
        for file in self.store.client.list_artifacts(run_id, "images"):
            match = re.match(r"images/(.+)\+step\+(\d+)\+timestamp", file.path)
            if match:
                key = f"image:{match[1]}"
                steps[key] = max(int(match[2]), steps.get(key, -1))
        return steps

    @property
    def _run_id(self) -> str:
        if self.state.run_id is None:
            raise TrackingError("sender: expected a run, got none yet")
        return self.state.run_id

    # -- journal ---------------------------------------------------------------------------------

    def _send_batch(self) -> bool:
        """Send records up to a thousand points, in order; metrics of many records in one call."""
        state = self.state
        points: list[tuple[str, float, int, int]] = []
        place, moved = None, False
        for record, segment, offset in self.spool.read(state, 4 * BATCH_POINTS):
            kind = record.get("k") if is_sound(record) else None  # what is damaged is passed over
            if kind == "m":
                if points and len(points) + len(record["v"]) > BATCH_POINTS:
                    break
                points += self._fresh_points(record)
                place, moved = (segment, offset), True
                continue
            moved = True
            if place:
                self._send_points(points, place)
                points, place = [], None
            self._handle(kind, record)
            self._advance((segment, offset))
        if place:
            self._send_points(points, place)
        return moved

    def _fresh_points(self, record: Record) -> list[tuple[str, float, int, int]]:
        step, stamp = int(record["s"]), int(record["t"])
        fresh = []
        for name, value in record["v"].items():
            key = clean_key(name)
            if step <= self.state.floor.get(key, -1) or step == self.state.steps.get(key):
                continue
            self.state.steps[key] = step
            number = float(value)
            fresh.append((key, number if math.isfinite(number) else math.nan, stamp, step))
        return fresh

    def _send_points(
        self, points: list[tuple[str, float, int, int]], place: tuple[int, int]
    ) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [Metric(*point) for point in points]
        for start in range(0, len(metrics), BATCH_POINTS):
            part = metrics[start : start + BATCH_POINTS]
            try:
                self.store.client.log_batch(self._run_id, metrics=part)
            except MlflowException as error:
                if error.error_code not in _PERMANENT:
                    raise
                self._send_one_by_one(part)
        self.state.points += len(points)
        self._advance(place)

    def _send_one_by_one(self, metrics: list[Any]) -> None:
        """Find the points a server refuses; the others are delivered."""
        from mlflow.exceptions import MlflowException

        for metric in metrics:
            try:
                self.store.client.log_batch(self._run_id, metrics=[metric])
            except MlflowException as error:
                if error.error_code not in _PERMANENT:
                    raise
                self.state.rejected += 1
                log.warning("refused: %s at step %s: %s", metric.key, metric.step, error)

    def _advance(self, place: tuple[int, int]) -> None:
        moved_on = place[0] > self.state.segment
        self.state.segment, self.state.offset = place
        self._keep()
        if moved_on:
            self.spool.drop_segments(place[0])

    def _handle(self, kind: Any, record: Record) -> None:
        if kind == "session":
            self._begin_session(record)
        elif kind == "p":
            self._log_params(record["v"])
        elif kind == "t":
            tags = {clean_key(key): str(value)[:5000] for key, value in record["v"].items()}
            for key, value in tags.items():
                self.store.client.set_tag(self._run_id, key, value)
        elif kind in ("a", "i"):
            self._queue_upload(record)
        elif kind == "status":
            self._set_status(record["v"])
        elif kind == "end":
            self.state.ended = True

    def _begin_session(self, record: Record) -> None:
        state = self.state
        state.ended = False
        if record["resume"]:
            state.floor = {
                key: max(state.steps.get(key, -1), step)
                for key, step in {**state.steps, **self._steps_of_store()}.items()
            }
            run = self.store.resume_run(self._run_id)
            self.store.client.set_tag(run.info.run_id, WRITER_TAG, self.meta["local_id"])
            self._taken_over = False
        state.status = "RUNNING"
        state.session = record

    def _log_params(self, params: dict[str, Any]) -> None:
        fresh = self.store.log_params(self._run_id, params, self.state.params)
        self.state.params.update(fresh)
        if any(len(str(value)) > MAX_PARAM_LENGTH for value in params.values()):
            folder = self.spool.new_file_folder()
            write_text_atomic(folder / "params.json", json.dumps(params, indent=2))
            files = [str((folder / "params.json").relative_to(self.spool.folder))]
            self._queue_upload({"k": "a", "files": files, "to": "config", "slot": "config"})

    def _set_status(self, status: str) -> None:
        if self._taken_over:
            return
        with contextlib.suppress(Exception):  # a full artifact store must not keep a run RUNNING
            while self._upload_one():
                pass
        self.store.finish_run(self._run_id, status)
        self.state.status = status

    # -- uploads ---------------------------------------------------------------------------------

    def _queue_upload(self, record: Record) -> None:
        """Remember an upload; an older one for the same place that still waits is dropped."""
        slot = record.get("slot")
        if slot and self._taken_over:
            self._discard(record)
            return
        for waiting in [w for w in self.state.uploads if slot and w.get("slot") == slot]:
            self.state.uploads.remove(waiting)
            self._discard(waiting)
        self.state.uploads.append(record)

    def _upload_one(self) -> bool:
        if not self.state.uploads:
            return False
        record = self.state.uploads[0]
        try:
            if record["k"] == "i":
                self._upload_image(record)
            else:
                for path in self._files(record):
                    if path.is_file():
                        self.store.upload(self._run_id, path, record["to"])
        except TrackingError as error:  # a path we refuse: it will not get better
            log.warning("not uploaded: %s", error)
        except Exception:
            self.state.uploads.append(self.state.uploads.pop(0))  # let others have a try
            self.spool.write_state(self.state)
            raise
        self.state.uploads.remove(record)
        self._keep()
        self._discard(record)
        return True

    def _upload_image(self, record: Record) -> None:
        """Store a picture the way MLflow's time slider reads it, under a name that repeats."""
        import numpy as np
        from PIL import Image

        key, step, stamp = clean_key(record["key"]).replace("/", "~"), record["s"], record["t"]
        if step <= self.state.floor.get(f"image:{key}", -1):
            return
        files = self._files(record)
        if not files:
            return
        pixels = np.load(files[0], allow_pickle=False)
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run_id} {key} {step} {stamp}")
        stem = f"{key}+step+{step}+timestamp+{stamp}+{unique}"
        folder = self.spool.new_file_folder()
        small = Image.fromarray(pixels)
        for name, form in ((f"{stem}.png", "PNG"), (f"{stem}+compressed.webp", "WEBP")):
            if form == "WEBP":
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            data = io.BytesIO()
            small.save(data, form)
            (folder / name).write_bytes(data.getvalue())
            self.store.upload(self._run_id, folder / name, "images")
            (folder / name).unlink()
        folder.rmdir()
        if not self._images_tagged:
            self.store.client.set_tag(self._run_id, "mlflow.loggedImages", "True")
            self._images_tagged = True
        self.state.steps[f"image:{key}"] = max(step, self.state.steps.get(f"image:{key}", -1))

    def _files(self, record: Record) -> list[Path]:
        """Return the files a record names; those outside the spool's own are left alone."""
        inside = self.spool.files.resolve()
        paths = [self.spool.folder / name for name in record["files"]]
        return [path for path in paths if inside in path.resolve().parents]

    def _discard(self, record: Record) -> None:
        for path in self._files(record):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def is_alive(record: Record) -> bool:
    """Whether the process of a session record still lives (unknown, so yes, on other hosts)."""
    if not record or record["host"] != socket.gethostname():
        return bool(record)
    import psutil

    return bool(psutil.pid_exists(record["pid"]))
