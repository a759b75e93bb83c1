"""The MLflow store of a project: an SQLite file under ``mlruns/`` or a tracking server."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.tracking.files import copy_atomic, safe_relative

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["LOCAL_ID_TAG", "RESUME_COUNT_TAG", "WRITER_TAG", "Store", "local_store"]

LOCAL_ID_TAG = "eigenexp.local_id"
RESUME_COUNT_TAG = "eigenexp.resume_count"
WRITER_TAG = "eigenexp.writer"
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")

_RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LOCK_SECONDS = 120
MAX_PARAM_LENGTH = 500


def local_store(root: str | os.PathLike[str] = "mlruns") -> Store:
    """Return the SQLite store under ``root``, whatever the environment says."""
    store = Store(root)
    store.uri = store.sqlite_uri
    return store


class Store:
    """Runs, parameters and artifacts; every call names its run, nothing is global.

    Parameters
    ----------
    root
        The project's ``mlruns`` folder: ``mlflow.db``, ``artifacts/``, ``spool/``.
    uri
        A tracking server or database; ``None`` for ``MLFLOW_TRACKING_URI``, and where that is not
        set for the SQLite file under ``root``.

    Raises
    ------
    TrackingError
        When the address is one MLflow cannot use.
    """

    def __init__(self, root: str | os.PathLike[str] = "mlruns", uri: str | None = None) -> None:
        self.root = Path(root).absolute()
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or self.sqlite_uri
        self._client: MlflowClient | None = None
        self._folders: dict[str, Path | None] = {}
        scheme = urlsplit(self.uri).scheme
        if scheme in ("", "file"):
            raise TrackingError(
                f"tracking uri: expected http(s)://… or sqlite:///…, got {self.uri!r}; MLflow "
                "no longer writes plain folders"
            )

    @property
    def sqlite_uri(self) -> str:
        """Address of the SQLite file under ``root``."""
        return f"sqlite:///{self.database.as_posix()}"

    @property
    def database(self) -> Path:
        """The SQLite file under ``root``."""
        return self.root / "mlflow.db"

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
            _quiet()
            from mlflow import MlflowClient

            self._create_database()
            try:
                self._client = MlflowClient(tracking_uri=self.uri)
            except Exception as error:
                raise TrackingError(
                    f"{self.uri}: expected a tracking store, got {one_line(error)}"
                ) from error
        return self._client

    def _create_database(self) -> None:
        """Make the SQLite file once, under a lock, and put it in its place when it is complete."""
        if self.uri != self.sqlite_uri:
            return
        if any(character in self.database.as_posix() for character in "?#%"):
            raise TrackingError(
                f"{self.root}: expected a folder name without '?', '#' or '%', which a database "
                "address cannot hold; choose another root"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self.database.exists():
                if not os.access(self.database, os.W_OK):
                    raise PermissionError(13, "a database that cannot be written")
                return
            with self.lock("mlflow.db"):
                if not self.database.exists():
                    self._build_database()
        except OSError as error:
            raise TrackingError(
                f"{self.root}: expected a folder that can be written, got "
                f"{error.strerror or one_line(error)}; choose another root"
            ) from error

    def _build_database(self) -> None:
        import sqlalchemy
        from mlflow import MlflowClient

        fresh = self.root / ".mlflow.db.new"  # one builder at a time holds the lock
        for leftover in self.root.glob(".mlflow.db.new*"):
            leftover.unlink()
        try:
            MlflowClient(tracking_uri=f"sqlite:///{fresh.as_posix()}").search_experiments()
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise TrackingError(
                f"{self.root}: expected to create a database, got {one_line(error)}"
            ) from error
        os.replace(fresh, self.database)

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
                        plain = quote(name, safe=" ")
                        # '.' and '..' are folders of their own meaning.
                        plain = plain if plain.strip(". ") else f"_{plain}"
                        folder = self.root / "artifacts" / plain
                        found = self._create_experiment(name, folder.as_uri())
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

        if not _RUN_ID.fullmatch(run_id):
            raise RunNotFoundError(
                f"run: expected an id of letters and digits, got {run_id!r}; "
                "`eigenexp ui` lists the runs"
            )
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise TrackingError(
                    f"{self.uri}: expected a tracking store that answers, got {one_line(error)}"
                ) from error
        # Ours from before this store knew the run are in a tag.
        by_tag = f"tags.`{LOCAL_ID_TAG}` = '{run_id}'"
        fits = self._runs_beginning(run_id) or self._search_runs(by_tag)
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise RunNotFoundError(
                f"run {run_id!r}: expected a run of {self.uri}, got none with this id; "
                "`eigenexp ui` lists the runs, `eigenexp sync` sends those made offline"
            )
        some = ", ".join(run.info.run_id for run in fits[:5])
        raise RunNotFoundError(
            f"run {run_id!r}: expected one run, got {len(fits)} that begin so ({some}); "
            "give more letters"
        )

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

    def last_steps(self, run_id: str) -> dict[str, int]:
        """Return the largest step the store has, by metric."""
        run = self.client.get_run(run_id)
        latest = getattr(run.data, "_metric_objs", None)
        if latest is not None:
            return {metric.key: int(metric.step) for metric in latest}
        return {
            key: max(int(point.step) for point in self.client.get_metric_history(run_id, key))
            for key in run.data.metrics
        }

    # -- parameters ------------------------------------------------------------------------------

    def log_params(
        self, run_id: str, params: Mapping[str, Any], known: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Log parameters; a changed one becomes the tag ``drift.<name>``. Return what was logged.

        Values longer than 500 characters are cut. Parameters of a run never change in MLflow.
        """
        from mlflow.entities import Param, RunTag

        if known is None:
            known = self.client.get_run(run_id).data.params
        values = {clean_key(str(key)): _cut(value) for key, value in params.items()}
        fresh = {key: value for key, value in values.items() if key not in known}
        tags = [
            RunTag(f"drift.{key}", _cut(f"{known[key]} → {value}"))
            for key, value in values.items()
            if key in known and known[key] != value
        ]
        entries = [Param(key, value) for key, value in fresh.items()]
        for start in range(0, max(len(entries), len(tags)), 100):
            self.client.log_batch(
                run_id, params=entries[start : start + 100], tags=tags[start : start + 100]
            )
        return fresh

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

    def local_artifacts(self, run_id: str) -> Path | None:
        """Return the run's artifact folder where it is on this machine's disk, else ``None``."""
        if run_id not in self._folders:
            uri = self.client.get_run(run_id).info.artifact_uri
            parts = urlsplit(uri)
            folder = None
            if parts.scheme == "file" and parts.netloc in ("", "localhost"):
                folder = Path(unquote(parts.path))
            elif parts.scheme == "" and os.path.isabs(uri):
                folder = Path(uri)
            # Every MLflow ends a run's folder so; a server that names another one means mischief.
            if folder is not None and (folder.parts[-2:] != (run_id, "artifacts") or ".." in uri):
                raise TrackingError(
                    f"run {run_id}: expected an artifact folder …/{run_id}/artifacts from "
                    f"{self.uri}, got {uri[:200]!r}; nothing is written there"
                )
            self._folders[run_id] = folder
        return self._folders[run_id]


def check_run_id(run_id: str) -> str:
    """Return ``run_id`` if it can name a folder.

    Raises
    ------
    TrackingError
        When a server answers with something else.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise TrackingError(f"run id: expected letters and digits from the store, got {run_id!r}")
    return run_id


def clean_key(key: str) -> str:
    """Return ``key`` with what MLflow refuses in names replaced."""
    cleaned = re.sub(r"[^\w\-./ :]", "_", key, flags=re.ASCII).strip("/ ")[:250] or "_"
    parts = [part if part.strip(".") else "_" for part in cleaned.split("/") if part]
    return "/".join(parts) or "_"


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 1] + "…"


def one_line(error: BaseException) -> str:
    """Return an error's kind and text on one line, shortened."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _quiet() -> None:
    """Keep MLflow's migrations, prints and usage reports to itself; a user's own setting wins."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)


QUIET_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
