"""Runs for the report: from a tracked run, a folder of results, or a spectrum in memory."""

from __future__ import annotations

import csv
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from eigenexp.analysis import Amplitude, SpectrumCard
from eigenexp.analysis.amplitude_table import read_amplitude
from eigenexp.analysis.card_files import read_card, read_map
from eigenexp.checkpoints.files import find_checkpoint, load_checkpoint
from eigenexp.errors import CheckpointError, EigenexpError, InputError
from eigenexp.pictures.picture import Picture, load_picture
from eigenexp.pictures.saving import PICTURE_FILE, load_saved_picture
from eigenexp.report.page import render_report
from eigenexp.report.unfinished import fetch_result, spectrum_so_far
from eigenexp.report.view import ReportRun
from eigenexp.runs.folder import CONVERGENCE_FILE, RunFolder, find_or_fetch
from eigenexp.spectrum import SPECTRUM_FILE, Spectrum
from eigenexp.storage.atomic import write_atomic
from eigenexp.storage.json_files import read_json
from eigenexp.storage.plain import plain
from eigenexp.storage.regular import file_fault
from eigenexp.study.folder import StudyFolder

__all__ = ["load_run", "load_runs", "read_convergence", "report_from", "write_report"]

T = TypeVar("T")
_COLUMN = re.compile(r"(residual|eigenvalue)/(-?\d{1,9})")
_MOST_ROWS = 100_000
_MOST_BYTES = 256 << 20


def report_from(
    spectrum: Spectrum,
    image: Tensor | Picture | None = None,
    *,
    title: str | None = None,
    history: Mapping[str, Any] | None = None,
    amplitude: Amplitude | None = None,
    card: SpectrumCard | None = None,
    **facts: Any,
) -> ReportRun:
    """Return a run for :func:`write_report` from a spectrum in memory.

    Parameters
    ----------
    spectrum
        From any solver; eigenvectors flat or in the picture's shape.
    image
        The picture solved for: ``(1, C, H, W)`` or a :class:`~eigenexp.pictures.picture.Picture`.
    title
        By default the method's name.
    history
        ``ConvergenceLogging.history``, for the curves.
    amplitude
        From :func:`eigenexp.amplitude`, for the section on finite amplitudes.
    card
        From :func:`eigenexp.spectrum_card`, for the section on the whole spectrum.
    facts
        Settings to list.

    Examples
    --------
    >>> write_report(report_from(spectrum, picture, title="my model"), "report.html").name
    'report.html'
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
        amplitude=None if amplitude is None else amplitude.as_record(),
        card=None if card is None else card.as_record(),
        sensitivity_map=None
        if card is None or card.sensitivity_map is None
        else card.sensitivity_map.value,
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
    loaded = [
        each
        for run in many
        for each in ([run] if isinstance(run, ReportRun) else load_runs(run, root))
    ]
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
    if (given / SPECTRUM_FILE).is_file() and not (given / "run.json").is_file():
        run = _tracked(given)
        return _read(given, run, title=given.absolute().name)
    run = _find(str(name), Path(root).absolute())
    return _read(run.results, run, title=run.run_id)


def load_runs(
    name: str | os.PathLike[str], root: str | os.PathLike[str] = "mlruns"
) -> list[ReportRun]:
    """Read a run, or every picture of a study.

    Raises
    ------
    RunNotFoundError, CheckpointError
        When there is no such run or no result of it.
    """
    given = Path(name)
    if not (given / SPECTRUM_FILE).is_file():
        run = _find(str(name), Path(root).absolute())
        if run.is_study:
            return _study_runs(run)
    return [load_run(name, root)]


def _find(name: str, root: Path) -> RunFolder:
    """Return a run of this machine, or else the tracking store's, its result fetched."""
    fetched: list[RunFolder] = []

    def fetch() -> RunFolder:
        fetched.append(fetch_result(name, root))
        return fetched[0]

    run = find_or_fetch(name, root, fetch)
    if not fetched and run.record_path.is_file() and run.read_record().get("fetched"):
        try:
            return fetch_result(run.run_id, root)  # it may have gone on since
        except EigenexpError as error:
            warnings.warn(f"{error}; the report shows what was fetched before", stacklevel=4)
    return run


def _study_runs(run: RunFolder) -> list[ReportRun]:
    """Return a study's finished pictures, in its order; those that failed are left out."""
    record = run.read_record()
    study = StudyFolder(run.results)
    folders = sorted(path.parent for path in study.path.glob(f"pictures/*/{SPECTRUM_FILE}"))
    if not folders:
        raise CheckpointError(
            f"{run.run_id}: expected a finished picture to report, got a study without one yet; "
            f"go on with: eigenexp resume {run.run_id}"
        )
    config = record.get("config")
    image = dict(config.get("image") or {}) if isinstance(config, Mapping) else {}
    options = {key: image[key] for key in ("crop", "resize", "channels", "value_range")
               if key in image}  # fmt: skip
    found = []
    for folder in folders:
        spectrum = Spectrum.load(folder / SPECTRUM_FILE)
        own = read_json(folder / "record.json", "a picture's record")
        picture = _source_picture(own, options)
        name = str(own.get("name") or folder.name)
        found.append(
            ReportRun(
                title=f"{str(record.get('title') or '').partition(' at ')[0]} at {name}".strip(),
                spectrum=spectrum,
                image=None if picture is None else picture.tensor,
                history=_history(folder, None),
                status=str(own.get("status") or ""),
                run_id=run.run_id,
                created=str(record.get("created") or ""),
                picture_name=name,
                facts={"config": config} if isinstance(config, Mapping) else {},
            )
        )
    return found


def _source_picture(record: Mapping[str, Any], options: Mapping[str, Any]) -> Picture | None:
    """Return a study's picture from where it was read, if it is still the same."""
    known = record.get("picture")
    known = known if isinstance(known, Mapping) else {}
    try:
        dtype = str(known.get("dtype") or "float32")
        picture = load_picture(str(record.get("where")), dtype=dtype, **options)
    except EigenexpError:
        return None
    return picture if picture.record["sha256"] == known.get("sha256") else None


def _tracked(results: Path) -> RunFolder | None:
    """Return the run whose results these are, where its record lies beside them."""
    folder = results.absolute()
    run = RunFolder(folder.parent.parent, folder.name)
    return run if run.results == folder and run.record_path.is_file() else None


def _read(results: Path, run: RunFolder | None, title: str) -> ReportRun:
    path = results / SPECTRUM_FILE
    spectrum = Spectrum.load(path) if path.is_file() else _so_far(run, title)
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
        problem=str(record.get("error") or ""),
        amplitude=_whole(lambda: read_amplitude(results)),
        card=_whole(lambda: read_card(results)),
        sensitivity_map=_whole(lambda: read_map(results)),
    )


def _whole(read: Callable[[], T | None]) -> T | None:
    """Return what a file holds; nothing, with a warning, where it is damaged."""
    try:
        return read()
    except CheckpointError as error:
        warnings.warn(f"{error}; the report leaves it out", stacklevel=5)
        return None


def _so_far(run: RunFolder | None, title: str) -> Spectrum:
    """Return the pairs of a run that has not ended, from its checkpoint."""
    name = title if run is None else run.run_id
    problem = "no checkpoint"
    if run is not None:
        try:
            spectrum = spectrum_so_far(run.checkpoints)
            if len(spectrum):
                return spectrum
            problem = "no pair in its checkpoint"
        except EigenexpError as error:
            problem = str(error)
    raise CheckpointError(
        f"{name}: expected a result to report, got a run without one yet ({problem}); go on with: "
        f"eigenexp resume {name}"
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
    return plain(history) if isinstance(history, dict) else None


def read_convergence(path: Path) -> dict[str, Any] | None:
    """Return the curves of ``convergence.csv`` in the shape of ``ConvergenceLogging.history``.

    Cells that are no numbers are gaps; ``None`` for a file without the columns.
    """
    history: dict[str, Any] = {"products": [], "seconds": [], "residuals": {}, "eigenvalues": {}}
    try:
        if file_fault(path, _MOST_BYTES) is not None:
            return None
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
        elif name == "worst_residual":  # a study's, which keeps no curve a pair
            history["residuals"]["worst"] = column
    return history if history["products"] else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
