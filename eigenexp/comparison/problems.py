"""Models, or operators already made, as the operators of one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import InputError, InputTypeError, ModelError
from eigenexp.operators import FisherOperator
from eigenexp.operators.noise import Noise
from eigenexp.operators.protocol import FisherLike, Problem, Request

__all__ = ["Compared", "IdentityOperator", "operators_of", "picture_tensor", "traces"]


class Compared:
    """Operators that are compared, as one: their common problem and the products of each.

    Attributes
    ----------
    operators
        One a model, in order.
    problem
        Of the first; size, dtype, device and changes considered are those of all.
    """

    def __init__(self, operators: Sequence[FisherLike]) -> None:
        if not operators:
            raise InputError("models: expected at least one, got none")
        self.operators = list(operators)
        self.problem: Problem = self.operators[0].problem
        for i, operator in enumerate(self.operators[1:], start=1):
            self._check(i, operator.problem)

    def _check(self, i: int, other: Problem) -> None:
        own = self.problem
        for word, mine, theirs in (
            ("pictures of one shape", own.picture_shape, other.picture_shape),
            ("as many coordinates", own.image_shape, other.image_shape),
            ("one dtype", own.dtype, other.dtype),
            ("one device", own.device, other.device),
            ("the same changes considered", own.perturbations, other.perturbations),
        ):
            if mine != theirs:
                raise InputError(
                    f"models: expected {word}, got {mine} for model 0 and {theirs} for model {i}"
                )

    def __len__(self) -> int:
        return len(self.operators)

    @property
    def product_eps(self) -> float:
        """The coarsest rounding of a product."""
        return max(operator.problem.product_eps for operator in self.operators)

    @property
    def noises(self) -> tuple[str, ...]:
        """The noise of each, in words."""
        return tuple(operator.problem.noise for operator in self.operators)

    def only(self, *places: int) -> Compared:
        """Return the comparison of some of the operators."""
        return Compared([self.operators[i] for i in places])

    def products(self, block: Tensor) -> list[Tensor]:
        """Return F_i V, ``(n, b)`` each."""
        return [operator.apply(block)[0] for operator in self.operators]

    def as_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of a comparison's solver beside n."""
        shape: tuple[int, ...] | None = self.problem.image_shape
        # Coordinates of some changes are no picture, which surrogates are for.
        if self.problem.embedding is not None:
            shape = None
        return {
            "image_shape": shape,
            "dtype": self.problem.dtype,
            "device": self.problem.device,
            "start": self.problem.start,
            "product_eps": self.product_eps,
        }

    def pictures(self, vectors: Tensor) -> Tensor:
        """Return columns ``(n, b)`` as changes of the picture ``(b, *shape)``."""
        if self.problem.embedding is not None:
            found: Tensor = self.problem.embedding.pictures(vectors)
            return found
        return vectors.mT.reshape(-1, *self.problem.picture_shape)


class IdentityOperator:
    """F = I: what one model alone is compared with.

    Parameters
    ----------
    like
        The problem of that model.
    """

    def __init__(self, like: Problem) -> None:
        self.problem = replace(like, rank_bound=like.n, start=None, noise="identity")

    def apply(self, block: Tensor, request: Request = "fisher") -> tuple[Tensor, Tensor | None]:
        """Return the block itself."""
        del request
        return block.clone(), None


def picture_tensor(picture: Any) -> Tensor:
    """Return a picture's tensor ``(1, C, H, W)``; a tensor is taken as it is."""
    tensor = picture if isinstance(picture, Tensor) else getattr(picture, "tensor", None)
    if not isinstance(tensor, Tensor):
        raise InputTypeError(
            f"picture: expected a Picture or a tensor (1, C, H, W), got {type(picture).__name__}"
        )
    return tensor


def operators_of(
    models: Sequence[Any],
    picture: Any = None,
    *,
    noise: Noise | Sequence[Noise | None] | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Compared:
    """Return the operators of a comparison.

    Parameters
    ----------
    models
        Models, or operators (anything with a ``problem`` and products).
    picture
        Where models are compared; not needed for operators.
    noise
        One for all models, or one a model; None is independent Gaussian noise of std 1.
    names
        What to call the models in errors.
    options
        As for :class:`~eigenexp.operators.FisherOperator`.

    Raises
    ------
    InputError, ModelError
        When the models do not take the picture, do not respond to changes of it, or differ in what
        they are of.
    """
    if isinstance(models, Mapping) or not isinstance(models, Sequence):
        raise InputTypeError(
            f"models: expected a list of models or operators, got {type(models).__name__}"
        )
    noises = list(noise) if isinstance(noise, Sequence) else [noise] * len(models)
    if len(noises) != len(models):
        raise InputError(
            f"noise: expected one for all or one a model ({len(models)}), got {len(noises)}"
        )
    called = list(names) if names is not None else [f"model {i}" for i in range(len(models))]
    found: list[FisherLike] = []
    for model, own, name in zip(models, noises, called, strict=True):
        if isinstance(getattr(model, "problem", None), Problem):
            if own is not None:
                raise InputError(f"noise: expected none beside an operator ({name}), got {own}")
            found.append(model)
            continue
        if picture is None:
            raise InputError("picture: expected a picture beside models, got None")
        tensor = picture_tensor(picture)
        try:
            found.append(FisherOperator(model, tensor, noise=own, **options))
        except ModelError as error:
            raise type(error)(f"{name}: {error}") from error
    return Compared(found)


def traces(compared: Compared, width: int = 64) -> list[float]:
    """Return tr F_i of each operator, exactly, from n products."""
    n = compared.problem.n
    like = torch.empty(0, dtype=compared.problem.dtype, device=compared.problem.device)
    sums = [0.0] * len(compared)
    for start in range(0, n, width):
        stop = min(start + width, n)
        block = like.new_zeros(n, stop - start)
        at = torch.arange(stop - start, device=like.device)
        block[start + at, at] = 1.0
        for i, image in enumerate(compared.products(block)):
            sums[i] += float(image[start + at, at].double().sum())
    return sums
