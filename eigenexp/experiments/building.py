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
from eigenexp.models import LayerOutput
from eigenexp.modules.average import AverageModule, load_mean
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.pictures.picture import Picture, load_picture
from eigenexp.runs.folder import RunFolder
from eigenexp.tracking.mlflow_logger import MLflowLogger

__all__ = [
    "TRUSTED_PACKAGES",
    "build_callbacks",
    "build_loggers",
    "build_mlflow_logger",
    "build_model",
    "build_module",
    "build_picture",
    "build_trainer",
    "check_trusted",
    "operator_options",
]

TRUSTED_PACKAGES = (
    "eigenexp.models",
    "plenoptic.models",
    "torch.nn",
    "torchvision.models",
)
"""Packages whose classes a configuration read from a file or server may build."""


MODEL_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""Precisions a network can have below the solver's, by their names in the configuration."""


def build_picture(config: Mapping[str, Any], dtype: str | None = None) -> Picture:
    """Load the picture, by default in the precision of the trainer.

    With ``parallel=average`` that is the mean of the pictures.

    Raises
    ------
    ConfigError
        When ``parallel`` does not fit the pictures, or there are none.
    """
    is_double = str(config["trainer"]["precision"]).startswith("64")
    chosen = dtype or (torch.float64 if is_double else torch.float32)
    image = dict(config["image"])
    path = image.pop("path", None)
    parallel = config.get("parallel")
    allowed = ("columns",) if path is None else ("pictures", "average")
    if parallel is not None and parallel not in allowed:
        raise ConfigError(
            f"parallel: expected {' or '.join(allowed)} for "
            f"{'one picture' if path is None else 'many pictures'}, got {parallel!r}"
        )
    if _wants_mean(config):
        image.pop("source", None)
        return load_mean(path, {**image, "dtype": chosen})[1]
    if image["source"] is None:
        raise ConfigError(
            "image: expected image.source=… (a picture's name or file), or image.path=… for many "
            "(a folder, a glob, a list), got neither"
        )
    return load_picture(**image, dtype=chosen)


def _wants_mean(config: Mapping[str, Any]) -> bool:
    return config.get("parallel") == "average" and config["image"].get("path") is not None


def check_trusted(model: Any) -> None:
    """Refuse a ``_target_`` outside :data:`TRUSTED_PACKAGES`, at any depth.

    The name alone is judged here; :func:`build_model` judges what it leads to.

    Raises
    ------
    ConfigError
        Naming the target and how to allow it.
    """
    if isinstance(model, Mapping):
        for key, value in model.items():
            if key == "_target_" and not _is_trusted(str(value)):
                raise _distrust(str(value))
            check_trusted(value)
    elif isinstance(model, Sequence) and not isinstance(model, str):
        for entry in model:
            check_trusted(entry)


def _is_trusted(name: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in TRUSTED_PACKAGES)


def _may_be_built(factory: Any) -> bool:
    """Judge what a name led to by where it is defined; of torch.nn, modules alone."""
    home = getattr(factory, "__module__", None)
    if not isinstance(home, str) or not _is_trusted(home):
        return False
    if isinstance(factory, type):
        return issubclass(factory, nn.Module)
    return not f"{home}.".startswith("torch.nn.")


def _distrust(target: str) -> ConfigError:
    return ConfigError(
        f"model._target_: expected one from {', '.join(TRUSTED_PACKAGES)}, got {target!r} from a "
        "saved configuration; pass --trust if you know where it comes from"
    )


def build_model(config: Mapping[str, Any], *, trust: bool = True) -> Any:
    """Import ``_target_``, call it with the other keys, and cut it at ``layer``.

    Parameters
    ----------
    config
        ``_target_``, its arguments, ``layer``.
    trust
        Whether any class may be built; else those that :data:`TRUSTED_PACKAGES` define (not what
        their modules import: ``torch.nn.….os.system`` is none of them).

    Raises
    ------
    ConfigError
        When the target cannot be imported or does not take these arguments.
    """
    arguments = dict(config)
    target = str(arguments.pop("_target_", ""))
    layer = arguments.pop("layer", None)
    if not trust:
        check_trusted(config)
    built = {
        key: build_model(value, trust=trust)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for key, value in arguments.items()
    }
    factory = _locate(target)
    if not trust and not _may_be_built(factory):
        raise _distrust(target)
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


def operator_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the operator as its classes take them.

    Raises
    ------
    ConfigError
        When there is no such precision.
    """
    # A run saved before there was this group has the defaults.
    options = dict(config.get("operator") or {})
    name = options.get("model_dtype")
    if name is not None:
        if name not in MODEL_DTYPES:
            raise ConfigError(
                f"operator.model_dtype: expected one of {', '.join(MODEL_DTYPES)} or null, got "
                f"{name!r}"
            )
        options["model_dtype"] = MODEL_DTYPES[name]
    return options


def build_module(config: Mapping[str, Any], model: Any, picture: Picture) -> EigendistortionModule:
    """Return the Lightning module with the configured solver."""
    options = operator_options(config)
    module: EigendistortionModule
    if _wants_mean(config):
        many = {k: v for k, v in config["image"].items() if k not in ("path", "source")}
        module = AverageModule(
            model,
            config["image"]["path"],
            image_options=many,
            operator_options=options,
            **config["solver"],
        )
    else:
        module = EigendistortionModule(
            model,
            picture,
            parallel=config.get("parallel"),
            **config["solver"],
            operator_options=options,
        )
    module.run_metadata["config"] = dict(config)
    return module


def build_mlflow_logger(
    settings: Mapping[str, Any], root: Path, run: RunFolder | None, title: str
) -> MLflowLogger | None:
    """Return the run's MLflow logger, or ``None`` where none is wanted; ``run`` goes on."""
    if not settings["logger"]["mlflow"]:
        return None
    return MLflowLogger(
        experiment_name=settings["experiment_name"],
        run_name=settings["run_name"] or title,
        run_id=None if run is None else run.run_id,
        root=root,
        tracking_uri=settings["logger"]["tracking_uri"],
        tags=settings["tags"],
    )


def build_loggers(config: Mapping[str, Any], run_id: str, mlflow: Logger | None) -> list[Logger]:
    """Return the chosen loggers, all writing under the run's id."""
    root, chosen = Path(config["root"]), config["logger"]
    loggers: list[Logger] = [] if mlflow is None else [mlflow]
    if chosen["tensorboard"]:
        loggers.append(
            TensorBoardLogger(root / "tb", name="", version=run_id, default_hp_metric=False)
        )
    if chosen["csv"]:
        # Lightning deletes the table it finds in its place: a resumed run begins one beside it.
        version, count = run_id, 1
        while (root / "csv" / version / "metrics.csv").exists():
            count += 1
            version = f"{run_id}-{count}"
        loggers.append(CSVLogger(root / "csv", name="", version=version))
    return loggers


def build_callbacks(
    config: Mapping[str, Any], checkpoints: Path, results: ResultFiles, stop: GracefulStop
) -> list[L.Callback]:
    """Return the callbacks in the order in which they must see a step."""
    every = config["callbacks"]
    callbacks: list[L.Callback] = [
        ConvergenceStopping(),
        stop,
        ConvergenceLogging(every["log_every"], every["angle_every"]),
        DistortionPictures(every["pictures_every"]),
        results,
        SolverCheckpoint(
            checkpoints,
            every_n_steps=every["checkpoint_every"],
            every_seconds=every["checkpoint_seconds"],
            keep=every["keep_checkpoints"],
            max_share=every["checkpoint_share"],
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
