"""Errors a user can cause and mend: what was expected, what was got, what to do.

Everything here is an :class:`EigenexpError`; the command line prints its one line
and exits non-zero. Any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import re

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EigenexpError",
    "ImageError",
    "InputError",
    "InputTypeError",
    "ModelDeviceError",
    "ModelError",
    "ModelPrecisionError",
    "ProductError",
    "RunNotFoundError",
    "TrackingError",
    "first_line",
    "one_line",
    "origin",
    "summary",
]


_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""What sets a terminal's colours and moves its cursor."""


class EigenexpError(Exception):
    """Base of every error that tells the user what to change.

    Attributes
    ----------
    in_all_processes
        Whether every process of a run raises it: the command line of the first one tells.
    """

    in_all_processes = False


class InputError(EigenexpError, ValueError):
    """A value that cannot be used."""


class InputTypeError(EigenexpError, TypeError):
    """A value of the wrong type or dtype."""


class ImageError(InputError):
    """A picture that cannot be read or used."""


class ModelError(InputError):
    """A model that has no usable Fisher information."""


class ModelPrecisionError(ModelError, TypeError):
    """A model whose response is of another dtype than the picture."""


class ModelDeviceError(ModelError, RuntimeError):
    """A model whose response is on another device than the picture."""


class ProductError(InputError):
    """A product handed to a solver that cannot be F times the block it asked for."""


class ConfigError(InputError):
    """A configuration key or value that does not exist or does not fit."""


class RunNotFoundError(InputError):
    """A run id or path that leads to no run."""


class CheckpointError(InputError):
    """A checkpoint or result file that is damaged, foreign or does not fit."""


class TrackingError(EigenexpError, RuntimeError):
    """A tracking store that cannot be used."""


def one_line(text: object, most: int | None = None) -> str:
    """Return what an error (or anything) says as one line, at most so many characters of it.

    A library's error may quote a file or a server: escapes, which a terminal obeys, are left out.
    """
    plain = "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", str(text)))
    return " ".join(plain.split())[:most]


def first_line(text: object, most: int = 200) -> str:
    """Return the first line of what an error (or anything) says; its type where it says nothing."""
    lines = str(text).strip().splitlines()
    return one_line(lines[0], most) if lines else type(text).__name__[:most]


def summary(error: BaseException, *, whole: bool = False) -> str:
    """Return an exception's type and the first line of its message, or all of it in one line."""
    if not str(error).strip():
        return type(error).__name__
    return f"{type(error).__name__}: {one_line(error) if whole else first_line(error)}"


def origin(error: BaseException) -> BaseException:
    """Return what a model itself raised, of the error that tells of it; else ``error``."""
    while isinstance(error, ModelError) and error.__cause__ is not None:
        error = error.__cause__
    return error
