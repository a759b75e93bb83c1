"""The result of a fit as files: spectrum, table, figures; handed to loggers that keep artifacts."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from eigenexp.analysis.units import thresholds
from eigenexp.callbacks.analyses import as_csv, write_amplitude, write_card
from eigenexp.callbacks.convergence_logging import ConvergenceLogging
from eigenexp.callbacks.sending import (
    send_description,
    send_files,
    send_origin,
    send_pictures,
    send_point,
    send_result,
)
from eigenexp.callbacks.stopping import solver_module
from eigenexp.errors import CheckpointError
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.pictures.saving import PICTURE_FILE, save_picture
from eigenexp.runs.folder import CONVERGENCE_FILE
from eigenexp.runs.overview import description, result_row
from eigenexp.spectrum import SPECTRUM_FILE, Spectrum, StopReason
from eigenexp.storage.atomic import write_atomic

__all__ = ["ResultFiles", "convergence_table", "eigenvalue_table"]

log = logging.getLogger(__name__)


def eigenvalue_table(spectrum: Spectrum, image: Tensor | None = None) -> str:
    """Return the pairs as CSV: index, eigenvalue, residuals, bound, known digits, status, products.

    Numbers are whole; ``known`` is the eigenvalue as tables print it, ``3.9(2)e-06``. ``threshold``
    is 1/√λ, also as the peak and RMS in grey levels of 255 and, with the picture, as RMS contrast.
    """
    units = thresholds(spectrum, image)
    return as_csv([{**row, **unit} for row, unit in zip(spectrum.rows(), units, strict=True)])


def convergence_table(history: Mapping[str, Any]) -> str:
    """Return the curves as CSV: products, seconds, then ``residual/<i>`` and ``eigenvalue/<i>``.

    Residuals are ‖Fv − λv‖ / λmax; a pair not known yet is an empty cell.
    """
    columns = {"products": history["products"], "seconds": history["seconds"]}
    for kind, prefix in (("residuals", "residual"), ("eigenvalues", "eigenvalue")):
        columns |= {f"{prefix}/{name}": values for name, values in history[kind].items()}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow("" if math.isnan(value) else repr(value) for value in row)
    return text.getvalue()


class ResultFiles(L.Callback):
    """Write the picture when the fit begins, and spectrum, tables and figures when it ends.

    ``picture.safetensors`` lets a run be resumed and reported where its source is missing;
    ``spectrum.safetensors``, ``eigenvalues.csv`` and ``convergence.csv`` are the result. A fit that
    was stopped early writes what it has, with the status that says so.

    Parameters
    ----------
    dirpath
        Folder of the files; ``None`` for ``<trainer.default_root_dir>/results``.
    title
        Title of the figure of distortions; ``None`` for the names of model and picture.
    metadata
        Plain facts to keep in the spectrum's file.
    amplitude
        Whether to take true d′ at finite amplitudes once a solve has ended by itself:
        ``amplitude.json``, ``amplitude.csv`` and a figure, for some tens of forward passes a pair.
    card
        Whether to add the spectrum card then: ``card.json``, ``sensitivity_map.safetensors`` and a
        figure, for 300 products.

    Attributes
    ----------
    paths
        The files written, by file name.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        amplitude: bool = True,
        card: bool = False,
    ) -> None:
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.title = title
        self.metadata = dict(metadata or {})
        self.amplitude, self.card = amplitude, card
        self.paths: dict[str, Path] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the picture on the first rank and hand it to the loggers."""
        if not trainer.is_global_zero:
            return
        module = solver_module(pl_module)
        for logger in trainer.loggers:
            send_origin(logger, _picture_name(module), module.metadata())
        try:
            self._keep_picture(trainer, pl_module)
        except OSError as error:  # the solve comes first; tried again at its end
            log.warning("%s: the picture is not kept yet: %s", self.dirpath, error.strerror)

    def _keep_picture(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = solver_module(pl_module)
        folder = self._folder(trainer)
        source = module.image if module.picture is None else module.picture
        self.paths[PICTURE_FILE] = save_picture(source, folder / PICTURE_FILE)
        _hand_over(trainer, [self.paths[PICTURE_FILE]])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files on the first rank and hand them to the loggers.

        Raises
        ------
        CheckpointError
            When there is no room or permission; the last checkpoint holds the same pairs.
        """
        if not trainer.is_global_zero:
            return
        try:
            self.write(trainer, pl_module)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or self.dirpath}: expected room and permission to write the "
                f"results, got {error.strerror or error}; free space and resume from the last "
                "checkpoint, which is intact"
            ) from error

    def write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write everything now; a logger without artifacts is passed over."""
        if PICTURE_FILE not in self.paths:
            self._keep_picture(trainer, pl_module)
        module = solver_module(pl_module)
        spectrum = module.result().with_metadata({**module.metadata(), **self.metadata})
        folder = self._folder(trainer)
        self.paths[SPECTRUM_FILE] = spectrum.save(folder / SPECTRUM_FILE)
        table = folder / "eigenvalues.csv"
        write_atomic(table, eigenvalue_table(spectrum, module.image).encode())
        self.paths[table.name] = table
        history = _history(trainer)
        if history is not None:
            curves = folder / CONVERGENCE_FILE
            self.paths[curves.name] = write_atomic(curves, convergence_table(history).encode())
        title = self._title(module)
        figures = self._figures(trainer, module, spectrum, title)
        # A solve that was stopped goes on; and whoever stopped it waits.
        if module.solver.stop_reason is not StopReason.RUNNING and len(spectrum):
            if self.amplitude:
                paths, more = write_amplitude(module, spectrum, folder)
                self.paths, figures = {**self.paths, **paths}, {**figures, **more}
            if self.card:
                paths, more = write_card(module.operator, spectrum, folder)
                self.paths, figures = {**self.paths, **paths}, {**figures, **more}
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=120)
            write_atomic(path, buffer.getvalue())
            self.paths[path.name] = path
        kept = [path for name, path in self.paths.items() if name != PICTURE_FILE]
        _hand_over(trainer, kept)
        self._tell_loggers(trainer, spectrum, title, figures)

    def _tell_loggers(
        self, trainer: L.Trainer, spectrum: Spectrum, title: str, figures: Iterable[str]
    ) -> None:
        """Give every logger what its table of runs sorts by, a description, and the figures."""
        row = result_row(spectrum)
        numbers = ("lambda_max", "lambda_min", "pairs_proven")
        metrics = {name: float(row[name]) for name in numbers if row[name] is not None}
        text = description(title, spectrum)
        step = spectrum.num_products
        shown = {f"figure/{name}": _pixels(self.paths[f"{name}.png"]) for name in figures}
        for logger in trainer.loggers:
            send_point(logger, metrics, step)
            send_description(logger, text, {"status": row["status"]}, step)
            send_pictures(logger, shown, step)
            facts = {"method": spectrum.method, "tol": spectrum.tol, "status": row["status"]}
            send_result(logger, title, {**facts, "artifact": f"results/{SPECTRUM_FILE}"})

    def _title(self, module: EigendistortionModule) -> str:
        if self.title is not None:
            return self.title
        return f"{type(module.model).__name__} at {_picture_name(module)}"

    def _folder(self, trainer: L.Trainer) -> Path:
        folder = self.dirpath or Path(trainer.default_root_dir) / "results"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _figures(
        self, trainer: L.Trainer, module: EigendistortionModule, spectrum: Spectrum, title: str
    ) -> dict[str, Any]:
        from eigenexp.plots import convergence_figure, distortion_figure, spectrum_figure

        figures: dict[str, Any] = {}
        if len(spectrum):  # a solver stopped before its first estimate has no pair to show
            figures["distortions"] = distortion_figure(spectrum, module.image, title=title)
            figures["spectrum"] = spectrum_figure(spectrum)
        history = _history(trainer)
        if history is not None:
            figures["convergence"] = convergence_figure(history)
        return figures


def _picture_name(module: EigendistortionModule) -> str:
    return module.picture.name if module.picture is not None else "picture"


def _history(trainer: L.Trainer) -> dict[str, Any] | None:
    """Return what the convergence callback remembers, if there is one and it has a point."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ConvergenceLogging) and callback.history["products"]:
            return callback.history
    return None


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _hand_over(trainer: L.Trainer, paths: Iterable[Path]) -> None:
    """Give files to every logger that keeps artifacts; one without is passed over."""
    for logger in trainer.loggers:
        send_files(logger, paths, "results")
