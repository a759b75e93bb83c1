"""What stimuli are made of: a solved picture with its model, and the distortions wanted of it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eigenexp.analysis.discriminability import Discriminability
from eigenexp.checkpoints.provenance import model_fingerprint
from eigenexp.errors import EigenexpError, InputError, one_line
from eigenexp.operators import JacobianOperator
from eigenexp.operators.noise import Noise
from eigenexp.operators.noise.gaussian import Gaussian
from eigenexp.operators.perturbations import Everything, Perturbations, coordinates_at
from eigenexp.pictures.picture import Picture
from eigenexp.spectrum import PairStatus, Spectrum
from eigenexp.stimuli.settings import Settings

__all__ = ["Distortion", "Observer", "Source", "distortions"]


@dataclass(frozen=True, eq=False)
class Source:
    """A solved picture with what it was solved for.

    Parameters
    ----------
    spectrum
        Its pairs.
    picture
        The picture, with its record.
    model
        The model, as it was solved.
    noise, perturbations
        As its operator had them.
    name
        Short name of the model, for files and tables; by default its class.
    run_id
        Of the tracked run, if there is one.
    directions
        More distortions of this picture, each of its shape and of any length but 0: principal
        distortions of several models, say. Stimuli of them have the d′ asked for under ``model``;
        the models of other sources at the same picture predict them too.
    """

    spectrum: Spectrum
    picture: Picture
    model: Callable[..., Any]
    noise: Noise = field(default_factory=Gaussian)
    perturbations: Perturbations = field(default_factory=Everything)
    name: str = ""
    run_id: str = ""
    directions: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        for number, direction in enumerate(self.directions):
            length = float(torch.linalg.vector_norm(direction.double()))
            fits = direction.numel() == self.picture.tensor.numel()
            if not fits or not (length > 0 and math.isfinite(length)):
                raise InputError(
                    f"directions: expected {self.picture.tensor.numel()} finite values that are "
                    f"not all 0, got shape {tuple(direction.shape)} of length {length:g} at place "
                    f"{number}"
                )
        if self.spectrum.num_pixels != self.picture.tensor.numel():
            raise InputError(
                f"spectrum: expected distortions of {self.picture.tensor.numel()} values, as the "
                f"picture has, got {self.spectrum.num_pixels}"
            )
        if self.perturbations.split()[0] is not None:
            raise InputError(
                f"perturbations: expected changes of a picture, got {self.perturbations}, whose "
                "distortions are of a generator's codes; there is no picture to write them on"
            )
        if not self.name:
            object.__setattr__(self, "name", type(self.model).__name__)
        for name, mine in (("noise", self.noise), ("perturbations", self.perturbations)):
            recorded = self.spectrum.metadata.get(name)
            if recorded is not None and str(recorded) != str(mine):
                raise InputError(
                    f"{name}: expected {recorded}, which the spectrum is of, got {mine}; pass "
                    f"{name}=…"
                )


class Observer:
    """A model with its noise, in double precision where it can be: what d′ is asked of.

    Parameters
    ----------
    model, noise, name
        As in :class:`Source`.
    picture
        Any picture that the model takes.
    """

    def __init__(self, model: Callable[..., Any], noise: Noise, name: str, picture: Tensor) -> None:
        self.name, self.noise = name, noise
        self.model, self.dtype = _in_double(model, picture)
        self.fingerprint = _fingerprint(self.model, picture.to(self.dtype))

    @property
    def key(self) -> tuple[str, str]:
        """Two observers with the same key say the same."""
        return self.fingerprint, str(self.noise)

    def at(self, picture: Tensor) -> Discriminability:
        """Return what tells d′ of changed pictures from this one; nothing is clipped there."""
        values = picture.to(self.dtype)
        return Discriminability(self.model, values, noise=self.noise, value_range=None)

    def jacobian(self, picture: Tensor) -> JacobianOperator:
        """Return W J at a picture."""
        return JacobianOperator(self.model, picture.to(self.dtype), noise=self.noise)

    def information(self, picture: Tensor, directions: Tensor) -> Tensor:
        """Return uᵀFu for directions ``(k, …)``, the observer's pixel floor included."""
        columns = directions.reshape(len(directions), -1).T.to(self.dtype)
        seen = self.jacobian(picture).matmat(columns.contiguous()).double().square().sum(dim=0)
        return seen + self.noise.floor * columns.double().square().sum(dim=0)

    def fisher(self, picture: Tensor) -> Tensor:
        """Return F over all pixels, dense, in float64."""
        dense = self.jacobian(picture).to_dense().double()
        found = dense.T @ dense
        found.diagonal().add_(self.noise.floor)
        return found


def _in_double(model: Callable[..., Any], picture: Tensor) -> tuple[Any, torch.dtype]:
    """Return a copy of the model in float64, or the model itself where it computes in float32."""
    values = picture.to(torch.float64)
    try:
        twin = copy.deepcopy(model).to(torch.float64) if isinstance(model, nn.Module) else model
        Discriminability(twin, values, value_range=None)
    except (EigenexpError, RuntimeError, TypeError, ValueError):
        return model, picture.dtype
    return twin, torch.float64


def _fingerprint(model: Callable[..., Any], picture: Tensor) -> str:
    """Return the hash of a model's class and weights and, in four digits, of what it does.

    That is asked at a picture of its own, so that one model has one fingerprint at all pictures of
    a size; in few digits, which are the same on any processor.
    """
    angles = torch.arange(picture.numel(), dtype=torch.float64).reshape(picture.shape)
    probe = (0.5 + 0.4 * torch.sin(0.7 * angles + 0.1 * torch.sin(angles))).to(picture)
    facts = model_fingerprint(model, probe)
    sketch = [f"{value:.3e}" for value in facts["output_sketch"]]
    text = json.dumps([facts["class"], facts.get("weights_sha256"), sketch])
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Distortion:
    """One direction e at one picture, that stimuli x ± αe are made of.

    Attributes
    ----------
    name
        Of files and tables; no other has it.
    source
        Where it is from.
    pair, index, eigenvalue, error_bound, status
        As in :class:`~eigenexp.stimuli.Passport`.
    e
        ``(C, H, W)``, float64.
    is_proven
        Whether it is what it is called: always so for a random direction.
    """

    name: str
    source: Source
    pair: str
    index: int
    e: Tensor
    eigenvalue: float
    error_bound: float | None
    status: str
    is_proven: bool

    @property
    def root(self) -> float:
        """√λ; 0 where λ is no larger than the rounding of its products."""
        spectrum = self.source.spectrum
        noise = torch.finfo(spectrum.eigenvectors.dtype).eps * max(spectrum.scale, 0.0)
        return math.sqrt(self.eigenvalue) if self.eigenvalue > noise else 0.0

    @cached_property
    def as_spectrum(self) -> Spectrum:
        """A spectrum of this direction alone."""
        one = torch.tensor([self.eigenvalue], dtype=torch.float64)
        return Spectrum(
            eigenvalues=one,
            eigenvectors=self.e[None],
            eigenindex=torch.tensor([0]),
            residuals=torch.zeros_like(one),
            error_bounds=torch.tensor([self.error_bound or 0.0], dtype=torch.float64),
            status=(PairStatus.UNVERIFIED,),
            stop_reason=self.source.spectrum.stop_reason,
            scale=self.source.spectrum.scale,
            tol=self.source.spectrum.tol,
            num_products=0,
        )


def distortions(
    sources: Sequence[Source], settings: Settings, observers: Sequence[Observer]
) -> Iterator[Distortion]:
    """Yield the pairs and the control directions that are wanted, each with a name of its own.

    Parameters
    ----------
    sources
        Solved pictures.
    settings
        Which pairs, how many controls.
    observers
        One a source.

    Raises
    ------
    InputError
        When a source has none of the pairs wanted.
    """
    names = _Names()
    drawn: set[str] = set()
    for source, observer in zip(sources, observers, strict=True):
        stem = f"{slug(source.picture.name)}-{slug(source.name)}"
        for place in _places(source, settings):
            yield _pair(source, place, stem, names)
        shape = source.picture.tensor.shape[1:]
        given = [d.detach().cpu().double().reshape(shape) for d in source.directions]
        stem = slug(source.picture.name)
        yield from _directions(source, observer, "principal", given, names, stem)
        picture = str(source.picture.record["sha256"])
        if picture in drawn:  # the same controls for every model
            continue
        drawn.add(picture)
        random = _controls(source, settings)
        yield from _directions(source, observer, "control", random, names, stem)


def _places(source: Source, settings: Settings) -> list[int]:
    spectrum = source.spectrum
    index = [int(i) for i in spectrum.eigenindex]
    if settings.pairs == ("none",):
        return []
    if "all" in settings.pairs:
        return list(range(len(index)))
    found: list[int] = []
    for word in settings.pairs:
        if word in ("top", "bottom"):
            some = [i for i, at in enumerate(index) if (at < spectrum.order / 2) == (word == "top")]
        else:
            at = int(word) if int(word) >= 0 else spectrum.order + int(word)
            some = [i for i, known in enumerate(index) if known == at]
        if not some:
            raise InputError(
                f"pairs: expected some of {index} of {source.name} at {source.picture.name}, got "
                f"{word}; solve with a larger solver.k, or solver.which=both"
            )
        found += [i for i in some if i not in found]
    return found


def _pair(source: Source, place: int, stem: str, names: _Names) -> Distortion:
    spectrum = source.spectrum
    index = int(spectrum.eigenindex[place])
    is_top = index < spectrum.order / 2
    shown = index if is_top else spectrum.order - 1 - index
    kind = "top" if is_top else "bottom"
    bound = float(spectrum.error_bounds[place])
    null = spectrum.is_null[place]
    return Distortion(
        name=names.take(f"{stem}-{kind}-{shown}"),
        source=source,
        pair=kind,
        index=index,
        e=spectrum.eigenvectors[place].reshape(source.picture.tensor.shape[1:]).double().cpu(),
        eigenvalue=0.0 if null else float(spectrum.eigenvalues[place]),
        error_bound=bound if math.isfinite(bound) else None,
        status=spectrum.status[place].value,
        is_proven=spectrum.status[place] is PairStatus.CONVERGED,
    )


def _controls(source: Source, settings: Settings) -> list[Tensor]:
    """Return random directions of the perturbations considered, the same at every call."""
    picture = source.picture.tensor
    shape = tuple(picture.shape[1:])
    text = f"{settings.seed} {source.picture.record['sha256']} {source.perturbations}"
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    )
    coordinates = coordinates_at(source.perturbations, picture[0].double())
    found = []
    for _ in range(settings.controls):
        if coordinates is None:
            e = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            z = torch.randn(coordinates.shape, generator=generator, dtype=torch.float64)
            e = coordinates.embed(z).reshape(shape)
        found.append(e)
    return found


def _directions(
    source: Source,
    observer: Observer,
    pair: str,
    directions: Sequence[Tensor],
    names: _Names,
    stem: str,
) -> Iterator[Distortion]:
    """Yield directions that are no pairs of the source, of unit norm, with their uᵀFu."""
    if not directions:
        return
    unit = [e / torch.linalg.vector_norm(e) for e in directions]
    values = observer.information(source.picture.tensor, torch.stack(unit)).tolist()
    for number, (e, value) in enumerate(zip(unit, values, strict=True)):
        yield Distortion(
            name=names.take(f"{stem}-{pair}-{number}"),
            source=source,
            pair=pair,
            index=number,
            e=e,
            eigenvalue=value,
            error_bound=None,
            status="measured",
            is_proven=True,
        )


def slug(name: str) -> str:
    """Return a name as files and ids have it: letters, digits, and . _ +."""
    return re.sub(r"[^A-Za-z0-9._+]+", "_", one_line(name)).strip("_.")[:40] or "x"


class _Names:
    """Names that nobody has yet: a second one of the same ends with ``.2``."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> str:
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}.{count}"
