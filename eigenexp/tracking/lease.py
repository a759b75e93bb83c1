"""Who works on a run of a server: a tag that senders renew, so that two machines see each other.

A run's folder has a lock, which other machines do not see. Nobody is kept from working: a machine
that is asleep or cut off cannot be told from one that is dead. Whoever comes second and whoever was
there first are both told, within a minute; from then on the points of the last that resumed count.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from eigenexp.tracking.store import LEASE_TAG, WRITER_TAG, Store
from eigenexp.tracking.texts import printable

__all__ = ["Lease"]

RENEW_SECONDS = 60.0
LEASE_SECONDS = 180.0


class Lease:
    """One spool's claim to a run.

    Parameters
    ----------
    store
        Where the run is.
    writer
        The spool's local id.
    """

    def __init__(self, store: Store, writer: str) -> None:
        self._store = store
        self._writer = writer
        self._renewed = 0.0

    def holder(self, tags: Mapping[str, str]) -> str | None:
        """Return who else works on a run with these tags, in words; ``None`` where nobody does."""
        facts = _parse(tags.get(LEASE_TAG, ""))
        if facts.get("writer") in (None, self._writer):
            return None
        until = facts.get("until")
        if not isinstance(until, (int, float)) or until < time.time():
            return None
        since = time.strftime("%H:%M:%S", time.localtime(until - LEASE_SECONDS))
        return printable(f"{facts.get('host')} (process {facts.get('pid')}, seen at {since})")

    def take(self, run_id: str) -> None:
        """Say that this spool's process works on the run from now on."""
        self._renewed = time.monotonic()
        facts = {
            "writer": self._writer,
            "host": socket.gethostname(),
            "pid": os.getppid(),
            "until": time.time() + LEASE_SECONDS,
        }
        self._store.client.set_tag(run_id, LEASE_TAG, json.dumps(facts))

    def renew(self, run_id: str) -> bool:
        """Renew the claim when it is time to; return whether the run is still this spool's."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return True
        writer = self._store.client.get_run(run_id).data.tags.get(WRITER_TAG)
        self._renewed = time.monotonic()
        if writer not in (None, self._writer):
            return False
        self.take(run_id)
        return True

    def end(self, run_id: str) -> None:
        """Say that nobody works on the run any more."""
        self._store.client.set_tag(run_id, LEASE_TAG, json.dumps({}))


def _parse(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
