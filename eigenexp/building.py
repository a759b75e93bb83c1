"""Picture, model, solver, loggers and trainer from a configuration."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from eigenexp.callbacks import (
    ConvergenceLogging,
    ConvergenceStopping,
    DistortionPictures,
    GracefulStop,
    ResultFiles,
    SolverCheckpoint,
    SolverProgressBar,
)
from eigenexp.errors import ConfigError, EigenexpError
from eigenexp.images import Picture, load_picture
from eigenexp.lightning_module import EigendistortionModule
from eigenexp.models import LayerOutput
from eigenexp.study.average import AverageModule

__all__ = [
    "TRUSTED_PACKAGES",
    "build_callbacks",
    "build_loggers",
    "build_model",
    "build_module",
    "build_picture",
    "build_trainer",
    "check_trusted",
]

TRUSTED_PACKAGES = (
    "eigenexp.models",
    "plenoptic.models",
    "torch.nn",
    "torchvision.models",
)
"""Packages whose classes a configuration read from a file or server may build."""


def build_picture(config: Mapping[str, Any]) -> Picture:
    """Load the picture in the precision of the trainer."""
    precision = str(config["trainer"]["precision"])
    dtype = torch.float64 if precision.startswith("64") else torch.float32
    options = {key: value for key, value in config["image"].items() if key != "path"}
    if options["source"] is None:
        raise ConfigError(
            "image: expected image.source=… (a picture's name or file), or image.path=… for many "
            "(a folder, a glob, a list), got neither"
        )
    return load_picture(**options, dtype=dtype)


def check_trusted(model: Mapping[str, Any]) -> None:
    """Refuse a ``_target_`` outside :data:`TRUSTED_PACKAGES`, at any depth.

    Raises
    ------
    ConfigError
        Naming the target and how to allow it.
    """
    for key, value in model.items():
        if key == "_target_":
            target = str(value)
            if not any(target.startswith(f"{package}.") for package in TRUSTED_PACKAGES):
                raise ConfigError(
                    f"model._target_: expected one from {', '.join(TRUSTED_PACKAGES)}, got "
                    f"{target!r} from a saved configuration; pass --trust if you know where it "
                    "comes from"
                )
        elif isinstance(value, Mapping):
            check_trusted(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for entry in value:
                if isinstance(entry, Mapping):
                    check_trusted(entry)


def build_model(config: Mapping[str, Any]) -> Any:
    """Import ``_target_``, call it with the other keys, and cut it at ``layer``.

    Raises
    ------
    ConfigError
        When the target cannot be imported or does not take these arguments.
    """
    arguments = dict(config)
    target = str(arguments.pop("_target_", ""))
    layer = arguments.pop("layer", None)
    built = {
        key: build_model(value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in arguments.items()
    }
    factory = _locate(target)
    try:
        model = factory(**built)
    except EigenexpError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model: expected arguments that {target} takes, got {sorted(built)} "
            f"({' '.join(str(error).split())})"
        ) from error
    if layer is None:
        return model
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.layer: expected a torch.nn.Module, got {type(model).__name__}")
    return LayerOutput(model, str(layer))


def _locate(target: str) -> Any:
    """Import ``package.module.Class``; a class may sit in a class."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise ConfigError(
                f"model._target_: {target} needs the package {error.name!r}; install it"
            ) from error
        for part in parts[length:]:
            found = getattr(found, part, None)
        if callable(found):
            return found
        break
    raise ConfigError(
        f"model._target_: expected an importable class or function, got {target!r}; "
        "write it as package.module.Name"
    )


def build_module(config: Mapping[str, Any], model: Any) -> tuple[EigendistortionModule, Picture]:
    """Return the Lightning module with the configured solver, and the picture it is solved at.

    With ``parallel=average`` that is the mean of the pictures.

    Raises
    ------
    ConfigError
        When ``parallel`` does not fit the pictures.
    """
    parallel, many = config["parallel"], config["image"]["path"] is not None
    allowed = ("pictures", "average") if many else ("columns",)
    if parallel is not None and parallel not in allowed:
        raise ConfigError(
            f"parallel: expected {' or '.join(allowed)} for "
            f"{'many pictures' if many else 'one picture'}, got {parallel!r}"
        )
    if parallel == "average":
        options = {k: v for k, v in config["image"].items() if k not in ("path", "source")}
        average = AverageModule(
            model, config["image"]["path"], image_options=options, **config["solver"]
        )
        picture = average.mean_picture()
        module: EigendistortionModule = average
    else:
        picture = build_picture(config)
        module = EigendistortionModule(model, picture, parallel=parallel, **config["solver"])
    module.run_metadata["config"] = dict(config)
    return module, picture


def build_loggers(config: Mapping[str, Any], run_id: str, mlflow: Logger | None) -> list[Logger]:
    """Return the chosen loggers, all writing under the run's id."""
    root, chosen = Path(config["root"]), config["logger"]
    loggers: list[Logger] = [] if mlflow is None else [mlflow]
    if chosen["tensorboard"]:
        loggers.append(
            TensorBoardLogger(root / "tb", name="", version=run_id, default_hp_metric=False)
        )
    if chosen["csv"]:
        loggers.append(CSVLogger(root / "csv", name="", version=run_id))
    return loggers


def build_callbacks(
    config: Mapping[str, Any], checkpoints: Path, results: ResultFiles
) -> list[L.Callback]:
    """Return the callbacks in the order in which they must see a step."""
    every = config["callbacks"]
    callbacks: list[L.Callback] = [
        ConvergenceStopping(),
        GracefulStop(),
        ConvergenceLogging(every["log_every"], every["angle_every"]),
        DistortionPictures(every["pictures_every"]),
        results,
        SolverCheckpoint(
            checkpoints,
            every_n_steps=every["checkpoint_every"],
            every_seconds=every["checkpoint_seconds"],
            keep=every["keep_checkpoints"],
        ),
    ]
    if config["trainer"]["enable_progress_bar"]:
        callbacks.append(SolverProgressBar(every["refresh_every"]))
    return callbacks


def build_trainer(
    config: Mapping[str, Any],
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
    arguments = dict(config["trainer"])
    try:
        return L.Trainer(
            **arguments,
            max_epochs=-1,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=config["root"],
            enable_model_summary=False,
            # Ours is in the list; Lightning refuses to hear of a switched-off one beside it.
            enable_checkpointing=checkpointing,
            num_sanity_val_steps=0,
        )
    except (
        ValueError,
        TypeError,
        RuntimeError,
        MisconfigurationException,
    ) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
