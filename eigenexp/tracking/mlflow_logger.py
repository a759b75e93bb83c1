"""A Lightning logger for MLflow that never slows or stops a solve.

Every call appends to the run's spool on disk (about 20 µs); :mod:`eigenexp.tracking.sender`, a
process of its own, does the rest. A store that is slow, down or full costs the solve nothing; what
could not be sent is sent later by :func:`eigenexp.tracking.sync`.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from eigenexp.checkpoints.files import metadata_path
from eigenexp.distributed.ranks import first_rank_only, is_first_rank
from eigenexp.errors import TrackingError
from eigenexp.storage.plain import leaves, plain
from eigenexp.tracking.lineage import dataset_record, model_record
from eigenexp.tracking.names import STATUSES, check_experiment_name, check_run_id
from eigenexp.tracking.outbox import Outbox
from eigenexp.tracking.records import Record
from eigenexp.tracking.store import Store

__all__ = ["MLflowLogger"]

_LOCAL_PATIENCE = 4
_STATUS = {
    "success": "FINISHED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "aborted": "KILLED",
    "interrupted": "KILLED",
    "killed": "KILLED",
}


class MLflowLogger(Logger):
    """Log metrics, parameters, pictures and files to an MLflow run.

    Parameters
    ----------
    experiment_name
        MLflow's experiment; created when missing.
    run_name
        Shown in MLflow; ``None`` lets MLflow invent one.
    run_id
        Continue this run: with the first record it is RUNNING again,
        ``eigenexp.resume_count`` counts up, steps it has are not logged twice, and parameters that
        changed become ``drift.<name>`` tags.
    root
        The project's ``mlruns`` folder, for the SQLite store and the spool.
    tracking_uri
        A tracking server; ``None`` for ``MLFLOW_TRACKING_URI``, else SQLite under ``root``.
    tags
        Tags of a new run.
    start_timeout
        Seconds that asking for :attr:`version` waits for the store to name the run. After that the
        run goes by a provisional ``offline-…`` id, and the store gets it when it is back. A store
        on this machine's disk is given four times as long.
    drain_timeout
        Seconds :meth:`finalize` and :meth:`close` wait for a store that is making progress.

    Raises
    ------
    TrackingError
        When ``root`` cannot be written, or it, ``tracking_uri`` or ``experiment_name`` cannot be
        used.
    """

    shows_few_metrics = True
    """Of many pairs the curves of those next to the ends come; ``convergence.csv`` has them all."""

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
        self._experiment_name = check_experiment_name(experiment_name)
        self._run_id = None if run_id is None else check_run_id(run_id)
        self._store = Store(root, tracking_uri)
        self._tags = {str(key): str(value) for key, value in (tags or {}).items()}
        self._start_timeout = start_timeout
        self._drain_timeout = drain_timeout
        self._outbox: Outbox | None = None
        self._status = "RUNNING"
        self._run_name = run_name
        self._speaks = is_first_rank()
        if self._run_id is None:
            self._open()

    def _open(self) -> Outbox | None:
        """Return what takes records; a continued run's is made by its first record.

        So a run that is not continued after all, because it does not fit, stays as it was.
        """
        if self._outbox is None and self._speaks:
            self._outbox = Outbox(
                self._store,
                experiment=self._experiment_name,
                run_name=self._run_name,
                tags=self._tags,
                run_id=self._run_id,
            )
        return self._outbox

    # -- Lightning's words -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str | None:
        """The run's id; provisional (``offline-…``) when the store does not answer in time."""
        if self._run_id is None and self._outbox is not None:
            # A store on this machine answers as soon as its sender has its turn.
            patience = 1 if self._store.is_server else _LOCAL_PATIENCE
            self._run_id = self._outbox.await_run_id(patience * self._start_timeout)
        return self._run_id

    run_id = version

    @property
    def sender(self) -> subprocess.Popen[bytes] | None:
        """The process that sends, where this logger started one."""
        return None if self._outbox is None else self._outbox.process

    @property
    def save_dir(self) -> str:
        """The ``mlruns`` folder."""
        return str(self._store.root)

    @property
    def root_dir(self) -> str:
        """The ``mlruns`` folder."""
        return str(self._store.root)

    @property
    def store(self) -> Store:
        """Where the run is kept."""
        return self._store

    @property
    def tracking_uri(self) -> str:
        """Address of where the run is kept, without user and password."""
        return self._store.address

    @property
    def is_offline(self) -> bool:
        """Whether the run goes by a provisional id."""
        return (self.version or "").startswith("offline-")

    @first_rank_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one point a metric; never raises for the store's sake."""
        self._send(
            {
                "k": "m",
                "t": time.time_ns() // 1_000_000,
                "s": 0 if step is None else int(step),
                "v": {key: _number(value) for key, value in metrics.items()},
            }
        )

    @first_rank_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Log parameters, nested ones under dotted names."""
        values = vars(params) if isinstance(params, Namespace) else params
        self._send({"k": "p", "v": dict(leaves(plain(values)))})

    @first_rank_only
    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; unlike parameters they may change."""
        self._send({"k": "t", "v": {str(key): str(value) for key, value in tags.items()}})

    def log_image(self, key: str, image: Any, step: int | None = None) -> None:
        """Queue one picture; see :meth:`log_pictures`."""
        self.log_pictures({key: image}, step)

    @first_rank_only
    def log_pictures(self, pictures: Mapping[str, Any], step: int | None = None) -> None:
        """Queue pictures for MLflow's time slider; several wait for the disk once.

        Parameters
        ----------
        pictures
            ``(H, W)`` or ``(H, W, 3)`` uint8 arrays, each under the name of its series.
        step
            Place on the slider.
        """
        import numpy as np

        arrays = {key: np.ascontiguousarray(image) for key, image in pictures.items()}
        for pixels in arrays.values():
            if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
                raise TrackingError(
                    "log_image: expected a uint8 array (H, W) or (H, W, 3), got "
                    f"{pixels.dtype} {pixels.shape}; scale to 0…255 first"
                )
        facts = {"t": time.time_ns() // 1_000_000, "s": 0 if step is None else int(step)}

        def keep(folder: Path) -> list[tuple[Record, list[Path]]]:
            made: list[tuple[Record, list[Path]]] = []
            for i, (key, pixels) in enumerate(arrays.items()):
                path = folder / f"picture-{i}.npy"
                np.save(path, pixels, allow_pickle=False)
                made.append(({"k": "i", "key": key, **facts}, [path]))
            return made

        outbox = self._open()
        if outbox is not None:
            outbox.append_made(keep)

    @first_rank_only
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
        self._send_files([(source, source.name)], artifact_path, slot)

    @first_rank_only
    def log_checkpoint_files(self, path: str | os.PathLike[str], artifact_path: str) -> None:
        """Queue a checkpoint and its ``metadata.json`` under fixed names; a newer one supersedes.

        ``log_checkpoint_files("…/last.ckpt", "checkpoints/last")``.
        """
        source = Path(path)
        files = [(source, source.name)]
        if metadata_path(source).is_file():
            files.append((metadata_path(source), "metadata.json"))
        self._send_files(files, artifact_path, slot=artifact_path)

    @first_rank_only
    def log_dataset(
        self, name: str, digest: str, source: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Tell that the run reads a picture, or a folder of them: a dataset input of MLflow's.

        Parameters
        ----------
        name, digest
            What tells it from others; a hash.
        source
            Where it was read.
        facts
            Plain values, shown as its profile.
        """
        self._send(dataset_record(name, digest, source, plain(dict(facts or {}))))

    @first_rank_only
    def log_model_input(self, name: str, facts: Mapping[str, Any], key: str) -> None:
        """Tell which model the run tests; the same ``key`` is the same model in other runs."""
        self._send(model_record("input", name, plain(dict(facts)), key))

    @first_rank_only
    def log_result(self, name: str, facts: Mapping[str, Any]) -> None:
        """Tell of the run's result, which is ranked among others by the run's metrics."""
        self._send(model_record("result", name, plain(dict(facts))))

    @first_rank_only
    def save(self) -> None:
        """Force the spool to disk and see that its sender lives; call before a checkpoint."""
        if self._outbox is not None:
            self._outbox.sync()

    @first_rank_only
    def finalize(self, status: str) -> None:
        """Set the run's status and wait, within bounds, until the store has everything.

        Parameters
        ----------
        status
            Lightning's ``"success"``, ``"failed"``, or MLflow's own words. ``"success"`` leaves a
            status that was set before as it is: Lightning calls a run that was stopped a success.
        """
        if self._status == "RUNNING" or _STATUS.get(status.lower()) != "FINISHED":
            self.set_status(status)
        self.save()
        self.wait(self._drain_timeout)

    @first_rank_only
    def set_status(self, status: str) -> None:
        """Queue the run's status without waiting; one that was not continued keeps its own."""
        if self._outbox is None:
            return
        mlflow_status = _STATUS.get(status.lower(), status.upper())
        if mlflow_status not in STATUSES:
            mlflow_status = "FAILED"
        if mlflow_status != self._status:
            self._status = mlflow_status
            self._send({"k": "status", "v": mlflow_status})

    @first_rank_only
    def hurry(self, status: str, seconds: float) -> None:
        """Set the status and let all that follows wait ``seconds`` in all, and no longer."""
        self.set_status(status)
        self.limit(seconds)

    @first_rank_only
    def limit(self, seconds: float) -> None:
        """Let all that waits, now or later, wait ``seconds`` from now in all and no longer."""
        if self._outbox is not None:
            self._outbox.deadline = min(self._outbox.deadline, time.monotonic() + seconds)

    def wait(self, timeout: float) -> bool:
        """Wait until the store has everything; give up early when it does not answer.

        Returns
        -------
        bool
            Whether it has. What it has not stays in the spool.
        """
        return self._outbox is None or self._outbox.wait(timeout)

    @first_rank_only
    def close(self, timeout: float | None = None) -> bool:
        """End the run's tracking: wait within bounds, then let the sender finish by itself.

        Returns
        -------
        bool
            Whether the store has everything.
        """
        if self._outbox is None:
            return True
        if self._status == "RUNNING":
            self.set_status("success")
        return self._outbox.close(self._drain_timeout if timeout is None else timeout)

    def _send(self, record: Record) -> None:
        outbox = self._open()
        if outbox is not None:
            outbox.append(record)

    def _send_files(
        self, files: list[tuple[Path, str]], artifact_path: str, slot: str | None
    ) -> None:
        outbox = self._open()
        if outbox is not None:
            outbox.append_files({"k": "a", "slot": slot}, files, artifact_path)


def _number(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.nan
