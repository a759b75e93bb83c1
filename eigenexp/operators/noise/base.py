"""What every noise model has: its factor at a response, its response g, its description."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError, ModelError
from eigenexp.operators.noise.factors import Factor
from eigenexp.storage.hashing import tensor_sha256

__all__ = ["Noise", "check_positive", "first_unfit", "positive_responses", "values"]

Adjoint = Callable[[Tensor], Tensor]


class Noise(abc.ABC):
    """How a response varies from one look at the same picture to the next.

    A subclass is a frozen dataclass of its parameters. F = (W J)ᵀ(W J) with W the :meth:`factor`
    at the response f₀ = f(x), held fixed; :meth:`transform` is the g of which W J is the Jacobian
    at x, up to a rotation, and whose distances are discriminabilities at finite amplitudes.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def factor(self, response: Tensor, pull: Adjoint) -> Factor | None:
        """Return W at a response ``(m,)``; None for the identity.

        Parameters
        ----------
        response
            f₀, in the dtype and on the device of the products.
        pull
            u ``(m,)`` ↦ Jᵀ u, flat.

        Raises
        ------
        ModelError
            When the response does not fit; names the first value that does not.
        """

    @abc.abstractmethod
    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return g, flat: ‖g(f(x + αe)) − g(f(x))‖ = d′ of αe, with what is frozen taken at ``at``.

        Parameters
        ----------
        response
            f ``(m,)``, of a changed picture.
        at
            f₀ ``(m,)``, of the picture itself.
        """

    @property
    def floor(self) -> float:
        """κ of the observer's pixel noise, F + κI; see :class:`~eigenexp.noise.PixelFloor`."""
        return 0.0

    def __str__(self) -> str:
        """Return name and parameters: two noise models are the same where this is."""
        given = (
            f"{field.name}={_described(getattr(self, field.name))}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.metadata.get("described", True)
        )
        return f"{self.name}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        """Whether name and parameters are the same."""
        return isinstance(other, Noise) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"sha256:{tensor_sha256(value.to(torch.float64))[:16]}"
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return str(value)


def check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse a number that is not finite and positive (or, with ``zero``, at least 0).

    Raises
    ------
    InputTypeError, InputError
        Naming the parameter.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (value >= 0 if zero else value > 0) or not math.isfinite(value):
        least = "at least 0" if zero else "above 0"
        raise InputError(f"{name}: expected a finite number {least}, got {value}")


def values(name: str, given: Any, ndim: int = 1) -> Tensor:
    """Return an array of parameters as float64 of the noise's own.

    Raises
    ------
    InputError
        When it has not ``ndim`` dimensions or holds NaN or inf.
    """
    try:
        array = torch.as_tensor(given).detach().to("cpu", torch.float64).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name}: expected numbers, got {type(given).__name__}") from error
    if array.ndim != ndim or array.numel() == 0:
        raise InputError(f"{name}: expected {ndim} dimensions, got shape {tuple(array.shape)}")
    if not bool(torch.isfinite(array).all()):
        raise InputError(f"{name}: expected finite numbers, got NaN or inf")
    return array


def positive_responses(noise: Noise, response: Tensor, dark: float = 0.0) -> Tensor:
    """Return f + ``dark`` in float64.

    Raises
    ------
    ModelError
        When a value of it is not above 0.
    """
    rates = response.to(torch.float64) + dark
    first_unfit(noise, rates > 0, rates, "a rate above 0", "add a rectifier, or dark=…")
    return rates


def first_unfit(noise: Noise, fits: Tensor, found: Tensor, wanted: str, remedy: str) -> None:
    """Raise where a response does not fit, naming the first one.

    Raises
    ------
    ModelError
        One line: response, value, what was expected.
    """
    if bool(fits.all()):
        return
    unfit = (~fits).nonzero().flatten()
    first = int(unfit[0])
    raise ModelError(
        f"noise {noise}: expected {wanted} at every response, got {float(found[first]):.6g} at "
        f"response {first} ({len(unfit)} of {len(found)} do not fit); {remedy}"
    )
