"""The folder of a study, which is its whole state: plan, one record a picture, work in progress.

::

    study.json                        the plan: pictures in order, cohorts, settings
    pictures/000003-cat/              one finished picture
        spectrum.safetensors          its pairs with their certificates
        convergence.csv               residual by products
        record.json                   written last: with it the picture is finished
    cohorts/00001.ckpt                solvers of pictures in progress, sealed
    claims/<session>/00001            which cohorts have somebody at work in this session

Every file is whole or absent, so a process may be killed anywhere, and any number of processes may
go on from what is there.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenexp.checkpoints.files import load_checkpoint, save_checkpoint
from eigenexp.errors import CheckpointError
from eigenexp.spectrum import SPECTRUM_FILE, Spectrum
from eigenexp.storage.atomic import remove_orphans, write_atomic, write_json_atomic
from eigenexp.storage.json_files import read_json
from eigenexp.study.soundness import plan_fault, record_fault

__all__ = ["StudyFolder"]

log = logging.getLogger(__name__)

_PICTURE = re.compile(r"(\d{6,})-(.+)")
SCHEMA_VERSION = 1


class StudyFolder:
    """Reads and writes a study's files.

    Parameters
    ----------
    path
        The folder; made when first written to. On several machines it must be one they share.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._known: dict[int, dict[str, Any]] = {}

    # -- the plan --------------------------------------------------------------------------------

    @property
    def plan_path(self) -> Path:
        """File of the plan."""
        return self.path / "study.json"

    def read_plan(self) -> dict[str, Any] | None:
        """Return the plan, or ``None`` where no study has begun.

        Raises
        ------
        CheckpointError
            When it is damaged or of a newer schema.
        """
        if not self.plan_path.exists():
            return None
        plan = read_json(self.plan_path, "a study's file")
        fault = plan_fault(plan)
        if fault is not None:
            raise CheckpointError(
                f"{self.plan_path}: expected a study's plan, got a wrong {fault!r}; the file is "
                "damaged"
            )
        if plan.get("schema_version", 0) > SCHEMA_VERSION:
            raise CheckpointError(
                f"{self.plan_path}: expected schema up to {SCHEMA_VERSION}, got "
                f"{plan.get('schema_version')}; update eigenexp to go on"
            )
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.plan_path, {"schema_version": SCHEMA_VERSION, **plan})

    # -- finished pictures -----------------------------------------------------------------------

    def picture_path(self, position: int, name: str) -> Path:
        """Folder of one picture's files."""
        return self.path / "pictures" / f"{position:06d}-{name}"

    def records(self) -> dict[int, dict[str, Any]]:
        """Return the records of the finished pictures by position, also those just written.

        A picture whose record is damaged is not finished.
        """
        folder = self.path / "pictures"
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    match = _PICTURE.fullmatch(entry.name)
                    if match and int(match[1]) not in self._known:
                        record = Path(entry.path) / "record.json"
                        if record.is_file():
                            with contextlib.suppress(CheckpointError):  # damaged: not finished
                                found = read_json(record, "a study's file")
                                if record_fault(found, int(match[1]), match[2]) is None:
                                    self._known[int(match[1])] = found
        return dict(sorted(self._known.items()))

    def write_picture(
        self,
        record: Mapping[str, Any],
        spectrum: Spectrum | None,
        history: Sequence[Mapping[str, float]],
        figures: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write one finished picture's files, the record last; return their folder.

        Parameters
        ----------
        record
            Plain facts, ``position`` and ``name`` among them.
        spectrum
            ``None`` for a picture that failed.
        history
            Rows of the convergence table.
        figures
            Matplotlib figures by file name without ending.
        """
        folder = self.picture_path(int(record["position"]), str(record["name"]))
        folder.mkdir(parents=True, exist_ok=True)
        if spectrum is not None:
            spectrum.save(folder / SPECTRUM_FILE)
        if history:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)
            write_atomic(folder / "convergence.csv", text.getvalue().encode())
        for name, figure in (figures or {}).items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=120)
            write_atomic(folder / f"{name}.png", buffer.getvalue())
        write_json_atomic(folder / "record.json", dict(record))
        return folder

    def spectrum(self, position: int) -> Spectrum:
        """Return a finished picture's pairs.

        Raises
        ------
        CheckpointError
            When the picture is not finished, or failed.
        """
        record = self.records().get(position)
        if record is None or record["status"] == "failed":
            got = (
                "one not finished yet" if record is None else f"one that failed: {record['error']}"
            )
            raise CheckpointError(f"picture {position}: expected a finished picture, got {got}")
        return Spectrum.load(self.picture_path(position, record["name"]) / SPECTRUM_FILE)

    def forget(self, *, failed: bool = False, unproven: bool = False) -> list[int]:
        """Delete the records of some pictures, so that these are solved again.

        Parameters
        ----------
        failed
            Those that failed.
        unproven
            Those with a pair that is not proven.

        Returns
        -------
        list of int
            Their positions.
        """
        chosen = [
            position
            for position, record in self.records().items()
            if (failed if record["status"] == "failed" else unproven and not record["converged"])
        ]
        for position in chosen:
            record = self._known.pop(position)
            (self.picture_path(position, record["name"]) / "record.json").unlink()
        return chosen

    # -- work in progress ------------------------------------------------------------------------

    def cohort_path(self, index: int) -> Path:
        """File of a cohort's solvers."""
        return self.path / "cohorts" / f"{index:05d}.ckpt"

    def load_cohort(self, index: int) -> dict[str, Any] | None:
        """Return a cohort's state, or ``None`` where none is saved, or it is damaged.

        Pictures without a state begin again, and end the same.
        """
        path = self.cohort_path(index)
        if not path.exists():
            return None
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            log.warning("%s; its pictures begin again", error)
            return None

    def save_cohort(self, index: int, turns: int, state: Mapping[str, Any]) -> None:
        """Write a cohort's state over the one before.

        Raises
        ------
        CheckpointError
            When the disk is full or the folder cannot be written.
        """
        save_checkpoint({"global_step": turns, **state}, self.cohort_path(index))

    def drop_cohort(self, index: int) -> None:
        """Delete the state of a cohort whose pictures are all finished."""
        path = self.cohort_path(index)
        path.with_suffix(".metadata.json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def claim(self, session: str, index: int) -> bool:
        """Take a cohort for this process; ``False`` where another one of the session has it."""
        folder = self.path / "claims" / session
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(folder / f"{index:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        os.close(fd)
        return True

    def clean(self) -> None:
        """Delete what dead processes left: temporary files and old claims."""
        for folder in (self.path, *(self.path / "pictures").glob("*"), self.path / "cohorts"):
            if folder.is_dir():
                remove_orphans(folder)
        for claims in (self.path / "claims").glob("*"):
            for claim in claims.iterdir():
                claim.unlink(missing_ok=True)
            claims.rmdir()
