"""The weights of a model: read from a file without executing anything, and where they are from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from eigenexp.errors import ModelError, one_line, summary
from eigenexp.storage.archives import archive_fault, larger_than_storage, tensors_in

__all__ = ["load_weights", "say_weights", "weights_note"]

# Beside the modules, not in them: they are other people's classes.
_NOTES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def say_weights(model: nn.Module, note: str) -> None:
    """Remember what a reader of a result must know of a model's weights; "" for nothing."""
    _NOTES[model] = note


def weights_note(model: Any) -> str:
    """Return what is known of the weights of a model, or of one within it; "" for nothing."""
    if not isinstance(model, nn.Module):
        return ""
    return next((note for part in model.modules() if (note := _NOTES.get(part))), "")


def load_weights(model: nn.Module, path: str) -> None:
    """Put a file's state into a model: safetensors, or what ``torch.save`` wrote of a state.

    Nothing in the file is executed. Of a checkpoint with a ``state_dict`` in it that is taken.

    Raises
    ------
    ModelError
        When there is no such file, or it holds another state.
    """
    if not Path(path).is_file():
        raise ModelError(f"model.weights: expected a file, got {path!r}, which is none")
    try:
        model.load_state_dict(_read_state(Path(path)))
    except Exception as error:  # whatever a reader raises: the file is not what it should be
        raise ModelError(
            f"model.weights: expected the state of a {type(model).__name__}, got {path} "
            f"({one_line(summary(error, whole=True), 300)})"
        ) from error
    say_weights(model, "")


def _read_state(path: Path) -> Any:
    """Return what a file of weights holds; no more memory is taken than the file has bytes."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with path.open("rb") as file:
        fault = archive_fault(file)
    if fault is not None:
        raise ValueError(fault)
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if any(map(larger_than_storage, tensors_in(state))):
        raise ValueError("a tensor that claims more values than the file holds")
    return state
