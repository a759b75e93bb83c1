"""A Lightning logger for MLflow that never slows or stops a solve.

Every call appends to the run's spool on disk (about 20 µs); :mod:`eigenexp.tracking.sender`, a
process of its own, does the rest. A store that is slow, down or full costs the solve nothing; what
could not be sent is sent later by :func:`eigenexp.tracking.sync`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

import eigenexp
from eigenexp.checkpoints import metadata_path
from eigenexp.errors import TrackingError
from eigenexp.provenance import plain
from eigenexp.tracking.files import safe_relative, snapshot
from eigenexp.tracking.spool import Record, Spool, find_spools, session_record
from eigenexp.tracking.store import QUIET_ENVIRONMENT, STATUSES, Store, check_run_id

__all__ = ["MLflowLogger"]

log = logging.getLogger(__name__)

_STATUS = {
    "success": "FINISHED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "aborted": "KILLED",
    "interrupted": "KILLED",
    "killed": "KILLED",
}
_HELD_BACK = 10_000


class MLflowLogger(Logger):
    """Log metrics, parameters, pictures and files to an MLflow run.

    Parameters
    ----------
    experiment_name
        MLflow's experiment; created when missing.
    run_name
        Shown in MLflow; ``None`` lets MLflow invent one.
    run_id
        Continue this run: it is RUNNING again, ``eigenexp.resume_count`` counts up, steps it has
        are not logged twice, and parameters that changed become ``drift.<name>`` tags.
    root
        The project's ``mlruns`` folder, for the SQLite store and the spool.
    tracking_uri
        A tracking server; ``None`` for ``MLFLOW_TRACKING_URI``, else SQLite under ``root``.
    tags
        Tags of a new run.
    start_timeout
        Seconds that asking for :attr:`version` waits for the store to name the run. After that the
        run goes by a provisional ``offline-…`` id, and the store gets it when it is back.
    drain_timeout
        Seconds :meth:`finalize` and :meth:`close` wait for a store that is making progress.

    Raises
    ------
    TrackingError
        When ``root`` cannot be written or ``tracking_uri`` cannot be used.
    """

    log_pictures_by_key = True
    """``log_image(key, pixels, step)`` is the signature here."""

    def __init__(
        self,
        experiment_name: str = "eigenexp",
        run_name: str | None = None,
        run_id: str | None = None,
        root: str | os.PathLike[str] = "mlruns",
        tracking_uri: str | None = None,
        tags: Mapping[str, Any] | None = None,
        start_timeout: float = 30.0,
        drain_timeout: float = 30.0,
    ) -> None:
        super().__init__()
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._run_id = None if run_id is None else check_run_id(run_id)
        self._resume = run_id is not None
        self._store = Store(root, tracking_uri)
        self._tags = {str(key): str(value) for key, value in (tags or {}).items()}
        self._start_timeout = start_timeout
        self._drain_timeout = drain_timeout
        self._spool: Spool | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held_back: deque[Record] = deque(maxlen=_HELD_BACK)
        self._warned = False
        self._status = "RUNNING"
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._start()

    # -- Lightning's words -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str | None:
        """The run's id; provisional (``offline-…``) when the store does not answer in time."""
        if self._run_id is None and self._spool is not None:
            self._run_id = self._await_run_id(self._spool)
        return self._run_id

    run_id = version

    @property
    def save_dir(self) -> str:
        """The ``mlruns`` folder."""
        return str(self._store.root)

    @property
    def root_dir(self) -> str:
        """The ``mlruns`` folder."""
        return str(self._store.root)

    @property
    def tracking_uri(self) -> str:
        """Where the run is kept."""
        return self._store.uri

    @property
    def is_offline(self) -> bool:
        """Whether the run goes by a provisional id."""
        return (self.version or "").startswith("offline-")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one point a metric; never raises for the store's sake."""
        self._append(
            {
                "k": "m",
                "t": time.time_ns() // 1_000_000,
                "s": 0 if step is None else int(step),
                "v": {key: _number(value) for key, value in metrics.items()},
            }
        )

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Log parameters, nested ones under dotted names."""
        values = vars(params) if isinstance(params, Namespace) else params
        self._append({"k": "p", "v": dict(_flatten(plain(values)))})

    @rank_zero_only
    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; unlike parameters they may change."""
        self._append({"k": "t", "v": {str(key): str(value) for key, value in tags.items()}})

    @rank_zero_only
    def log_image(self, key: str, image: Any, step: int | None = None) -> None:
        """Queue a picture for MLflow's time slider.

        Parameters
        ----------
        key
            Name of the series.
        image
            ``(H, W)`` or ``(H, W, 3)`` uint8 array.
        step
            Place on the slider.
        """
        import numpy as np

        pixels = np.ascontiguousarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise TrackingError(
                "log_image: expected a uint8 array (H, W) or (H, W, 3), got "
                f"{pixels.dtype} {pixels.shape}; scale to 0…255 first"
            )

        def keep(folder: Path) -> list[Path]:
            np.save(folder / "picture.npy", pixels, allow_pickle=False)
            return [folder / "picture.npy"]

        facts = {"t": time.time_ns() // 1_000_000, "s": 0 if step is None else int(step)}
        self._queue({"k": "i", "key": key, **facts}, keep)

    @rank_zero_only
    def log_artifact(
        self, path: str | os.PathLike[str], artifact_path: str = "", slot: str | None = None
    ) -> None:
        """Queue a file for upload, as it is now; one of the same name there is replaced.

        Parameters
        ----------
        path
            The file.
        artifact_path
            Folder in the run's artifacts.
        slot
            Files of one slot supersede each other: of several that wait only the newest is sent.

        Raises
        ------
        TrackingError
            When ``artifact_path`` is absolute or climbs out.
        """
        source = Path(path)
        self._queue_files([(source, source.name)], artifact_path, slot)

    @rank_zero_only
    def log_checkpoint_files(self, path: str | os.PathLike[str], artifact_path: str) -> None:
        """Queue a checkpoint and its ``metadata.json`` under fixed names; a newer one supersedes.

        ``log_checkpoint_files("…/last.ckpt", "checkpoints/last")``.
        """
        source = Path(path)
        files = [(source, source.name)]
        if metadata_path(source).is_file():
            files.append((metadata_path(source), "metadata.json"))
        self._queue_files(files, artifact_path, slot=artifact_path)

    @rank_zero_only
    def save(self) -> None:
        """Force the spool to disk and see that its sender lives; call before a checkpoint."""
        if self._spool is None:
            return
        try:
            self._flush_held_back()
            self._spool.sync()
        except OSError as error:
            self._tell_once(error)
        if self._process is None or self._process.poll() is not None:
            self._launch(self._spool)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Set the run's status and wait, within bounds, until the store has everything.

        Parameters
        ----------
        status
            Lightning's ``"success"``, ``"failed"``, or MLflow's own words.
        """
        self.set_status(status)
        self.save()
        self.wait(self._drain_timeout)

    @rank_zero_only
    def set_status(self, status: str) -> None:
        """Queue the run's status without waiting."""
        mlflow_status = _STATUS.get(status.lower(), status.upper())
        if mlflow_status not in STATUSES:
            mlflow_status = "FAILED"
        if mlflow_status != self._status:
            self._status = mlflow_status
            self._append({"k": "status", "v": mlflow_status})

    def wait(self, timeout: float) -> bool:
        """Wait until the store has everything; give up early when it does not answer.

        Returns
        -------
        bool
            Whether it has. What it has not stays in the spool.
        """
        spool = self._spool
        if spool is None:
            return True
        end = time.monotonic() + timeout
        troubled_since = None
        while True:
            if not spool.folder.exists():
                return True
            state = spool.read_state()
            if (state.segment, state.offset) >= spool.position and not state.uploads:
                return True
            now = time.monotonic()
            troubled_since = (troubled_since or now) if state.error else None
            given_up = troubled_since is not None and now - troubled_since > 3.0
            if now > end or given_up:
                log.warning(
                    "the tracking store does not have everything of run %s yet (%s); it stays "
                    "in %s, `eigenexp sync` sends it",
                    self._run_id,
                    state.error or f"not done after {timeout:.0f} s",
                    spool.folder,
                )
                return False
            time.sleep(0.02)

    @rank_zero_only
    def close(self, timeout: float | None = None) -> bool:
        """End the run's tracking: wait within bounds, then let the sender finish by itself.

        Returns
        -------
        bool
            Whether the store has everything.
        """
        atexit.unregister(self._at_exit)
        if self._spool is None:
            return True
        if self._status == "RUNNING":
            self.set_status("success")
        self._append({"k": "end"})
        done = self.wait(self._drain_timeout if timeout is None else timeout)
        if done and self._process is not None:
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                log.debug("sender %s goes on by itself", self._process.pid)
        self._spool.close()
        self._spool = None
        return done

    # -- the spool and its sender ------------------------------------------------------------------

    def _start(self) -> None:
        spool = self._find_spool() if self._resume else None
        if spool is None:
            meta = {
                "root": str(self._store.root),
                "uri": self._store.uri,
                "experiment": self._experiment_name,
                "run_name": self._run_name,
                "tags": self._tags,
                "run_id": self._run_id,
            }
            spool = Spool.create(self._store.root, meta)
        self._spool = spool
        self._append(session_record(resume=self._resume, run_id=self._run_id))
        if self._resume and self._tags:
            self.log_tags(self._tags)
        self._launch(spool)
        atexit.register(self._at_exit)

    def _find_spool(self) -> Spool | None:
        for spool in find_spools(self._store.root):
            meta = spool.meta
            if meta["uri"] != self._store.uri:
                continue
            if self._run_id in (meta["local_id"], meta.get("run_id"), spool.read_state().run_id):
                return spool
        return None

    def _launch(self, spool: Spool) -> None:
        environ = {**QUIET_ENVIRONMENT, **os.environ}
        home = str(Path(eigenexp.__file__).parent.parent)
        environ["PYTHONPATH"] = os.pathsep.join(
            part for part in (home, environ.get("PYTHONPATH")) if part
        )
        try:
            with (spool.folder / "sender.log").open("ab") as output:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "eigenexp.tracking.sender",
                        str(spool.folder),
                        str(os.getpid()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environ,
                    start_new_session=True,  # Ctrl-C is for the solve alone
                )
        except OSError as error:
            self._tell_once(error)

    def _await_run_id(self, spool: Spool) -> str:
        end = time.monotonic() + self._start_timeout
        local_id = str(spool.meta["local_id"])
        while time.monotonic() < end:
            if not spool.folder.exists():
                break
            state = spool.read_state()
            if state.run_id is not None:
                return check_run_id(state.run_id)
            if state.error or (self._process is not None and self._process.poll() is not None):
                log.warning(
                    "the tracking store %s does not answer (%s); the run goes on as %s and is "
                    "sent later",
                    self._store.uri,
                    state.error or "the sender stopped",
                    local_id,
                )
                break
            time.sleep(0.02)
        return local_id

    def _append(self, record: Record) -> None:
        if self._spool is None:
            return
        try:
            if self._held_back:
                self._flush_held_back()
            self._spool.append(record)
        except OSError as error:
            self._held_back.append(record)
            self._tell_once(error)

    def _flush_held_back(self) -> None:
        while self._held_back and self._spool is not None:
            self._spool.append(self._held_back[0])
            self._held_back.popleft()

    def _queue_files(
        self, files: list[tuple[Path, str]], artifact_path: str, slot: str | None
    ) -> None:
        if artifact_path:
            safe_relative(artifact_path)
        for _, name in files:
            safe_relative(name)

        def keep(folder: Path) -> list[Path]:
            return [snapshot(source, folder, name) for source, name in files]

        self._queue({"k": "a", "to": artifact_path, "slot": slot}, keep)

    def _queue(self, record: Record, keep: Any) -> None:
        """Take snapshots and append the record; a full disk loses this upload, not the solve."""
        if self._spool is None:
            return
        try:
            kept = keep(self._spool.new_file_folder())
        except OSError as error:
            self._tell_once(error)
            return
        names = [str(path.relative_to(self._spool.folder)) for path in kept]
        self._append({**record, "files": names})

    def _tell_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "tracking: cannot write the spool (%s); the solve goes on, the newest %d records "
                "are held in memory until there is room",
                error.strerror or error,
                _HELD_BACK,
            )

    def _at_exit(self) -> None:
        """Let the sender finish by itself when a script ends without ``close``."""
        if self._spool is not None:
            self._append({"k": "end"})
            self._spool.close()
            self._spool = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process; a copy in another one appends to the spool."""
        state = self.__dict__.copy()
        state["_process"] = None
        if self._spool is not None:
            state["_spool"] = Spool(self._spool.folder)
        return state


def _number(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            leaf
            for key, entry in value.items()
            for leaf in _flatten(entry, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix or "value", value)] if value != {} else []
