"""Points, pictures, files and texts handed to any logger, in the cheapest way that it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from eigenexp.callbacks.event_file import EventFile

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter

__all__ = [
    "enlarge",
    "forget_points_from",
    "send_description",
    "send_files",
    "send_origin",
    "send_pictures",
    "send_point",
    "send_result",
    "send_settings",
    "write_directly",
]

NOTE_TAG = "mlflow.note.content"
"""The tag MLflow shows as a run's description."""
TABLE_METRICS = ("lambda_max", "lambda_min", "worst_residual", "pairs_proven", "products")
"""The last values that tables of runs sort by."""
_SHOWN_SIDE = 256
_OF_A_PAIR = re.compile(r"(?:eigenvalue|residual|residual_log10)/(-?\d+)")
# With three curves a pair and 19 of the run a page has 40 charts.
_SHOWN_PAIRS = range(-3, 4)
_OF_A_MODEL = ("class", "weights_sha256", "num_parameters")


def write_directly(logger: Logger) -> EventFile | None:
    """Let a TensorBoard logger write in this thread from now on; other loggers stay as they are."""
    writer = _file_writer(logger)
    if writer is None:
        return None
    if not isinstance(writer.event_writer, EventFile):
        writer.event_writer.close()
        writer.event_writer = EventFile(writer.event_writer.get_logdir())
    return writer.event_writer


def send_point(logger: Logger, metrics: Mapping[str, float], step: int) -> None:
    """Hand one point of every metric to ``logger``; to a TensorBoard file as one event.

    A logger made with a prefix puts it before each name itself, and tells it by no public name.
    """
    writer = None if getattr(logger, "_prefix", "") else _file_writer(logger)
    if writer is None:
        few = hasattr(logger, "shows_few_metrics")
        logger.log_metrics(_few(metrics) if few else dict(metrics), step=step)
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
    writer.add_summary(Summary(value=values), step)


def _few(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out what a page of charts has no room for: all pairs but those next to the ends."""
    return {
        name: value
        for name, value in metrics.items()
        if not (match := _OF_A_PAIR.fullmatch(name)) or int(match[1]) in _SHOWN_PAIRS
    }


def forget_points_from(logger: Logger, step: int) -> None:
    """Tell TensorBoard that a resumed run logs again from ``step`` on, so that no point is double.

    MLflow's logger knows by itself.
    """
    events = write_directly(logger)
    if events is not None:
        events.go_on_from(step - 1)


def _file_writer(logger: Logger) -> FileWriter | None:
    """Return what writes a TensorBoard logger's events, ``None`` for any other logger."""
    if not isinstance(logger, TensorBoardLogger):
        return None
    from torch.utils.tensorboard import SummaryWriter

    summaries = logger.experiment
    return summaries.file_writer if isinstance(summaries, SummaryWriter) else None


def send_pictures(logger: Logger, pictures: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
    """Hand uint8 ``(H, W[, 3])`` pictures to ``logger``; one that takes none is passed over."""
    if isinstance(logger, TensorBoardLogger):
        for key, pixels in pictures.items():
            layout = "HWC" if pixels.ndim == 3 else "HW"
            logger.experiment.add_image(key, pixels, step, dataformats=layout)
    elif isinstance(logger, MLFlowLogger):  # Lightning's own
        for key, pixels in pictures.items():
            logger.experiment.log_image(logger.run_id, pixels, key=key, step=step)
    elif hasattr(logger, "log_pictures"):
        logger.log_pictures(pictures, step)
    elif hasattr(logger, "log_image"):  # the signature of Lightning's other loggers
        for key, pixels in pictures.items():
            logger.log_image(key=key, images=[pixels], step=step)


def enlarge(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a small picture with each pixel as a square, so that a dashboard's card is filled.

    MLflow shows pictures in their own size, in which one of 32×32 is a stamp.
    """
    times = _SHOWN_SIDE // max(pixels.shape[:2])
    if times < 2:
        return pixels
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def send_files(logger: Logger, paths: Iterable[Path], folder: str) -> None:
    """Hand files to a logger that keeps artifacts; one without is passed over."""
    if isinstance(logger, MLFlowLogger):  # Lightning's own
        for path in paths:
            logger.experiment.log_artifact(logger.run_id, str(path), folder)
        return
    log_artifact = getattr(logger, "log_artifact", None)
    if log_artifact is not None:
        for path in paths:
            log_artifact(path, folder)


def send_description(logger: Logger, markdown: str, tags: Mapping[str, str], step: int) -> None:
    """Give a run its description: MLflow's, or TensorBoard's text; and tags, where there are any.

    Parameters
    ----------
    logger
        Any; one with neither is passed over.
    markdown
        The description, its foreign texts escaped.
    tags
        Short facts that tables of runs sort by.
    step
        Place of a text on TensorBoard's slider.
    """
    if isinstance(logger, TensorBoardLogger):
        if _file_writer(logger) is not None:
            logger.experiment.add_text("summary", markdown, step)
        return
    noted = {**tags, NOTE_TAG: markdown}
    if isinstance(logger, MLFlowLogger):  # Lightning's own
        for key, value in noted.items():
            logger.experiment.set_tag(logger.run_id, key, value)
    elif hasattr(logger, "log_tags"):
        logger.log_tags(noted)


def send_origin(logger: Logger, picture: str, metadata: Mapping[str, Any]) -> None:
    """Tell a logger that keeps such things which picture and model a run is about.

    Parameters
    ----------
    logger
        Any; one without inputs (all but :class:`~eigenexp.MLflowLogger`) is passed over.
    picture
        The picture's name.
    metadata
        Of the module: the picture's record and the model's fingerprint.
    """
    if not (hasattr(logger, "log_dataset") and hasattr(logger, "log_model_input")):
        return
    record, model = metadata.get("picture") or {}, metadata.get("model") or {}
    if record.get("sha256"):
        shown = ("shape", "crop", "resize", "channels", "dtype", "value_range")
        facts = {key: record[key] for key in shown if record.get(key) is not None}
        where = str(record.get("source") or picture)
        logger.log_dataset(picture, str(record["sha256"]), where, facts)
    key = f"{model.get('class')} {model.get('weights_sha256') or model.get('output_sha256')}"
    told = {name: model[name] for name in _OF_A_MODEL if name in model}
    logger.log_model_input(str(model.get("class")).rpartition(".")[2], told, key)


def send_result(logger: Logger, name: str, facts: Mapping[str, Any]) -> None:
    """Tell a logger that keeps such things of a run's result, behind the points that rank it."""
    if hasattr(logger, "log_result"):
        logger.log_result(name, facts)


def send_settings(logger: Logger, settings: Mapping[str, Any]) -> None:
    """Hand over a run's settings; TensorBoard gets them as a line of its table of runs."""
    write_directly(logger)
    writer = _file_writer(logger)
    if writer is None:
        logger.log_hyperparams(dict(settings))
        return
    from torch.utils.tensorboard import summary

    make: Callable[..., tuple[Any, Any, Any]] = summary.hparams
    plain = {key: value if _is_plain(value) else str(value) for key, value in settings.items()}
    # The last value of each metric stands in the table, so the names alone are said here.
    for line in make(plain, dict.fromkeys(TABLE_METRICS, 0.0)):
        writer.add_summary(line)


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str))
