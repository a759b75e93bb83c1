"""The SQLite file of a project: made once, set aside when it is none, and following its folder.

MLflow has no door for the last: it keeps absolute places of artifacts, and a folder that was moved
or copied would go on writing to where it came from. So the places are rewritten here, in the tables
``experiments``, ``runs`` and ``logged_models``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from eigenexp.errors import TrackingError
from eigenexp.tracking.texts import one_line

__all__ = [
    "artifact_folder",
    "build_database",
    "is_database",
    "local_path",
    "relocate",
    "set_aside",
]

log = logging.getLogger(__name__)

_HEADER = b"SQLite format 3\0"
_LONGEST_NAME = 120
_FOR_ARTIFACTS = "artifacts"


def artifact_folder(root: Path, experiment: str) -> Path:
    """Return where an experiment's artifacts lie: its name, encoded where it is no folder's name.

    A name with ``..`` (MLflow refuses such places), of dots alone, or too long for a folder gets
    the beginning of its hash instead of what is wrong with it.
    """
    plain = quote(experiment, safe=" ")
    if ".." in plain or len(plain) > _LONGEST_NAME or not plain.strip(". "):
        digest = hashlib.sha256(experiment.encode()).hexdigest()[:12]
        plain = f"{plain[:60].replace('.', '_').rstrip('%')}-{digest}"
    return root / _FOR_ARTIFACTS / plain


def is_database(path: Path) -> bool:
    """Whether an SQLite file lies at ``path``, judged by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


def set_aside(path: Path) -> Path:
    """Rename what lies in a database's place and is none; return its new name."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    os.replace(path, aside)
    log.warning("%s: expected a database, got other bytes; kept as %s", path, aside.name)
    return aside


def build_database(path: Path) -> None:
    """Make MLflow's tables in a file beside ``path`` and put it in place when it is complete.

    Raises
    ------
    TrackingError
        When it cannot be made.
    """
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for leftover in path.parent.glob(f".{path.name}.new*"):
        leftover.unlink()
    fresh = path.with_name(f".{path.name}.new{time.time_ns()}")
    try:
        # By this class and not by the client: the experiment "Default" lies under the root too.
        make: Any = SqlAlchemyStore
        make(f"sqlite:///{fresh.as_posix()}", (path.parent / _FOR_ARTIFACTS).as_uri())
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise TrackingError(
            f"{path.parent}: expected to create a database, got {one_line(error)}"
        ) from error
    os.replace(fresh, path)


def relocate(database: Path) -> int:
    """Let the artifacts' places follow the folder of the database; return how many were changed.

    Raises
    ------
    TrackingError
        When the file cannot be read as MLflow's.
    """
    root = database.parent
    try:
        with closing(sqlite3.connect(database, timeout=60)) as tables, tables:
            rows = tables.execute("select experiment_id, name, artifact_location from experiments")
            wanted = [(i, old, _new_location(root, i, name, old or "")) for i, name, old in rows]
            moved = [(i, old, new) for i, old, new in wanted if new is not None and new != old]
            for experiment, old, new in moved:
                tables.execute(
                    "update experiments set artifact_location = ? where experiment_id = ?",
                    (new, experiment),
                )
                if not _keeps_runs(old, new):
                    _rewrite(tables, "runs", "artifact_uri", experiment, old, new)
                    _rewrite(tables, "logged_models", "artifact_location", experiment, old, new)
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database}: expected MLflow's database, got {one_line(error)}; move it away, and "
            "`eigenexp sync` makes a new one"
        ) from error
    if moved:
        log.warning("%s was moved here: the places of its artifacts follow", root)
    return len(moved)


def _rewrite(
    tables: sqlite3.Connection, table: str, column: str, experiment: int, old: str, new: str
) -> None:
    tables.execute(
        f"update {table} set {column} = ? || substr({column}, ?) "
        f"where experiment_id = ? and substr({column}, 1, ?) = ?",
        (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"),
    )


def _new_location(root: Path, experiment: int, name: str, location: str) -> str | None:
    """Return where an experiment's artifacts are to lie, ``None`` where they lie well."""
    place = local_path(location)
    if place is None or root in place.parents:
        return None  # elsewhere than on a disk, or with the database
    if experiment == 0 and place.name == "0" and place.parent.name != _FOR_ARTIFACTS:
        # MLflow makes "Default" in the working folder of whoever makes the database.
        here = root / "0"
        return (here if here.is_dir() else root / _FOR_ARTIFACTS / "0").as_uri()
    if place.parent.name != _FOR_ARTIFACTS:
        return None
    before, here = place.parent.parent, root / _FOR_ARTIFACTS / place.name
    if before.exists() and before.samefile(root):
        return None  # another name of the same folder
    is_ours = here == artifact_folder(root, name) or here.is_dir()
    return here.as_uri() if is_ours or not before.exists() else None


def _keeps_runs(old: str, new: str) -> bool:
    """Whether old runs stay where they are: "Default" in a working folder that is still there."""
    before, after = local_path(old), local_path(new)
    is_default = before is not None and before.parent.name != _FOR_ARTIFACTS
    return is_default and before is not None and before.is_dir() and before != after


def local_path(location: str) -> Path | None:
    """Return the place on this machine's disk that an address of artifacts names, else ``None``."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if parts.scheme == "" and os.path.isabs(location) else None
