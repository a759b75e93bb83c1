"""Delivers one spool to the tracking store: in order, repeatable, nothing twice."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from eigenexp.errors import TrackingError
from eigenexp.storage.atomic import write_atomic
from eigenexp.tracking.dead_runs import came_to_nothing, unsent_checkpoint
from eigenexp.tracking.lineage import CHECKPOINT_PLACE
from eigenexp.tracking.names import clean_key
from eigenexp.tracking.params import MAX_PARAM_LENGTH, log_params
from eigenexp.tracking.records import Record, is_sound
from eigenexp.tracking.spool_run import SpoolRun, check_active
from eigenexp.tracking.store import WRITER_TAG
from eigenexp.tracking.texts import one_line
from eigenexp.tracking.uploads import image_place

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

__all__ = ["Sender"]

log = logging.getLogger(__name__)

BATCH_POINTS = 1000
_PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class Sender(SpoolRun):
    """Delivers one spool; every step may fail and be repeated, nothing is delivered twice.

    Parameters
    ----------
    spool
        The run's spool; the caller holds its lock.
    store
        Where to; by default what the spool's ``meta.json`` says, with the user and password that
        ``MLFLOW_TRACKING_URI`` has for the same address.
    """

    # -- steps -----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Send one batch and one upload; return whether there was anything to do.

        Raises
        ------
        Exception
            Whatever the store raises; the same step may be tried again later.
        """
        try:
            if self.store.was_replaced:
                raise TrackingError(f"{self.store.address}: another file lies there than before")
            self._connect()
            self._look_for_rival()
            moved = self._send_batch()
            return self._upload_one() or moved
        except Exception:
            # What was noted for points that did not arrive must be forgotten, and the store be
            # asked again what it has: it may be another one when it is back.
            self.state = self.spool.read_state()
            self._connected = False
            raise

    def _look_for_rival(self) -> None:
        """Renew the claim to a server's run; note who has resumed it elsewhere in the meantime."""
        if not self.store.is_server or self._taken_over or self.state.status != "RUNNING":
            return
        if not self._lease.renew(self._run_id):
            self._connected = False
            self._connect()  # tells, and sees to it that nothing is doubled

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
        """Set FAILED on a run whose process is gone without a word.

        What it could not hand over any more is sent first: its last checkpoint. A run that came to
        nothing, of a process that died before it had begun, is deleted.
        """
        state = self.state
        if self._taken_over or state.status not in (None, "RUNNING") or not state.run_id:
            return
        if not (state.points or state.rejected) and came_to_nothing(
            self.spool, self.store, state.run_id
        ):
            log.warning("run %s came to nothing and is deleted", state.run_id)
            self.store.delete_empty(state.run_id)
            state.status, state.ended = "FAILED", True
            self.spool.remove()
            return
        self._send_last_checkpoint()
        self.store.finish_run(state.run_id, "FAILED")
        if self.store.is_server:
            self._lease.end(state.run_id)
        state.status = "FAILED"
        self._keep()

    def _send_last_checkpoint(self) -> None:
        with contextlib.suppress(Exception):  # a full artifact store must not keep a run RUNNING
            record = unsent_checkpoint(self.spool, self.store, self._run_id)
            if record is not None:
                self._queue_upload(record)
                self._keep()
            while self._upload_one():
                pass

    def finish(self) -> None:
        """Leave nothing of a run that has ended and of which everything was sent."""
        self.mark_dead()  # unless it told how it ended
        if self.state.creating and self.state.run_id is not None:
            self.store.adopt_run(self._local_id, keep=self.state.run_id)
        self.spool.remove()

    # -- journal ---------------------------------------------------------------------------------

    def _send_batch(self) -> bool:
        """Send records up to a thousand points, in order; metrics of many records in one call."""
        state = self.state
        points: list[tuple[str, float, int, int]] = []
        place, moved = None, False
        for record, segment, offset in self.spool.read(state, 4 * BATCH_POINTS):
            kind = record.get("k")
            if kind == "m" and is_sound(record):
                if points and len(points) + len(record["v"]) > BATCH_POINTS:
                    break
                points += self._fresh_points(record)
                place, moved = (segment, offset), True
                continue
            moved = True
            if place:
                self._send_points(points, place)
                points, place = [], None
            self._deal_with(record)
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
        refused = 0
        for start in range(0, len(metrics), BATCH_POINTS):
            part = metrics[start : start + BATCH_POINTS]
            try:
                self.store.client.log_batch(self._run_id, metrics=part)
            except MlflowException as error:
                self._raise_unless_refused(error)
                refused += self._send_one_by_one(part)
        self.state.points += len(points) - refused
        self.state.rejected += refused
        self._advance(place)

    def _send_one_by_one(self, metrics: list[Any]) -> int:
        """Deliver the points a server takes; return how many it refuses."""
        from mlflow.exceptions import MlflowException

        refused = 0
        for metric in metrics:
            try:
                self.store.client.log_batch(self._run_id, metrics=[metric])
            except MlflowException as error:
                self._raise_unless_refused(error)
                refused += 1
                point = {"k": "m", "t": metric.timestamp, "s": metric.step}
                self._set_aside({**point, "v": {metric.key: metric.value}}, one_line(error))
        return refused

    def _raise_unless_refused(self, error: MlflowException) -> None:
        """Raise what may pass; MLflow calls a deleted run by the same code as a bad value.

        So may a refusal that is not MLflow's own: a gateway's page, to which MLflow's client gives
        the code of its HTTP status.
        """
        from mlflow.exceptions import RestException

        is_own = isinstance(error, RestException) or error.error_code != "BAD_REQUEST"
        if error.error_code not in _PERMANENT or not is_own:
            raise error
        check_active(self.store.client.get_run(self._run_id))

    def _set_aside(self, record: Record, reason: str) -> None:
        log.warning("%s: a record is set aside: %s", self.meta["local_id"], reason)
        self.spool.set_aside(record, reason)

    def _advance(self, place: tuple[int, int]) -> None:
        moved_on = place[0] > self.state.segment
        self.state.segment, self.state.offset = place
        self._keep()
        if moved_on:
            self.spool.drop_segments(place[0])

    def _deal_with(self, record: Record) -> None:
        """Do what a record says; one that nobody can use is set aside and the next ones go on."""
        from mlflow.exceptions import MlflowException

        reason = "damaged, or of another version"
        if is_sound(record):
            try:
                self._handle(record["k"], record)
                return
            except MlflowException as error:
                self._raise_unless_refused(error)
                reason = one_line(error)
        self.state.rejected += 1
        self._set_aside(record, reason)

    def _handle(self, kind: str, record: Record) -> None:
        if kind == "session":
            self._begin_session(record)
        elif kind == "p":
            self._log_params(record["v"])
        elif kind == "t":
            tags = {clean_key(key): _text(value)[:5000] for key, value in record["v"].items()}
            for key, value in tags.items():
                self.store.client.set_tag(self._run_id, key, value)
        elif kind in ("a", "i"):
            self._queue_upload(record)
        elif kind in ("d", "l"):
            self._lineage.send(self._run_id, record)
        elif kind == "status":
            self._set_status(record["v"])
        elif kind == "end":
            self.state.ended = True

    def _begin_session(self, record: Record) -> None:
        state = self.state
        state.ended, state.rival = False, None
        if record["resume"]:
            state.floor = {
                key: max(state.steps.get(key, -1), step)
                for key, step in {**state.steps, **self._steps_of_store()}.items()
            }
            run = self.store.resume_run(self._run_id)
            holder = self._lease.holder(run.data.tags)
            if holder is not None:
                state.rival = f"{holder} seems to be at work on it still"
            self.store.client.set_tag(run.info.run_id, WRITER_TAG, self.meta["local_id"])
            self._taken_over = False
        if self.store.is_server:
            self._lease.take(self._run_id)
        state.status = "RUNNING"
        state.session = record

    def _log_params(self, params: dict[str, Any]) -> None:
        params = {key: _text(value) for key, value in params.items()}
        fresh = log_params(self.store, self._run_id, params, self.state.params)
        self.state.params.update(fresh)
        if any(len(value) > MAX_PARAM_LENGTH for value in params.values()):
            folder = self.spool.new_file_folder()
            text = json.dumps(params, indent=2)
            write_atomic(folder / "params.json", text.encode(), sync=False)
            files = [str((folder / "params.json").relative_to(self.spool.folder))]
            self._queue_upload({"k": "a", "files": files, "to": "config", "slot": "config"})

    def _set_status(self, status: str) -> None:
        if self._taken_over:
            return
        with contextlib.suppress(Exception):  # a full artifact store must not keep a run RUNNING
            while self._upload_one():
                pass
        self.store.finish_run(self._run_id, status)
        if self.store.is_server:
            self._lease.end(self._run_id)
        self.state.status = status

    # -- uploads ---------------------------------------------------------------------------------

    def _queue_upload(self, record: Record) -> None:
        """Remember an upload; an older one for the same place that still waits is dropped."""
        slot = record.get("slot")
        if slot and self._taken_over:
            self._uploads.discard(record)
            return
        # Read again after the store was lost: delivered then, and never to displace what waits.
        again = self.state.former is not None and not self._uploads.is_there(record)
        if again or record in self.state.uploads:
            return
        for waiting in [w for w in self.state.uploads if slot and w.get("slot") == slot]:
            self.state.uploads.remove(waiting)
            self._uploads.discard(waiting)
        self.state.uploads.append(record)

    def _upload_one(self) -> bool:
        if not self.state.uploads:
            return False
        record = self.state.uploads[0]
        state = self.state
        try:
            is_old = record["k"] == "i" and record["s"] <= state.floor.get(image_place(record), -1)
            if not is_old:
                self._uploads.send(self._run_id, record)
                if record.get("to") == CHECKPOINT_PLACE:
                    self._lineage.update_checkpoint(self._run_id)
        except TrackingError as error:  # it will not get better
            self.state.rejected += 1
            self._set_aside(record, one_line(error))
        except Exception:
            self.state.uploads.append(self.state.uploads.pop(0))  # let others have a try
            self.spool.write_state(self.state)
            raise
        else:
            if record["k"] == "i":
                place = image_place(record)
                state.steps[place] = max(record["s"], state.steps.get(place, -1))
        self.state.uploads.remove(record)
        self._keep()
        self._uploads.discard(record)
        return True


def _text(value: Any) -> str:
    """Return a value as a text that can be stored: half a surrogate pair cannot."""
    return str(value).encode("utf-8", "replace").decode()
