"""The MLflow store of a project: an SQLite file under ``mlruns/`` or a tracking server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.storage.atomic import copy_atomic
from eigenexp.tracking.database import (
    artifact_folder,
    build_database,
    is_database,
    local_path,
    relocate,
    set_aside,
)
from eigenexp.tracking.environment import quiet_mlflow, scrub_mlflow
from eigenexp.tracking.files import safe_relative
from eigenexp.tracking.names import STATUSES, check_run_id, is_run_id, sqlite_uri
from eigenexp.tracking.texts import one_line, without_userinfo

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "EMPTY_TAG",
    "LEASE_TAG",
    "LOCAL_ID_TAG",
    "RESUME_COUNT_TAG",
    "WRITER_TAG",
    "Store",
    "local_store",
]

EMPTY_TAG = "eigenexp.came_to_nothing"

LEASE_TAG = "eigenexp.lease"
LOCAL_ID_TAG = "eigenexp.local_id"
RESUME_COUNT_TAG = "eigenexp.resume_count"
WRITER_TAG = "eigenexp.writer"

_LOCK_SECONDS = 120


def local_store(root: str | os.PathLike[str] = "mlruns") -> Store:
    """Return the SQLite store under ``root``, whatever the environment says."""
    return Store(root, sqlite_uri(root))


class Store:
    """Runs, parameters and artifacts; every call names its run, nothing is global.

    Parameters
    ----------
    root
        The project's ``mlruns`` folder: ``mlflow.db``, ``artifacts/``, ``spool/``.
    uri
        A tracking server or database; ``None`` for ``MLFLOW_TRACKING_URI``, and where that is not
        set for the SQLite file under ``root``.

    Attributes
    ----------
    uri
        The address as it was given, perhaps with a password in it: for MLflow's client alone.

    Raises
    ------
    TrackingError
        When the address, or a database under ``root``, is one MLflow cannot use.
    """

    def __init__(self, root: str | os.PathLike[str] = "mlruns", uri: str | None = None) -> None:
        self.root = Path(root).absolute()
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or self.sqlite_uri
        self._client: MlflowClient | None = None
        self._opened: tuple[int, int] | None = None
        self._folders: dict[str, Path | None] = {}
        scheme = urlsplit(self.uri).scheme
        if scheme in ("", "file"):
            raise TrackingError(
                f"tracking uri: expected http(s)://… or sqlite:///…, got {self.address!r}; "
                "MLflow no longer writes plain folders"
            )
        if self.is_local and any(character in str(self.root) for character in "?#%"):
            raise TrackingError(
                f"{self.root}: expected a folder name without '?', '#' or '%', which a database "
                "address cannot hold; choose another root"
            )

    @property
    def address(self) -> str:
        """Where runs are kept, without user and password: to save, send, show and compare."""
        return without_userinfo(self.uri)

    @property
    def sqlite_uri(self) -> str:
        """Address of the SQLite file under ``root``."""
        return sqlite_uri(self.root)

    @property
    def database(self) -> Path:
        """The SQLite file under ``root``."""
        return self.root / "mlflow.db"

    @property
    def is_local(self) -> bool:
        """Whether runs are kept in the SQLite file under ``root``."""
        return self.uri == self.sqlite_uri

    @property
    def is_server(self) -> bool:
        """Whether runs are kept behind HTTP."""
        return urlsplit(self.uri).scheme in ("http", "https")

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, on a store that exists.

        Raises
        ------
        TrackingError
            When the folder cannot be written or the database not be opened.
        """
        if self._client is None:
            quiet_mlflow()
            from mlflow import MlflowClient

            scrub_mlflow()
            if self.is_local:
                self._create_database()
                relocate(self.database)
                self._opened = _file_identity(self.database)
            try:
                self._client = MlflowClient(tracking_uri=self.uri)
            except Exception as error:
                raise TrackingError(
                    f"{self.address}: expected a tracking store, got {one_line(error)}"
                ) from error
        return self._client

    @property
    def was_replaced(self) -> bool:
        """Whether another database, or none, lies where this process opened one.

        MLflow keeps the old file open, and would write to it, for as long as the process lives.
        """
        return self._opened is not None and _file_identity(self.database) != self._opened

    def _create_database(self) -> None:
        """Make the SQLite file once, under a lock; what is no database there is set aside."""
        database = self.database
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if database.exists() and is_database(database):
                if not os.access(database, os.W_OK):
                    raise PermissionError(13, "a database that cannot be written")
                return
            with self.lock("mlflow.db"):
                if database.exists() and not is_database(database):
                    set_aside(database)
                if not database.exists():
                    build_database(database)
        except OSError as error:
            raise TrackingError(
                f"{self.root}: expected a folder that can be written, got "
                f"{error.strerror or one_line(error)}; choose another root"
            ) from error

    def lock(self, name: str) -> Any:
        """Return a lock between processes, for what is created once.

        Raises
        ------
        TrackingError
            On entering, when another process holds it for two minutes.
        """
        from filelock import FileLock

        return FileLock(self.root / f".{name}.lock", timeout=_LOCK_SECONDS)

    # -- runs ------------------------------------------------------------------------------------

    def experiment_id(self, name: str) -> str:
        """Return the experiment's id; created when missing, once, however many ask at a time.

        Raises
        ------
        TrackingError
            When it was deleted, or the store does not answer.
        """
        client = self.client
        found = client.get_experiment_by_name(name)
        if found is None:
            if self.is_server:
                found = self._create_experiment(name, None)
            else:
                with self.lock("experiments"):
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        folder = artifact_folder(self.root, name)
                        found = self._create_experiment(name, folder.as_uri())
        if found is None:
            raise TrackingError(f"{self.address}: made experiment {name!r}, and has not got it")
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r}: expected one in use, got a deleted one; restore it in "
                "MLflow or choose another name"
            )
        return str(found.experiment_id)

    def _create_experiment(self, name: str, location: str | None) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_experiment(name, artifact_location=location)
        except MlflowException as error:  # another process was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self.client.get_experiment_by_name(name)

    def create_run(
        self,
        experiment: str,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Create a run and return its id."""
        run = self.client.create_run(
            self.experiment_id(experiment), run_name=run_name, tags=dict(tags or {})
        )
        return check_run_id(run.info.run_id)

    def find_run(self, run_id: str) -> Run:
        """Return a run by its id, a unique beginning of it, or its id from before a server knew it.

        Raises
        ------
        RunNotFoundError
            When none or several fit.
        """
        from mlflow.exceptions import MlflowException

        if not is_run_id(run_id):
            raise RunNotFoundError(
                f"run: expected an id of letters and digits, got {run_id!r}; "
                "`eigenexp ui` lists the runs"
            )
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise TrackingError(
                    f"{self.address}: expected a tracking store that answers, got {one_line(error)}"
                ) from error
        # Ours from before this store knew the run are in a tag.
        fits = self.runs_called(run_id)[:1] or self._runs_beginning(run_id)
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise RunNotFoundError(
                f"run {run_id!r}: expected a run of {self.address}, got none with this id; "
                "`eigenexp ui` lists the runs, `eigenexp sync` sends those made offline"
            )
        some = ", ".join(run.info.run_id for run in fits[:5])
        raise RunNotFoundError(
            f"run {run_id!r}: expected one run, got {len(fits)} that begin so ({some}); "
            "give more letters"
        )

    def runs_called(self, local_id: str) -> list[Run]:
        """Return the runs that carry a local id, those with points first, then by their age."""
        found = self._search_runs(f"tags.`{LOCAL_ID_TAG}` = '{local_id}'")
        return sorted(found, key=lambda run: (not run.data.metrics, run.info.start_time))

    def adopt_run(self, local_id: str, keep: str | None = None) -> str | None:
        """Return the run that carries a local id (``keep``, where given), else ``None``.

        MLflow's client sends a creation again when its answer was lost: the empty twin of the same
        id that this leaves is deleted.
        """
        found = {run.info.run_id: run for run in self.runs_called(local_id)}
        chosen = keep if keep is not None else next(iter(found), None)
        for run_id, run in found.items():
            if run_id != chosen and not run.data.metrics:
                self.client.delete_run(run_id)
        return None if chosen is None else check_run_id(chosen)

    def _runs_beginning(self, prefix: str) -> list[Run]:
        if prefix.startswith("offline-"):
            return self._search_runs(f"tags.`{LOCAL_ID_TAG}` LIKE '{prefix}%'")
        return [run for run in self._search_runs("") if run.info.run_id.startswith(prefix)]

    def _search_runs(self, query: str) -> list[Run]:
        found: list[Run] = []
        experiments = [e.experiment_id for e in self._experiments()]
        token = None
        while experiments:
            page = self.client.search_runs(experiments, query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        return found

    def _experiments(self) -> Sequence[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_experiments(max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def resume_run(self, run_id: str) -> Run:
        """Set a run RUNNING again and count the resumption in a tag."""
        run = self.find_run(run_id)
        before = run.data.tags.get(RESUME_COUNT_TAG, "0")
        count = int(before) + 1 if before.isdigit() else 1
        self.client.set_tag(run.info.run_id, RESUME_COUNT_TAG, str(count))
        self.client.update_run(run.info.run_id, status="RUNNING")
        return run

    def finish_run(self, run_id: str, status: str = "FINISHED") -> None:
        """Set the status a run ends with, and its end time.

        Raises
        ------
        TrackingError
            When ``status`` is none of MLflow's.
        """
        if status not in STATUSES:
            raise TrackingError(f"status: expected one of {', '.join(STATUSES)}, got {status!r}")
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time=int(time.time() * 1000))

    def delete_empty(self, run_id: str) -> None:
        """Mark a run as deleted that has nothing; going on with it restores it."""
        self.client.set_tag(run_id, EMPTY_TAG, "true")
        self.client.delete_run(run_id)

    def restore_empty(self, run: Run) -> Run:
        """Undo :meth:`delete_empty`; a run that somebody else deleted stays deleted."""
        if run.info.lifecycle_stage == "active" or EMPTY_TAG not in run.data.tags:
            return run
        self.client.restore_run(run.info.run_id)
        self.client.delete_tag(run.info.run_id, EMPTY_TAG)
        return self.client.get_run(run.info.run_id)

    def last_steps(self, run_id: str) -> dict[str, int]:
        """Return the largest step the store has, by metric."""
        latest = self.client.get_run(run_id).data.to_proto().metrics
        return {metric.key: int(metric.step) for metric in latest}

    # -- artifacts -------------------------------------------------------------------------------

    def upload(self, run_id: str, path: Path, artifact_path: str, name: str | None = None) -> None:
        """Put a file under ``artifact_path/name``, replacing one of that name whole.

        Raises
        ------
        TrackingError
            When the artifact path leaves the run's folder.
        OSError, mlflow.exceptions.MlflowException
            When the artifact store cannot take it now.
        """
        name = name or path.name
        relative = safe_relative(f"{artifact_path}/{name}" if artifact_path else name)
        folder = self.local_artifacts(run_id)
        if folder is not None:
            copy_atomic(path, folder / relative)
            return
        if name != path.name:
            raise TrackingError(f"upload: expected a file called {name!r}, got {path.name!r}")
        self.client.log_artifact(run_id, str(path), artifact_path or None)
        # A gateway that asks for a login answers an upload with a page and "200 OK".
        there = {entry.path: entry for entry in self.client.list_artifacts(run_id, artifact_path)}
        entry = there.get(relative)
        if entry is None or (entry.file_size or 0) not in (0, path.stat().st_size):
            raise ConnectionError(
                f"{self.address}: took {relative}, and has not got it; something between here and "
                "there answers in its place"
            )

    def local_artifacts(self, run_id: str) -> Path | None:
        """Return the run's artifact folder where it is on this machine's disk, else ``None``."""
        if run_id not in self._folders:
            uri = self.client.get_run(run_id).info.artifact_uri
            folder = local_path(uri)
            # Every MLflow ends a run's folder so; a server that names another one means mischief.
            if folder is not None and (folder.parts[-2:] != (run_id, "artifacts") or ".." in uri):
                raise TrackingError(
                    f"run {run_id}: expected an artifact folder …/{run_id}/artifacts from "
                    f"{self.address}, got {uri[:200]!r}; nothing is written there"
                )
            self._folders[run_id] = folder
        return self._folders[run_id]


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
