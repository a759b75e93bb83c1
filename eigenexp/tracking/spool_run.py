"""The run of a spool in its store: created once, found again, made anew in a store that lost it."""

from __future__ import annotations

import logging
from typing import Any

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.storage.atomic import remove_orphans
from eigenexp.tracking.lease import Lease
from eigenexp.tracking.lineage import Lineage
from eigenexp.tracking.names import check_run_id
from eigenexp.tracking.spool import Spool, SpoolState
from eigenexp.tracking.store import LOCAL_ID_TAG, WRITER_TAG, Store
from eigenexp.tracking.texts import with_userinfo
from eigenexp.tracking.uploads import Uploads

__all__ = ["SpoolRun", "check_active"]

log = logging.getLogger(__name__)


class SpoolRun:
    """What a spool's run is in the store.

    Parameters
    ----------
    spool
        The run's spool; the caller holds its lock.
    store
        Where to; by default what the spool's ``meta.json`` says, with the user and password that
        ``MLFLOW_TRACKING_URI`` has for the same address.

    Attributes
    ----------
    state
        How far sending is.
    """

    def __init__(self, spool: Spool, store: Store | None = None) -> None:
        self.spool = spool
        self.meta = spool.meta
        self.store = store or Store(self.meta["root"], with_userinfo(self.meta["uri"]))
        self.state = spool.read_state()
        self._uploads = Uploads(spool, self.store)
        self._lease = Lease(self.store, self.meta["local_id"])
        self._lineage = Lineage(self.store)
        self._connected = False
        self._taken_over = False

    def _keep(self) -> None:
        self.state.error = None
        self.spool.write_state(self.state)

    def _connect(self) -> None:
        """Create the run, or find out what the store has of it already."""
        if self._connected:
            return
        state = self.state
        if state.run_id is None:
            state.run_id = self._existing_run() or self._create_run()
            self._keep()
        run = self._find_run(state.run_id)
        if run is None:
            self._begin_anew()
            self._connect()
            return
        run = self.store.restore_empty(run)
        check_active(run)
        if state.lost:
            state.floor, state.lost = self._steps_of_store(), False
            self._keep()
        state.params = {**state.params, **run.data.params}
        writer = run.data.tags.get(WRITER_TAG)
        # Another spool (another machine) has continued this run: what it sent must not be doubled,
        # nor its checkpoints and status be overwritten by older ones.
        self._taken_over = writer not in (None, self.meta["local_id"]) and bool(state.session)
        if self._taken_over:
            who = self._lease.holder(run.data.tags) or "another process"
            state.rival = f"{who} has resumed it: what is solved here counts no more"
            state.floor = self._steps_of_store()
            self._keep()
        folder = self.store.local_artifacts(state.run_id)
        if folder is not None:
            remove_orphans(folder, deep=True)
        self._connected = True

    def _find_run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return None

    def _begin_anew(self) -> None:
        """Forget what a lost store had: the run is made again and sent from the journal's start."""
        before = self.state
        found = self.store.adopt_run(self._local_id)  # raises where the store does not answer well
        if found is not None and found == before.run_id:
            raise TrackingError(f"{self.store.address}: has run {found}, and has it not")
        if found is not None:
            before.run_id = found
            self._keep()
            return
        log.warning(
            "run %s is no longer in %s: it is made anew there and sent from its beginning",
            before.run_id,
            self.store.address,
        )
        first = self.spool.first_segment
        self.state = SpoolState(
            creating=True,
            segment=first,
            # Of what the journal has no record of any more.
            uploads=before.uploads if first > 1 else [],
            former=before.former or before.run_id,
            rejected=before.rejected,
        )
        self._keep()

    @property
    def _local_id(self) -> str:
        """What a run made by this spool is found by."""
        return str(self.meta.get("run_id") or self.state.former or self.meta["local_id"])

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
            log.warning("run %s is not in %s: it begins there anew", wanted, self.store.address)
            return None

    def _create_run(self) -> str:
        meta, state = self.meta, self.state
        # A creation that was cut off, or sent again by the client, may have happened.
        found = self.store.adopt_run(self._local_id) if state.creating else None
        if found is not None:
            return found
        state.creating = True
        self.spool.write_state(state)
        tags = {**meta["tags"], LOCAL_ID_TAG: self._local_id, WRITER_TAG: meta["local_id"]}
        run_id = self.store.create_run(meta["experiment"], meta["run_name"], tags)
        return self.store.adopt_run(self._local_id) or run_id

    def _steps_of_store(self) -> dict[str, int]:
        return {**self.store.last_steps(self._run_id), **self._uploads.last_steps(self._run_id)}

    @property
    def _run_id(self) -> str:
        if self.state.run_id is None:
            raise TrackingError("sender: expected a run, got none yet")
        return self.state.run_id


def check_active(run: Any) -> None:
    """Raise where a run was deleted: it takes nothing until it is restored, or gone for good."""
    if run.info.lifecycle_stage != "active":
        raise TrackingError(
            f"run {run.info.run_id}: expected one in use, got one that was deleted in MLflow, or "
            "whose experiment was; what it has to tell waits until it is restored"
        )
