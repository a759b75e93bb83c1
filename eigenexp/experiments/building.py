"""Picture, model, solver, loggers and trainer from a configuration."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from eigenexp.callbacks import (
    ConvergenceLogging,
    ConvergenceStopping,
    DistortionPictures,
    GracefulStop,
    ResultFiles,
    SolverCheckpoint,
    SolverProgressBar,
)
from eigenexp.callbacks.progress_lines import ProgressLines
from eigenexp.errors import ConfigError
from eigenexp.experiments.explaining import no_such_key
from eigenexp.experiments.noise import build_noise
from eigenexp.experiments.perturbations import build_perturbations
from eigenexp.experiments.schema import FitConfig, plain_config
from eigenexp.experiments.targets import build_target
from eigenexp.modules.average import AverageModule, load_mean
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.pictures.picture import Picture, load_picture
from eigenexp.runs.folder import RunFolder
from eigenexp.tracking.mlflow_logger import MLflowLogger

__all__ = [
    "build_callbacks",
    "build_loggers",
    "build_mlflow_logger",
    "build_module",
    "build_picture",
    "build_trainer",
    "check_trainer_arguments",
    "operator_options",
    "own_callbacks",
    "own_loggers",
]

MODEL_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""Precisions a network can have below the solver's, by their names in the configuration."""


def build_picture(settings: FitConfig, dtype: str | None = None) -> Picture:
    """Load the picture, by default in the precision of the trainer.

    With ``parallel=average`` that is the mean of the pictures.

    Raises
    ------
    ConfigError
        When ``parallel`` does not fit the pictures, or there are none.
    """
    is_double = str(settings.trainer.precision).startswith("64")
    chosen = dtype or (torch.float64 if is_double else torch.float32)
    image = asdict(settings.image)
    path = image.pop("path")
    parallel = settings.parallel
    allowed = ("columns",) if path is None else ("pictures", "average")
    if parallel is not None and parallel not in allowed:
        raise ConfigError(
            f"parallel: expected {' or '.join(allowed)} for "
            f"{'one picture' if path is None else 'many pictures'}, got {parallel!r}"
        )
    if _wants_mean(settings):
        image.pop("source", None)
        return load_mean(path, {**image, "dtype": chosen})[1]
    if image["source"] is None:
        raise ConfigError(
            "image: expected image.source=… (a picture's name or file), or image.path=… for many "
            "(a folder, a glob, a list), got neither"
        )
    return load_picture(**image, dtype=chosen)


def _wants_mean(settings: FitConfig) -> bool:
    return settings.parallel == "average" and settings.image.path is not None


def operator_options(settings: FitConfig) -> dict[str, Any]:
    """Return the options of the operator as its classes take them.

    Raises
    ------
    ConfigError
        When there is no such precision, or noise or perturbations cannot be made.
    """
    options = {
        **asdict(settings.operator),
        "noise": build_noise(settings.noise),
        "perturbations": build_perturbations(settings.perturbations, settings.image),
    }
    name = settings.operator.model_dtype
    if name is not None:
        if name not in MODEL_DTYPES:
            raise ConfigError(
                f"operator.model_dtype: expected one of {', '.join(MODEL_DTYPES)} or null, got "
                f"{name!r}"
            )
        options["model_dtype"] = MODEL_DTYPES[name]
    return options


def build_module(settings: FitConfig, model: Any, picture: Picture) -> EigendistortionModule:
    """Return the Lightning module with the configured solver."""
    options, solver = operator_options(settings), asdict(settings.solver)
    module: EigendistortionModule
    if _wants_mean(settings):
        many = asdict(settings.image)
        path = many.pop("path")
        del many["source"]
        module = AverageModule(
            model,
            path,
            image_options=many,
            operator_options=options,
            **solver,
        )
    else:
        module = EigendistortionModule(
            model,
            picture,
            parallel=settings.parallel,
            **solver,
            operator_options=options,
        )
    module.run_metadata["config"] = plain_config(settings)
    return module


def build_mlflow_logger(
    settings: FitConfig, root: Path, run: RunFolder | None, title: str
) -> MLflowLogger | None:
    """Return the run's MLflow logger, or ``None`` where none is wanted; ``run`` goes on."""
    if not settings.logger.mlflow:
        return None
    return MLflowLogger(
        experiment_name=settings.experiment_name,
        run_name=settings.run_name or title,
        run_id=None if run is None else run.run_id,
        root=root,
        tracking_uri=settings.logger.tracking_uri,
        tags=settings.tags,
    )


def build_loggers(settings: FitConfig, run_id: str, mlflow: Logger | None) -> list[Logger]:
    """Return the chosen loggers of ours, all writing under the run's id."""
    root, chosen = Path(settings.root), settings.logger
    loggers: list[Logger] = [] if mlflow is None else [mlflow]
    if chosen.tensorboard:
        loggers.append(
            TensorBoardLogger(root / "tb", name="", version=run_id, default_hp_metric=False)
        )
    if chosen.csv:
        # Lightning deletes the table it finds in its place: a resumed run begins one beside it.
        version, count = run_id, 1
        while (root / "csv" / version / "metrics.csv").exists():
            count += 1
            version = f"{run_id}-{count}"
        loggers.append(CSVLogger(root / "csv", name="", version=version))
    return loggers


def own_loggers(settings: FitConfig) -> list[Logger]:
    """Return the person's own loggers.

    Raises
    ------
    ConfigError
        When one cannot be built, or is no logger.
    """
    return _own(settings.logger.others, "logger", Logger)


def own_callbacks(settings: FitConfig) -> list[L.Callback]:
    """Return the person's own callbacks.

    Raises
    ------
    ConfigError
        When one cannot be built, or is no callback.
    """
    return _own(settings.callbacks.others, "callbacks", L.Callback)


def _own(others: Mapping[str, Any], group: str, kind: type[Any]) -> list[Any]:
    """Build a person's own loggers or callbacks."""
    built = []
    for name, config in others.items():
        one = build_target(config, f"{group}.{name}")
        if not isinstance(one, kind):
            raise ConfigError(
                f"{group}.{name}: expected a Lightning {kind.__name__}, got {type(one).__name__}"
            )
        built.append(one)
    return built


def build_callbacks(
    settings: FitConfig, checkpoints: Path, results: ResultFiles, stop: GracefulStop
) -> list[L.Callback]:
    """Return our callbacks in the order in which they must see a step."""
    every = settings.callbacks
    callbacks: list[L.Callback] = [
        ConvergenceStopping(),
        stop,
        ConvergenceLogging(every.log_every, every.angle_every),
        DistortionPictures(every.pictures_every),
        results,
        SolverCheckpoint(
            checkpoints,
            every_n_steps=every.checkpoint_every,
            every_seconds=every.checkpoint_seconds,
            keep=every.keep_checkpoints,
            max_share=every.checkpoint_share,
        ),
    ]
    if settings.trainer.enable_progress_bar:
        # A bar is redrawn in its line, which a file or pipe keeps every time.
        on_screen = sys.stderr.isatty()
        callbacks.append(SolverProgressBar(every.refresh_every) if on_screen else ProgressLines())
    return callbacks


_REFUSED_ARGUMENTS = {
    "accumulate_grad_batches": "a step's products are no gradients to be summed",
    "gradient_clip_val": "a step's products are no gradients to be clipped",
    "gradient_clip_algorithm": "a step's products are no gradients to be clipped",
    "logger": "choose by logger=… or +logger.mine._target_=…",
    "callbacks": "choose by +callbacks.mine._target_=…",
}


def check_trainer_arguments(others: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Refuse what ``lightning.Trainer`` does not take, or a solve cannot use.

    Parameters
    ----------
    others
        Arguments that have no key of their own in the configuration.
    known
        Those that have.

    Raises
    ------
    ConfigError
        Naming the argument, and what is like it.
    """
    taken = set(inspect.signature(L.Trainer).parameters)
    for name in others:
        if name in _REFUSED_ARGUMENTS:
            raise ConfigError(f"trainer.{name}: expected none, {_REFUSED_ARGUMENTS[name]}")
        if name not in taken:
            usable = sorted(taken - set(_REFUSED_ARGUMENTS) | set(known))
            raise ConfigError(no_such_key(f"trainer.{name}", usable))


def build_trainer(
    settings: FitConfig,
    loggers: list[Logger],
    callbacks: list[L.Callback],
    *,
    checkpointing: bool = True,
) -> L.Trainer:
    """Return ``lightning.Trainer`` with the configured arguments.

    ``checkpointing`` is off where the callbacks hold none of Lightning's kind.

    Raises
    ------
    ConfigError
        When Lightning refuses them (no such accelerator, precision or strategy).
    """
    own = {field.name: getattr(settings.trainer, field.name) for field in fields(settings.trainer)}
    # Lightning adds a bar of its own where it finds none.
    own["enable_progress_bar"] = any(isinstance(one, ProgressBar) for one in callbacks)
    others = own.pop("others")
    check_trainer_arguments(others)
    ours = {
        "max_epochs": -1,
        "default_root_dir": settings.root,
        "enable_model_summary": False,
        # Ours is in the list; Lightning refuses to hear of a switched-off one beside it.
        "enable_checkpointing": checkpointing,
        "num_sanity_val_steps": 0,
    }
    built = {
        name: build_target(value, f"trainer.{name}")
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for name, value in others.items()
    }
    try:
        return L.Trainer(**{**ours, **own, **built}, logger=loggers, callbacks=callbacks)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        MisconfigurationException,
    ) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
