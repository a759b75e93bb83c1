"""Runs for the report: from a tracked run, a folder of results, or a spectrum in memory."""

from __future__ import annotations

import csv
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eigenexp.atomic import write_atomic
from eigenexp.callbacks.results import CONVERGENCE_FILE
from eigenexp.checkpoints import find_checkpoint, load_checkpoint
from eigenexp.errors import CheckpointError, EigenexpError, InputError
from eigenexp.images import Picture
from eigenexp.picture_files import PICTURE_FILE, load_saved_picture
from eigenexp.report.page import render_report
from eigenexp.report.view import ReportRun
from eigenexp.runs import RunFolder, find_run
from eigenexp.spectrum import Spectrum

__all__ = ["load_run", "read_convergence", "report_from", "write_report"]

_SPECTRUM_FILE = "spectrum.safetensors"
_COLUMN = re.compile(r"(residual|eigenvalue)/(-?\d{1,9})")
_MOST_ROWS = 100_000


def report_from(
    spectrum: Spectrum,
    image: Tensor | Picture | None = None,
    *,
    title: str | None = None,
    history: Mapping[str, Any] | None = None,
    **facts: Any,
) -> ReportRun:
    """Return a run for :func:`write_report` from a spectrum in memory.

    Parameters
    ----------
    spectrum
        From any solver; eigenvectors flat or in the picture's shape.
    image
        The picture solved for: ``(1, C, H, W)`` or a :class:`~eigenexp.images.Picture`.
    title
        By default the method's name.
    history
        ``ConvergenceLogging.history``, for the curves.
    facts
        Settings to list.

    Examples
    --------
    >>> write_report(report_from(spectrum, picture, title="my model"), "report.html")
    """
    tensor = image.tensor if isinstance(image, Picture) else image
    record: dict[str, Any] = {}
    if isinstance(image, Picture):
        record = {"picture": image.record}
    return ReportRun(
        title=title or spectrum.method or "spectrum",
        spectrum=spectrum,
        image=tensor,
        history=history,
        picture_name=image.name if isinstance(image, Picture) else "",
        facts={**record, **facts},
    )


def write_report(
    runs: ReportRun | str | os.PathLike[str] | Sequence[ReportRun | str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] = "mlruns",
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML file about one run, or several side by side.

    Parameters
    ----------
    runs
        Run ids (or the start of one, ``last``, a folder with ``spectrum.safetensors``), or what
        :func:`report_from` returns.
    path
        The file to write; replaced whole.
    root
        Folder of the runs.
    title
        Of the page.

    Raises
    ------
    RunNotFoundError, CheckpointError
        When a run is not there, has no result yet, or its files are damaged.
    InputError
        When the file cannot be written.
    """
    many = [runs] if isinstance(runs, (ReportRun, str, os.PathLike)) else list(runs)
    loaded = [run if isinstance(run, ReportRun) else load_run(run, root) for run in many]
    page = render_report(loaded, title)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(target, page.encode())
    except OSError as error:
        raise InputError(
            f"{target}: expected a file that can be written, got {error.strerror or error}; "
            "choose another with --output"
        ) from error


def load_run(name: str | os.PathLike[str], root: str | os.PathLike[str] = "mlruns") -> ReportRun:
    """Read a run's result, picture, curves and record; nothing in the files is executed.

    Raises
    ------
    RunNotFoundError, CheckpointError
        When there is no such run or no result of it.
    """
    given = Path(name)
    if (given / _SPECTRUM_FILE).is_file() and not (given / "run.json").is_file():
        run = _tracked(given)
        return _read(given, run, title=given.absolute().name)
    run = find_run(str(name), Path(root))
    return _read(run.results, run, title=run.run_id)


def _tracked(results: Path) -> RunFolder | None:
    """Return the run whose results these are, where its record lies beside them."""
    folder = results.absolute()
    run = RunFolder(folder.parent.parent, folder.name)
    return run if run.results == folder and run.record_path.is_file() else None


def _read(results: Path, run: RunFolder | None, title: str) -> ReportRun:
    path = results / _SPECTRUM_FILE
    if not path.is_file():
        name = title if run is None else run.run_id
        raise CheckpointError(
            f"{name}: expected a result to report, got a run without one yet; go on with: "
            f"eigenexp resume {name}"
        )
    spectrum = Spectrum.load(path)
    picture = _picture(results, spectrum)
    record = {} if run is None else run.read_record()
    config = record.get("config")
    facts: dict[str, Any] = {}
    if isinstance(config, Mapping) and "config" not in spectrum.metadata:
        facts["config"] = config
    return ReportRun(
        title=str(record.get("title") or title),
        spectrum=spectrum,
        image=None if picture is None else picture.tensor,
        history=_history(results, run),
        status=str(record.get("status") or ""),
        run_id="" if run is None else run.run_id,
        created=str(record.get("created") or ""),
        picture_name="" if picture is None else picture.name,
        facts=facts,
    )


def _picture(results: Path, spectrum: Spectrum) -> Picture | None:
    path = results / PICTURE_FILE
    if not path.is_file():
        return None
    record = spectrum.metadata.get("picture")
    sha256 = record.get("sha256") if isinstance(record, Mapping) else None
    try:
        return load_saved_picture(path, sha256 if isinstance(sha256, str) else None)
    except EigenexpError as error:
        warnings.warn(f"{error}; the report shows the distortions alone", stacklevel=4)
        return None


def _history(results: Path, run: RunFolder | None) -> dict[str, Any] | None:
    path = results / CONVERGENCE_FILE
    if path.is_file():
        return read_convergence(path)
    if run is None:
        return None
    try:
        checkpoint = load_checkpoint(find_checkpoint(run.checkpoints, clean=False))
        history = checkpoint["callbacks"]["ConvergenceLogging"]["history"]
    except (CheckpointError, KeyError, TypeError):
        return None
    return history if isinstance(history, dict) else None


def read_convergence(path: Path) -> dict[str, Any] | None:
    """Return the curves of ``convergence.csv`` in the shape of ``ConvergenceLogging.history``.

    Cells that are no numbers are gaps; ``None`` for a file without the columns.
    """
    history: dict[str, Any] = {"products": [], "seconds": [], "residuals": {}, "eigenvalues": {}}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            columns: list[list[float]] = [[] for _ in header]
            for count, row in enumerate(reader):
                if count >= _MOST_ROWS:
                    break
                for i, column in enumerate(columns):
                    column.append(_number(row[i]) if i < len(row) else math.nan)
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    for name, column in zip(header, columns, strict=True):
        match = _COLUMN.fullmatch(name)
        if name in ("products", "seconds"):
            history[name] = column
        elif match:
            history[f"{match[1]}s"][match[2]] = column
    return history if history["products"] else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
