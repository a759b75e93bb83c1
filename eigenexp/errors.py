"""Errors a user can cause and mend: what was expected, what was got, what to do.

Everything here is an :class:`EigenexpError`; the command line prints its one line
and exits non-zero. Any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EigenexpError",
    "ImageError",
    "InputError",
    "InputTypeError",
    "ModelError",
    "ProductError",
    "RunNotFoundError",
    "TrackingError",
]


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
