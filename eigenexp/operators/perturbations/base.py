"""What every choice of perturbations has: its coordinates at a picture, its description."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.errors import EigenexpError, InputError, InputTypeError
from eigenexp.operators.perturbations.coordinates import (
    Complement,
    Coordinates,
    Nested,
    Projected,
)
from eigenexp.storage.hashing import tensor_sha256

__all__ = [
    "Composition",
    "Everything",
    "Intersection",
    "Perturbations",
    "coordinates_at",
    "perturbations_or_default",
]


def perturbations_or_default(
    given: object, refusal: type[EigenexpError] = InputTypeError
) -> Perturbations:
    """Return the perturbations given; every change of every pixel for None.

    Raises
    ------
    EigenexpError
        A ``refusal``, of what are no perturbations.
    """
    if given is None:
        return Everything()
    if not isinstance(given, Perturbations):
        raise refusal(
            f"perturbations: expected one of eigenexp.perturbations, got {type(given).__name__}"
        )
    return given


def coordinates_at(perturbations: Perturbations, image: Tensor) -> Coordinates | None:
    """Return B at a picture ``(C, H, W)``, or code; None where all of it is considered."""
    _, linear = perturbations.split()
    return None if isinstance(linear, Everything) else linear.at(image)


class Perturbations(abc.ABC):
    """Which changes of a picture are considered, and in what norm: e = B z.

    ``A & B`` considers what both do, where that is a subspace (see :class:`Intersection`);
    ``A @ B`` does B first and then A (see :class:`Composition`).

    Attributes
    ----------
    kind
        What it is, for intersections: ``"pixels"``, ``"frequencies"``, ``"colours"`` and
        ``"directions"`` are subspaces; a ``"metric"`` and a ``"map"`` are not.
    of_picture
        Whether B depends on the picture's values.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    of_picture: bool = False

    @abc.abstractmethod
    def at(self, image: Tensor) -> Coordinates:
        """Return B at a picture ``(C, H, W)`` or ``(n,)``, in its dtype and on its device.

        Raises
        ------
        InputError
            When it does not fit the picture, or leaves nothing.
        """

    def split(self) -> tuple[Callable[[Tensor], Any] | None, Perturbations]:
        """Return the generator that goes before the model, if any, and what is linear."""
        return None, self

    def directions(self, image: Tensor) -> Tensor:
        """Return the vectors ``(n, c)`` that are left out, of kind ``"directions"``."""
        raise InputError(f"{self}: expected directions, got {self.kind}")

    def meet(self, other: Perturbations) -> Perturbations:
        """Return what both consider, of one kind."""
        raise InputError(
            f"{self} & {other}: expected two subspaces whose intersection is known, got two of "
            f"{self.kind}; compose them with @"
        )

    def __and__(self, other: Perturbations) -> Perturbations:
        """Return the intersection."""
        if not isinstance(other, Perturbations):
            return NotImplemented
        mine = self.parts if isinstance(self, Intersection) else (self,)
        others = other.parts if isinstance(other, Intersection) else (other,)
        return Intersection((*mine, *others)).simplest()

    def __matmul__(self, other: Perturbations) -> Perturbations:
        """Return the composition: ``other`` first."""
        if not isinstance(other, Perturbations):
            return NotImplemented
        return Composition(self, other)

    def __str__(self) -> str:
        """Return name and parameters: two are the same where this is."""
        given = (
            f"{field.name}={_described(getattr(self, field.name))}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) is not None
        )
        return f"{self.name}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        """Whether name and parameters are the same."""
        return isinstance(other, Perturbations) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"sha256:{tensor_sha256(value.to(torch.float64))[:16]}"
    return str(value)


class Everything(Perturbations):
    """Every change of every pixel, in the 2-norm: where nothing else is said."""

    name = "everything"
    kind = "directions"

    def at(self, image: Tensor) -> Coordinates:
        """Refuse: no map is needed.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError("everything: expected perturbations that need coordinates")

    def directions(self, image: Tensor) -> Tensor:
        """Return no vectors."""
        return image.new_zeros(image.numel(), 0)

    def __str__(self) -> str:
        return "everything"


_SPATIAL = ("pixels", "frequencies")


@dataclasses.dataclass(frozen=True, eq=False)
class Intersection(Perturbations):
    """What several subspaces all contain.

    It exists where their projectors commute (colours with anything in space) or where one leaves
    out a few directions alone. A mask and a band share no vector but 0: a picture that is zero
    outside a region has all frequencies.
    """

    name: ClassVar[str] = "intersection"
    kind: ClassVar[str] = "directions"
    parts: tuple[Perturbations, ...]

    def __post_init__(self) -> None:
        kinds: dict[str, Perturbations] = {}
        for part in self.parts:
            if part.kind in ("metric", "map"):
                raise InputError(
                    f"{part}: expected a subspace to intersect, got a {part.kind}, which changes "
                    "lengths; compose it with @"
                )
            kinds.setdefault(part.kind, part)
        if all(kind in kinds for kind in _SPATIAL):
            raise InputError(
                f"{kinds['pixels']} & {kinds['frequencies']}: expected subspaces that share "
                "vectors, got a mask and a band, which share none; compose them with @"
            )

    def simplest(self) -> Perturbations:
        """Return it with parts of one kind met."""
        kept: list[Perturbations] = []
        for part in self.parts:
            if isinstance(part, Everything):
                continue
            same = next(
                (i for i, p in enumerate(kept) if p.kind == part.kind != "directions"), None
            )
            if same is None:
                kept.append(part)
            else:
                kept[same] = kept[same].meet(part)
        if not kept:
            return Everything()
        return kept[0] if len(kept) == 1 else Intersection(tuple(kept))

    def _of(self, *kinds: str) -> Perturbations | None:
        return next((part for part in self.parts if part.kind in kinds), None)

    def at(self, image: Tensor) -> Coordinates:
        """Return coordinates of colours, of space within them, and of the rest within both."""
        colour, space = self._of("colours"), self._of(*_SPATIAL)
        found = None if colour is None else colour.at(image)
        if space is not None:
            inner = space.at(image if found is None else image.new_zeros(found.shape))
            found = inner if found is None else Nested(found, inner)
        for part in self.parts:
            if part.kind != "directions":
                continue
            vectors = part.directions(image)
            if found is None:
                found = Complement(vectors, tuple(image.shape))
            else:
                seen = found.adjoints(vectors)
                found = Nested(found, Complement(seen, found.shape))
        if found is None:
            raise InputError(f"{self}: expected something to intersect")
        return found

    def __str__(self) -> str:
        return " & ".join(str(part) for part in self.parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Composition(Perturbations):
    """``outer @ inner``: e = A(B z), A the projection of a subspace or the map of a metric.

    Its coordinates are those of ``inner``, so λ and α are per unit of ‖z‖ there.
    """

    name: ClassVar[str] = "composition"
    kind: ClassVar[str] = "metric"
    outer: Perturbations
    inner: Perturbations

    def __post_init__(self) -> None:
        if self.inner.kind == "map":
            raise InputError(
                f"{self.outer} @ {self.inner}: expected the map of a generator last, got it "
                f"first; write {self.inner} @ {self.outer} for what is done to its codes"
            )
        object.__setattr__(self, "of_picture", self.outer.of_picture or self.inner.of_picture)

    def split(self) -> tuple[Callable[[Tensor], Any] | None, Perturbations]:
        """Return the generator, where it is done last, and what is done to its codes."""
        if self.outer.kind == "map":
            return self.outer.split()[0], self.inner
        return None, self

    def at(self, image: Tensor) -> Coordinates:
        """Return the coordinates of ``inner`` under the map of ``outer``."""
        if isinstance(self.outer, Everything):
            return self.inner.at(image)
        if isinstance(self.inner, Everything):
            return self.outer.at(image)
        found = self.outer.at(image)
        if self.outer.kind != "metric":
            found = Projected(found)
        elif found.shape != tuple(image.shape):
            raise InputTypeError(
                f"{self}: expected a metric of pictures on the left, got one of coordinates"
            )
        return Nested(found, self.inner.at(image))

    def __str__(self) -> str:
        inner = f"({self.inner})" if isinstance(self.inner, Intersection) else str(self.inner)
        outer = f"({self.outer})" if isinstance(self.outer, Intersection) else str(self.outer)
        return f"{outer} @ {inner}"
