"""Lightning's door to :mod:`eigenexp.checkpoints`: a plug-in that reads and writes sealed files."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from eigenexp.checkpoints.files import (
    Checkpoint,
    CheckpointWarning,
    find_checkpoint,
    load_checkpoint,
    metadata_path,
    save_checkpoint,
)
from eigenexp.errors import CheckpointError

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints whole or not at all; read them verified and without executing anything.

    ``Trainer(plugins=[AtomicCheckpointIO()])``. Paths with a scheme (``s3://…``) go Lightning's
    own way, still with ``weights_only``.

    Parameters
    ----------
    opened
        A checkpoint that was read already: it is handed out, once, when its path is asked for.
    """

    def __init__(self, opened: Checkpoint | None = None) -> None:
        super().__init__()
        self._opened = opened

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write ``path`` and its ``<stem>.metadata.json``.

        Raises
        ------
        CheckpointError
            When the disk is full or the folder cannot be written; earlier files are intact.
        """
        if _is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | Any | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the verified checkpoint; ``weights_only`` is always true here.

        A folder stands for its newest whole checkpoint. So does its ``last.ckpt`` when that is
        damaged, with a :class:`~eigenexp.checkpoints.CheckpointWarning`.

        Raises
        ------
        CheckpointError
            When it is missing, damaged, or would have to execute something to be read.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        place = Path(path)
        opened, self._opened = self._opened, None
        if opened is not None and opened.path == place:
            return opened.content
        if place.is_dir():
            place = find_checkpoint(place)
        try:
            return load_checkpoint(place, map_location=map_location)
        except CheckpointError as error:
            if place.name != "last.ckpt" or not place.exists():
                raise
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CheckpointWarning)  # told below
                earlier = find_checkpoint(place.parent)
            if earlier == place:
                raise
            warnings.warn(f"{error}; using {earlier}", CheckpointWarning, stacklevel=2)
            return load_checkpoint(earlier, map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its metadata file."""
        if _is_remote(path):
            super().remove_checkpoint(path)
        elif Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
            metadata_path(path).unlink(missing_ok=True)


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)
