"""Sends what runs could not send while they lived."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.records import Record
from eigenexp.tracking.spool import Spool, find_spools
from eigenexp.tracking.store import local_store
from eigenexp.tracking.texts import one_line, printable

__all__ = ["SyncReport", "settle", "sync"]


@dataclass(frozen=True)
class SyncReport:
    """What became of one spool.

    Attributes
    ----------
    local_id
        The run's name in the spool.
    run_id
        The store's id, once it has one.
    points
        Metric points delivered in all.
    complete
        Whether nothing waits any more.
    problem
        Why not, in one line.
    refused
        Points and records that the store does not take, or that are damaged; not among ``points``.
    refused_path
        Where those are kept.
    """

    local_id: str
    run_id: str | None
    points: int
    complete: bool
    problem: str | None = None
    refused: int = 0
    refused_path: Path | None = None


def sync(root: str | os.PathLike[str] = "mlruns", run_id: str | None = None) -> list[SyncReport]:
    """Send every spool under ``root`` (or one run's); what is delivered is deleted there.

    Parameters
    ----------
    root
        The ``mlruns`` folder.
    run_id
        A run's id, here or in the store, or the start of it.

    Raises
    ------
    RunNotFoundError
        When ``run_id`` has no spool.
    """
    reports = []
    for spool in find_spools(root):
        try:
            meta, state = spool.meta, spool.read_state()
        except TrackingError as error:
            if run_id is None:
                reports.append(SyncReport(spool.folder.name, None, 0, False, str(error)))
            continue
        names = [name for name in (meta["local_id"], meta.get("run_id"), state.run_id) if name]
        if run_id is None or any(name.startswith(run_id) for name in names):
            reports.append(_sync_one(spool))
    if run_id is not None and not reports:
        raise RunNotFoundError(
            f"run {run_id!r}: expected something unsent under {root}, got nothing; "
            "it was sent already, or lies under another root"
        )
    return reports


def settle(root: str | os.PathLike[str]) -> list[SyncReport]:
    """Send what dead runs have left for the store under ``root``: none of them says RUNNING then.

    For whoever is about to show that store: servers are not asked.
    """
    uri = local_store(root).address
    reports = []
    for spool in find_spools(root):
        try:
            if spool.meta["uri"] != uri or _is_alive(spool.read_state().session):
                continue
        except TrackingError:
            continue
        reports.append(_sync_one(spool))
    return reports


def _sync_one(spool: Spool) -> SyncReport:
    from filelock import FileLock, Timeout

    local_id = spool.meta["local_id"]
    try:
        with FileLock(spool.folder / "lock", timeout=0):
            return _deliver(spool)
    except Timeout:
        state = spool.read_state()
        problem = printable(state.error or "its own process is sending it")
        return SyncReport(local_id, state.run_id, state.points, False, problem, state.rejected)
    except OSError as error:
        problem = f"{spool.folder} cannot be written: {error.strerror or one_line(error)}"
        return SyncReport(local_id, None, 0, False, printable(problem))


def _deliver(spool: Spool) -> SyncReport:
    local_id = spool.meta["local_id"]
    problem = None
    try:
        sender = Sender(spool)
    except (TrackingError, OSError, ValueError) as error:
        return SyncReport(local_id, None, 0, False, one_line(error))
    try:
        while sender.step():
            pass
        if sender.state.ended or not _is_alive(sender.state.session):
            sender.state.ended = True
            sender.mark_dead()  # unless it told how it ended
    except Exception as error:
        problem = one_line(error)
        sender.fail(error)
    state = sender.state
    complete = problem is None and sender.is_drained
    if complete and state.ended:
        try:
            sender.finish()
        except Exception as error:
            complete, problem = False, one_line(error)
    kept = spool.refused_path if state.rejected else None
    return SyncReport(local_id, state.run_id, state.points, complete, problem, state.rejected, kept)


def _is_alive(record: Record) -> bool:
    """Whether the process of a session record still lives (unknown, so yes, on other hosts)."""
    if not record or record["host"] != socket.gethostname():
        return bool(record)
    import psutil

    return bool(psutil.pid_exists(record["pid"]))
