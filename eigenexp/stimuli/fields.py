"""Plain values of a file as a dataclass, each checked against the type of its field."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from eigenexp.errors import InputError

__all__ = ["read_fields"]

T = TypeVar("T")


def read_fields(kind: type[T], facts: Any, where: str) -> T:
    """Return a dataclass from plain values, each checked against the type of its field.

    Raises
    ------
    InputError
        Naming the field.
    """
    if not isinstance(facts, Mapping):
        raise InputError(f"{where}: expected a mapping, got {type(facts).__name__}")
    types_of = typing.get_type_hints(kind)
    unknown = [str(name) for name in facts if name not in types_of]
    missing = [name for name in types_of if name not in facts]
    if unknown or missing:
        raise InputError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return kind(**{
        name: _value(types_of[name], facts[name], f"{where}.{name}") for name in types_of
    })  # fmt: skip


def _value(kind: Any, value: Any, where: str) -> Any:
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if value is None else _value(arguments[0], value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_value(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return read_fields(typing.cast(Any, kind), value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"{where}: expected a finite number, got {value}")
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value
