"""A few pictures solved together: each its own problem and solver, products in one pass.

A cohort is a fixed run of pictures in the study's order. Which of them share a pass, and when one
that is done makes room for the next, follows from the cohort's own numbers alone: never from the
clock, from other cohorts, or from the process at work. So each picture's result is the same, bit
for bit, however many processes share a study and wherever it was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers import Eigensolver, Progress, make_solver
from eigenexp.errors import CheckpointError, EigenexpError, ModelError, ProductError, one_line
from eigenexp.operators import BatchedFisherOperator
from eigenexp.operators.calling import Model
from eigenexp.operators.memory import to_device
from eigenexp.operators.protocol import Request
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.sources import PictureSource
from eigenexp.spectrum import Spectrum

__all__ = ["Cohort", "Finished", "SolveSettings"]

# Setting a batch up anew costs about this many passes of it; done once empty places have wasted
# as much, which is at most twice the cost of knowing the future.
SET_UP_PASSES = 8.0


@dataclass(frozen=True)
class SolveSettings:
    """What all pictures of a study are solved with.

    Attributes
    ----------
    solver
        Arguments of :func:`eigenexp.eigensolvers.make_solver`.
    batch_size
        Pictures in one pass of the model.
    route
        How products are computed; ``"auto"`` tries the routes at each picture.
    dtype, device
        Of the solve.
    operator
        Other options of :class:`~eigenexp.operators.BatchedFisherOperator`.
    history_every
        Steps of a picture between rows of its convergence table; at every fourth, a solver with
        many vectors has its Ritz pairs at hand.
    """

    solver: Mapping[str, Any]
    batch_size: int
    route: str
    dtype: torch.dtype
    device: torch.device
    operator: Mapping[str, Any] = field(default_factory=dict)
    history_every: int = 4


@dataclass(frozen=True)
class Finished:
    """A picture that is solved, or that failed.

    Attributes
    ----------
    position, source, picture
        Which one; ``picture`` is ``None`` where it could not be loaded.
    spectrum
        Its pairs, ``(k, C, H, W)``; ``None`` where it failed.
    error
        What failed; empty where nothing did.
    turn
        The cohort's turn at which it was done; −1 where it never began.
    seconds
        Its share of the time.
    history
        Rows of ``products``, ``worst_residual`` and eigenvalues by index.
    """

    position: int
    source: PictureSource
    picture: Picture | None
    spectrum: Spectrum | None
    error: str
    turn: int
    seconds: float
    history: list[dict[str, float]]


@dataclass
class _Place:
    """A picture's place in the batch."""

    position: int
    source: PictureSource
    picture: Picture
    solver: Eigensolver | None = None
    """``None`` for a picture finished earlier: it only keeps its place until its turn is over."""
    until: int = -1
    is_finished: bool = False
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Cohort:
    """Solves some pictures, ``batch_size`` of them at a time.

    Parameters
    ----------
    model
        In ``eval`` mode, on the settings' device and dtype.
    sources
        All pictures of the study.
    positions
        Those of this cohort, in order.
    settings
        How they are solved.
    known
        Records of pictures finished before, by position (``turn`` and ``status`` are read): they
        are not solved again, but keep their place in the batch as long as they did.
    """

    def __init__(
        self,
        model: Model,
        sources: Sequence[PictureSource],
        positions: Sequence[int],
        settings: SolveSettings,
        known: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        self._model = model
        self._sources = sources
        self._settings = settings
        self._known = {p: known[p] for p in positions if p in known} if known else {}
        self._positions = list(positions)
        self._waiting = list(positions)
        self._held: Picture | None = None
        self._places: list[_Place] = []
        self._operator: BatchedFisherOperator | None = None
        self._waste = 0.0
        self.turns = 0

    @property
    def positions(self) -> list[int]:
        """The pictures of this cohort."""
        return list(self._positions)

    @property
    def done(self) -> bool:
        """Whether every picture is finished."""
        return not self._waiting and all(place.is_finished for place in self._places)

    def progress(self) -> list[Progress]:
        """Return how far each picture being solved is."""
        return [
            place.solver.progress()
            for place in self._places
            if place.solver is not None and not place.is_finished
        ]

    @property
    def num_products(self) -> int:
        """Products computed by this object."""
        return self._products + (0 if self._operator is None else self._operator.num_products)

    _products = 0

    # -- one turn --------------------------------------------------------------------------------

    def turn(self) -> list[Finished]:
        """Give each picture at work the product it asks for; return those finished by that."""
        finished: list[Finished] = []
        while not finished and not self.done:
            began = time.perf_counter()
            if self._should_fill():
                self._fill(finished)
            working = [p for p in self._places if p.solver is not None and not p.is_finished]
            self._multiply(finished)
            self.turns += 1
            self._settle(finished)
            for place in working:
                place.seconds += (time.perf_counter() - began) / len(working)
            if working:
                break
        return finished

    def _should_fill(self) -> bool:
        if all(place.is_finished for place in self._places):
            return bool(self._waiting)
        return self._waste >= SET_UP_PASSES

    def _multiply(self, finished: list[Finished]) -> None:
        operator = self._operator
        if operator is None:
            return
        asked: dict[Request, dict[int, Tensor]] = {}
        for i, place in enumerate(self._places):
            if place.solver is not None and not place.is_finished:
                asked.setdefault(place.solver.request, {})[i] = place.solver.ask()
        for request, blocks in sorted(asked.items()):
            for i, (products, responses) in operator.apply(blocks, request).items():
                place = self._places[i]
                if place.solver is None:
                    continue
                try:
                    place.steps += 1
                    place.solver.tell(products, responses)
                except ProductError as error:
                    self._end(place, finished, error)

    def _settle(self, finished: list[Finished]) -> None:
        every = self._settings.history_every
        for place in self._places:
            if place.is_finished:
                continue
            if place.solver is None:
                place.is_finished = place.until <= self.turns
            elif place.solver.done:
                place.history.append(_row(place.solver))
                self._end(place, finished)
            elif place.steps % every == 0:
                place.history.append(_row(place.solver))
        if self._places:
            empty = sum(place.is_finished for place in self._places)
            self._waste += empty / len(self._places)

    def _end(
        self, place: _Place, finished: list[Finished], error: EigenexpError | None = None
    ) -> None:
        place.is_finished = True
        spectrum = None
        if error is None and place.solver is not None:
            shape = tuple(place.picture.tensor.shape[1:])
            spectrum = place.solver.result().reshape(shape)
        finished.append(
            Finished(
                position=place.position,
                source=place.source,
                picture=place.picture,
                spectrum=spectrum,
                error="" if error is None else one_line(error),
                turn=self.turns,
                seconds=place.seconds,
                history=place.history,
            )
        )

    # -- who is in the batch -----------------------------------------------------------------------

    def _fill(self, finished: list[Finished]) -> None:
        """Let finished pictures go and waiting ones in, and set the products up for these."""
        places = [place for place in self._places if not place.is_finished]
        while True:
            self._admit(places, finished)
            self._let_go()
            self._places, self._waste = places, 0.0
            if not places:
                return
            try:
                self._operator = self._build(places)
                break
            except ModelError as error:
                culprits = self._culprits(places)
                if not culprits:
                    raise
                for place, reason in culprits:
                    places.remove(place)
                    if place.solver is None and place.until < 0:
                        self._fail(place.position, place.picture, reason, finished)
                    elif place.solver is not None:
                        raise error
        for i, place in enumerate(places):
            if place.solver is None and place.until < 0:
                place.solver = make_solver(self._operator.at(i), **self._settings.solver)

    def _admit(self, places: list[_Place], finished: list[Finished]) -> None:
        while self._waiting and len(places) < self._settings.batch_size:
            position = self._waiting[0]
            record = self._known.get(position)
            if record is not None and int(record["turn"]) < 0:
                self._waiting.pop(0)  # failed before it began
                continue
            source = self._sources[position]
            try:
                picture = self._held or source.load()
                self._held = None
            except EigenexpError as error:
                self._waiting.pop(0)
                self._fail(position, None, error, finished)
                continue
            if places and picture.tensor.shape != places[0].picture.tensor.shape:
                self._held = picture  # goes into a batch of its own shape
                return
            self._waiting.pop(0)
            until = -1 if record is None else int(record["turn"])
            places.append(_Place(position, source, picture, until=until))

    def _fail(
        self,
        position: int,
        picture: Picture | None,
        error: EigenexpError,
        finished: list[Finished],
    ) -> None:
        text = one_line(error)
        source = self._sources[position]
        finished.append(Finished(position, source, picture, None, text, -1, 0.0, []))

    def _build(self, places: Sequence[_Place]) -> BatchedFisherOperator:
        device = self._settings.device
        images = [to_device(place.picture.tensor, device) for place in places]
        # A stack was checked when the study was planned; a picture alone is checked each time.
        check = len(images) == 1
        route, options = self._settings.route, self._settings.operator
        return BatchedFisherOperator(self._model, images, route=route, check=check, **options)

    def _let_go(self) -> None:
        """Free what the last batch holds before the next one is set up."""
        if self._operator is not None:
            self._products += self._operator.num_products
            self._operator = None

    def _culprits(self, places: Sequence[_Place]) -> list[tuple[_Place, EigenexpError]]:
        found = []
        for place in places:
            try:
                image = to_device(place.picture.tensor, self._settings.device)
                BatchedFisherOperator(self._model, [image], **self._settings.operator)
            except EigenexpError as error:
                found.append((place, error))
        return found

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, as tensors and plain containers."""
        return {
            "turns": self.turns,
            "waste": self._waste,
            "waiting": list(self._waiting),
            "places": [
                {
                    "position": place.position,
                    "sha256": place.picture.record["sha256"],
                    "is_finished": place.is_finished,
                    "until": place.until,
                    "steps": place.steps,
                    "seconds": place.seconds,
                    "history": [dict(row) for row in place.history],
                    "solver": None
                    if place.solver is None or place.is_finished
                    else place.solver.state_dict(),
                }
                for place in self._places
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises
        ------
        CheckpointError
            When a picture is another one by now, or the state does not fit the settings.
        """
        places = []
        for saved in state["places"]:
            position = int(saved["position"])
            source = self._sources[position]
            picture = source.load()
            if picture.record["sha256"] != saved["sha256"]:
                raise CheckpointError(
                    f"{source.where}: expected the picture this study began with, got another one "
                    "under that name; put it back, or begin a new study"
                )
            place = _Place(position, source, picture, until=int(saved["until"]))
            place.is_finished = bool(saved["is_finished"])
            place.steps = int(saved.get("steps", 0))  # states of before the count have none
            place.seconds = float(saved["seconds"])
            place.history = [dict(row) for row in saved["history"]]
            places.append(place)
        self.turns, self._waste = int(state["turns"]), float(state["waste"])
        self._waiting = [int(position) for position in state["waiting"]]
        self._places = places
        if not places:
            return
        self._operator = self._build(places)
        for i, (place, saved) in enumerate(zip(places, state["places"], strict=True)):
            if place.is_finished or saved["solver"] is None:
                continue
            record = self._known.get(place.position)
            if record is not None:
                place.until = int(record["turn"])
                place.is_finished = place.until <= self.turns
                continue
            place.solver = make_solver(self._operator.at(i), **self._settings.solver)
            place.solver.load_state_dict(saved["solver"])


def _row(solver: Eigensolver) -> dict[str, float]:
    progress = solver.progress()
    return {
        "products": float(progress.num_products),
        "worst_residual": float(progress.worst),
    }
