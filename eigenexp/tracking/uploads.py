"""Files and pictures of a spool, put into a run's artifacts."""

from __future__ import annotations

import contextlib
import io
import re
import uuid
from pathlib import Path

from eigenexp.errors import TrackingError
from eigenexp.tracking.files import safe_relative
from eigenexp.tracking.names import clean_key
from eigenexp.tracking.records import Record
from eigenexp.tracking.spool import Spool
from eigenexp.tracking.store import Store

__all__ = ["Uploads", "image_place"]

# MLflow's own is 256, in which the text of a figure cannot be read.
_THUMBNAIL = 640


def image_place(record: Record) -> str:
    """Return the name under which a picture's last step is remembered."""
    return f"image:{_image_key(record)}"


def _image_key(record: Record) -> str:
    return clean_key(record["key"]).replace("/", "~")


class Uploads:
    """What upload records of one spool name, and how each gets to the store.

    Parameters
    ----------
    spool, store
        From where and to where.
    """

    def __init__(self, spool: Spool, store: Store) -> None:
        self._spool = spool
        self._store = store
        self._images_tagged = False

    def is_there(self, record: Record) -> bool:
        """Whether any of the files is there still; those that were delivered are deleted."""
        return any(path.is_file() for path in self._files(record))

    def last_steps(self, run_id: str) -> dict[str, int]:
        """Return the step of the last picture the store has, by the name of its place."""
        steps: dict[str, int] = {}
        for file in self._store.client.list_artifacts(run_id, "images"):
            match = re.match(r"images/(.+)\+step\+(\d+)\+timestamp", file.path)
            if match:
                key = f"image:{match[1]}"
                steps[key] = max(int(match[2]), steps.get(key, -1))
        return steps

    def send(self, run_id: str, record: Record) -> None:
        """Upload what a record names.

        Raises
        ------
        TrackingError
            When nothing can come of it: a file is gone or no picture, a path climbs.
        Exception
            Whatever the store raises; the same may be tried again.
        """
        files = self._files(record)
        gone = [path.name for path in files if not path.is_file()]
        if gone or len(files) < len(record["files"]):
            raise TrackingError(f"expected the files of an upload, {gone or 'some'} are gone")
        if record["k"] == "i":
            self._send_image(run_id, record, files)
            return
        for path in files:
            safe_relative(f"{record['to']}/{path.name}" if record["to"] else path.name)
        for path in files:
            self._store.upload(run_id, path, record["to"])

    def _send_image(self, run_id: str, record: Record, files: list[Path]) -> None:
        """Store a picture the way MLflow's time slider reads it, under a name that repeats."""
        import numpy as np
        from PIL import Image

        key, step, stamp = _image_key(record), record["s"], record["t"]
        try:
            pixels = np.load(files[0], allow_pickle=False)
            if pixels.dtype != np.uint8 or not pixels.size:
                raise ValueError(f"{pixels.dtype} {pixels.shape}")
            small = Image.fromarray(pixels)
        except (OSError, ValueError, TypeError, EOFError, IndexError) as error:
            raise TrackingError(f"expected a picture, got {type(error).__name__}") from error
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {key} {step} {stamp}")
        stem = f"{key}+step+{step}+timestamp+{stamp}+{unique}"
        folder = self._spool.new_file_folder()
        for name, form in ((f"{stem}.png", "PNG"), (f"{stem}+compressed.webp", "WEBP")):
            if form == "WEBP":
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            data = io.BytesIO()
            small.save(data, form)
            (folder / name).write_bytes(data.getvalue())
            self._store.upload(run_id, folder / name, "images")
            (folder / name).unlink()
        folder.rmdir()
        if not self._images_tagged:
            self._store.client.set_tag(run_id, "mlflow.loggedImages", "True")
            self._images_tagged = True

    def discard(self, record: Record) -> None:
        """Delete the files of a record that is dealt with."""
        for path in self._files(record):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def _files(self, record: Record) -> list[Path]:
        """Return the files a record names; those outside the spool's own are left alone."""
        inside = self._spool.files.resolve()
        found = []
        for name in record["files"]:
            with contextlib.suppress(ValueError):  # no name of a file
                path = self._spool.folder / name
                found += [path] if inside in path.resolve().parents else []
        return found
