"""Objects that a configuration names: found, trusted or refused, built."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eigenexp.errors import ConfigError, EigenexpError, ModelError
from eigenexp.experiments.noise_schema import noise_function
from eigenexp.experiments.schema import FitConfig
from eigenexp.models import LayerOutput, Normalized
from eigenexp.models.weights import load_weights, say_weights, weights_note

__all__ = [
    "TRUSTED_PACKAGES",
    "build_function",
    "build_model",
    "build_target",
    "check_settings_trusted",
    "check_trusted",
]

TRUSTED_PACKAGES = (
    "eigenexp.models",
    "plenoptic.models",
    "torch.nn",
    "torchvision.models",
)
"""Packages whose classes a model in a configuration read from a file or server may be built of."""


def check_settings_trusted(settings: FitConfig) -> None:
    """Refuse saved settings that would have foreign code run.

    Models may be built of :data:`TRUSTED_PACKAGES`; loggers, callbacks and arguments of the trainer
    of nothing, and files are written nowhere but where runs are.

    Raises
    ------
    ConfigError
        Naming the key, and how to allow it.
    """
    check_trusted(settings.model)
    foreign = noise_function(settings.noise)
    if foreign is not None:
        raise ConfigError(
            f"{foreign}: expected no function in a saved configuration, got one; pass --trust if "
            "you know where it comes from"
        )
    groups = {
        "logger": settings.logger.others,
        "callbacks": settings.callbacks.others,
        "trainer": settings.trainer.others,
    }
    for group, others in groups.items():
        target = _first_target(others)
        if target is not None or "default_root_dir" in others:
            raise ConfigError(
                f"{group}: expected eigenexp's own in a saved configuration, got "
                f"{target or 'default_root_dir'!r}; pass --trust if you know where it comes from"
            )


def _first_target(value: Any) -> str | None:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return str(value["_target_"])
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((found for entry in value if (found := _first_target(entry))), None)
    return None


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
    """Build the model a configuration names, cut it at ``layer``, scale what it is given.

    Random numbers that a class draws are the same in every process (seed 0), so that a run with
    random weights can be resumed, and a sweep's job has the weights that it would have alone. The
    global random state stays as it was.

    Parameters
    ----------
    config
        ``_target_`` (``package.module.Class``, or ``/path/file.py:Class``), its arguments, and
        where the class takes none of these names itself: ``layer``; ``weights``, a file of its
        state (safetensors, or what ``torch.save`` wrote of ``state_dict()``); ``mean`` and ``std``
        of the pictures it was trained with (:class:`~eigenexp.models.Normalized`).
    trust
        Whether any class may be built; else those that :data:`TRUSTED_PACKAGES` define (not what
        their modules import: ``torch.nn.….os.system`` is none of them).

    Raises
    ------
    ConfigError
        When the target cannot be imported or does not take these arguments.
    """
    if not trust:
        check_trusted(config)
    arguments, ours = _parted(config, trust)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        model = build_target(arguments, "model", trust=trust)
        draws = not torch.equal(torch.get_rng_state(), before)
    if not ours and not draws:
        return model
    if not isinstance(model, nn.Module):
        if not ours:
            return model
        name = next(iter(ours))
        raise ConfigError(f"model.{name}: expected a torch.nn.Module, got {type(model).__name__}")
    if "weights" in ours:
        _load_weights(model, str(ours["weights"]))
    elif draws and not weights_note(model):
        say_weights(
            model,
            f"{type(model).__name__} drew random numbers (seed 0) when it was made, and "
            "model.weights names no file: unless it loads its weights itself, they are random",
        )
    if "layer" in ours:
        model = LayerOutput(model, str(ours["layer"]))
    if "mean" in ours or "std" in ours:
        model = Normalized(model, ours.get("mean"), ours.get("std"))
    return model


_OURS = ("layer", "weights", "mean", "std")


def _parted(config: Mapping[str, Any], trust: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the class, and those that are given and that we see to."""
    arguments = dict(config)
    factory = _locate(str(config.get("_target_", "")), "model", trust)
    ours = {
        name: arguments.pop(name)
        for name in _OURS
        if name in arguments and not _takes(factory, name)
    }
    return arguments, {name: value for name, value in ours.items() if value is not None}


def build_target(config: Mapping[str, Any], key: str, *, trust: bool = True) -> Any:
    """Import ``_target_`` and call it with the other keys, which may hold targets themselves.

    Parameters
    ----------
    config
        ``_target_`` and its arguments.
    key
        What it is in the configuration, for messages.
    trust
        As in :func:`build_model`.

    Raises
    ------
    ConfigError
        When the target cannot be imported or does not take these arguments.
    """
    target = str(config.get("_target_", ""))
    built = {
        name: build_target(value, f"{key}.{name}", trust=trust)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for name, value in config.items()
        if name != "_target_"
    }
    factory = _locate(target, key, trust)
    try:
        return factory(**built)
    except EigenexpError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{key}: expected arguments that {target} takes, got {sorted(built)} "
            f"({' '.join(str(error).split())})"
        ) from error


def build_function(target: str, key: str) -> Any:
    """Import the function that ``package.module.name`` or ``/path/file.py:name`` leads to.

    Raises
    ------
    ConfigError
        When there is none.
    """
    found = _from_file(target, key) if ".py:" in target else _from_package(target, key)
    if not callable(found):
        raise ConfigError(
            f"{key}: expected an importable function, got {target!r}; write it as "
            "package.module.name, or as ./file.py:name"
        )
    return found


def _locate(target: str, key: str, trust: bool) -> Any:
    """Import what a target names, and judge it by what it led to."""
    if not trust and not _is_trusted(target):
        raise _distrust(target)
    found = _from_file(target, key) if ".py:" in target else _from_package(target, key)
    if not callable(found):
        raise ConfigError(
            f"{key}._target_: expected an importable class or function, got {target!r}; "
            "write it as package.module.Name, or as ./file.py:Name"
        )
    if not trust and not _may_be_built(found):
        raise _distrust(target)
    return found


def _from_package(target: str, key: str) -> Any:
    """Import ``package.module.Class``; a class may sit in a class, a package in this folder."""
    parts = target.split(".")
    if not all(parts) or len(parts) < 2:
        return None
    _look_here(os.getcwd())
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise ConfigError(
                f"{key}._target_: {target} needs the package {error.name!r}; install it"
            ) from error
        except (ImportError, SyntaxError) as error:
            raise _broken(target, key, error) from error
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def _from_file(target: str, key: str) -> Any:
    """Import ``/path/file.py:Class``; modules beside the file can be imported by it."""
    path, _, name = target.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{key}._target_: expected a Python file, got {path!r}, which is none")
    _look_here(str(file.absolute().parent))
    loaded = sys.modules.get(file.stem)
    if loaded is None or getattr(loaded, "__file__", None) != str(file.absolute()):
        spec = importlib.util.spec_from_file_location(file.stem, file.absolute())
        if spec is None or spec.loader is None:
            return None
        loaded = importlib.util.module_from_spec(spec)
        before = sys.modules.get(file.stem)
        sys.modules[file.stem] = loaded  # dataclasses and pickle look a class's module up there
        try:
            spec.loader.exec_module(loaded)
        except (ImportError, SyntaxError) as error:
            raise _broken(target, key, error) from error
        finally:
            if before is not None:
                sys.modules[file.stem] = before
    found: Any = loaded
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        own = sorted(
            key
            for key, value in vars(loaded).items()
            if isinstance(value, type) and value.__module__ == loaded.__name__
        )
        raise ConfigError(
            f"{key}._target_: expected a class or function of {path}, got {name!r}; it has "
            f"{', '.join(own) or 'no class'}"
        )
    return found


def _broken(target: str, key: str, error: ImportError | SyntaxError) -> ConfigError:
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" in {error.filename}, line {error.lineno}"
        text = error.msg
    else:
        text = " ".join(str(error).split())
    return ConfigError(f"{key}._target_: {target}: {type(error).__name__}{where}: {text}")


def _look_here(folder: str) -> None:
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # behind what is installed


def _takes(factory: Any, name: str) -> bool:
    """Whether a class or function has an argument of that name."""
    try:
        return name in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _load_weights(model: nn.Module, path: str) -> None:
    try:
        load_weights(model, path)
    except ModelError as error:
        raise ConfigError(str(error)) from error
