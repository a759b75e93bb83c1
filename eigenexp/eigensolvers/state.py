"""The state of a solver, declared once: saving, loading, casting and moving follow from it.

A field says by its kind what it is: ``vectors`` live in the solver's dtype on its device,
``numbers`` are float64 on the CPU whatever the solver's dtype, ``part`` is an object that saves
itself, and all else is plain (numbers, strings, lists of them) and is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from eigenexp.errors import CheckpointError

__all__ = ["Part", "State", "numbers", "part", "present", "vectors"]


class Part(Protocol):
    """An object with a state of its own."""

    def export(self) -> dict[str, Any]:
        """Return tensors (copies) and plain containers."""

    def restore(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Take up what :meth:`export` returned, in the dtype and on the device of ``like``."""


def vectors() -> Any:
    """Declare tensors in the solver's dtype, on its device: a tensor, a list or dict, or None."""
    return field(default=None, metadata={"kind": "vectors"})


def numbers(*, begins_empty: bool = True) -> Any:
    """Declare a float64 tensor on the CPU, or None; at first empty, or None."""
    return field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float64) if begins_empty else None,
        metadata={"kind": "numbers"},
    )


def part(
    make: Callable[[Mapping[str, Any], Tensor], Any] | None = None,
    save: Callable[[Any], dict[str, Any]] | None = None,
) -> Any:
    """Declare an object that saves itself; ``make(saved, like)`` builds one that may be None.

    ``save`` returns its state where it has no ``export``.
    """
    return field(default=None, metadata={"kind": "part", "make": make, "save": save})


@dataclass
class State:
    """Base of the states; subclasses are dataclasses and declare their fields."""

    def export(self) -> dict[str, Any]:
        """Return copies of all fields as tensors and plain containers."""
        found = {}
        for item in fields(self):
            value, save = getattr(self, item.name), item.metadata.get("save")
            found[item.name] = save(value) if save and value is not None else _copied(value)
        return found

    def restore(self, saved: Mapping[str, Any], like: Tensor) -> None:
        """Take up what :meth:`export` returned, in the dtype and on the device of ``like``.

        A field that was not saved, as it is younger than the state, stays as it is.
        """
        for item in fields(self):
            if item.name not in saved:
                continue
            value, kind = saved[item.name], item.metadata.get("kind")
            if kind == "vectors":
                setattr(self, item.name, _cast(value, like))
            elif kind == "numbers":
                # Copies, so that nothing outside can change the state.
                setattr(self, item.name, _cast(value, torch.empty(0, dtype=torch.float64)))
            elif kind == "part":
                make = item.metadata["make"]
                if make is None:
                    getattr(self, item.name).restore(value, like)
                else:
                    setattr(self, item.name, None if value is None else make(value, like))
            else:
                setattr(self, item.name, _copied(value))


def present(tensor: Tensor | None) -> Tensor:
    """Return a field that a state has by now; a CheckpointError where it came without."""
    if tensor is None:
        raise CheckpointError("state: expected a whole one, got one without its tensors")
    return tensor


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.export()


def _cast(value: Any, like: Tensor) -> Any:
    if isinstance(value, Tensor):
        dtype = like.dtype if value.is_floating_point() else value.dtype
        return value.detach().to(device=like.device, dtype=dtype, copy=True)
    if isinstance(value, dict):
        return {key: _cast(one, like) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cast(one, like) for one in value]
    return value
