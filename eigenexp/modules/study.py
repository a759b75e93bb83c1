"""Many pictures as a Lightning module: a training step is some turns of a batch of pictures."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from eigenexp.checkpoints.agreement import check_same
from eigenexp.distributed.ranks import RankLostError, agree, in_all_processes
from eigenexp.eigensolvers import check_settings
from eigenexp.errors import CheckpointError, EigenexpError, InputError, one_line
from eigenexp.models.weights import weights_note
from eigenexp.modules.turns import TurnModule, check_trainer, is_double, operator_settings
from eigenexp.operators.calling import check_callable
from eigenexp.operators.noise import Noise
from eigenexp.operators.perturbations import Perturbations
from eigenexp.pictures.sources import PictureSource, picture_sources
from eigenexp.spectrum import Spectrum
from eigenexp.study.cohort import Cohort, Finished, SolveSettings
from eigenexp.study.folder import StudyFolder
from eigenexp.study.planning import Planner, cohorts
from eigenexp.study.table import table_rows, write_tables

__all__ = ["StudyModule"]

log = logging.getLogger(__name__)

# What one step takes at least. Under several processes: they meet once a step. On one: Lightning's
# own third of a millisecond a step is then next to nothing.
_SLICE_OF_MANY, _SLICE_OF_ONE = 1.0, 0.02


class StudyModule(TurnModule):
    """Eigendistortions of a model at many pictures, each its own problem, by ``trainer.fit``.

    Everything lies in ``folder``: fitting again with the same folder goes on with the unfinished
    pictures, after any interruption and on any number of processes. Under several processes
    (``Trainer(devices=N, strategy="ddp")``) each takes its own pictures; every picture's result is
    the same, bit for bit, as from one process with as many threads.

    Parameters
    ----------
    model
        Any differentiable module or callable. Frozen and put in ``eval`` mode while fitting.
    pictures
        A folder, a glob, a list, a tensor ``(P, C, H, W)``, a ``Dataset`` or a ``DataModule``; see
        :func:`eigenexp.study.picture_sources`.
    folder
        Where the study lies; on several machines, one they share.
    method, k, which, tol, seed, max_products, solver_options
        As for :class:`~eigenexp.EigendistortionModule`, for every picture.
    batch_size
        Pictures in one pass of the model; ``"auto"``: as many as make a picture cheaper, 1 where
        the model does not treat pictures apart.
    cohort
        Pictures that share a batch over time; ``None``: see :func:`eigenexp.study.cohorts`.
    checkpoint_seconds
        Seconds between saves of the pictures in progress. Finished ones are saved at once.
    image_options
        ``crop``, ``resize``, ``channels``, ``value_range`` of :func:`~eigenexp.load_picture`.
    figures
        Draw each picture's distortions (about half a second each).
    noise
        How the response varies, one of :mod:`eigenexp.noise`; ``None`` for F = JᵀJ.
    perturbations
        Which changes are considered, of :mod:`eigenexp.perturbations`; ``None`` for all.
    operator_options
        ``route``, ``chunk_size``, ``recompute``, ``compile``, ``model_dtype`` of
        :class:`~eigenexp.operators.BatchedFisherOperator`. A study keeps those it began with. With
        ``compile`` each batch is compiled anew, which pays where a picture takes many products.

    Raises
    ------
    EigenexpError
        In ``trainer.fit``, when model, pictures or settings cannot be used, or the folder holds
        another study.

    Examples
    --------
    >>> study = StudyModule(model, "photos/*.png", folder="photos-study", k=1, tol=1e-3)
    >>> L.Trainer(max_epochs=-1).fit(study)  # or on devices=2, strategy="ddp"
    >>> [(row["picture"], row["index"], row["pair_status"]) for row in study.table()]
    [('a', 0, 'converged'), ('a', 255, 'converged'), ('b', 0, 'converged'), ('b', 255, 'converged')]
    """

    advice = "finished pictures are kept: fit again with the same folder to go on"
    # Processes meet once a step anyway, which takes a second.
    agrees_every = 1

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        pictures: Any,
        folder: str | Path = "study",
        method: str = "auto",
        k: int = 1,
        which: str = "both",
        tol: float = 1e-4,
        seed: int = 0,
        max_products: int | None = None,
        *,
        batch_size: int | str = "auto",
        cohort: int | None = None,
        checkpoint_seconds: float = 30.0,
        image_options: Mapping[str, Any] | None = None,
        figures: bool = False,
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
        operator_options: Mapping[str, Any] | None = None,
        **solver_options: Any,
    ) -> None:
        super().__init__()
        check_callable(model)
        for name, value in (("batch_size", batch_size), ("cohort", cohort)):
            if value not in ("auto", None) and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name}: expected at least 1 picture or 'auto', got {value!r}")
        self._held = (model,)
        # What :func:`picture_sources` takes.
        self.pictures = pictures
        self.folder = StudyFolder(folder)
        self._settings: dict[str, Any] = {
            "method": method,
            "k": k,
            "which": which,
            "tol": tol,
            "seed": seed,
            "max_products": max_products,
            **solver_options,
        }
        self._batch_size, self._cohort_size = batch_size, cohort
        self._image_options = dict(image_options or {})
        measured = {"noise": noise, "perturbations": perturbations}
        given = {name: value for name, value in measured.items() if value is not None}
        self._operator_options = operator_settings(given | dict(operator_options or {}))
        self._checkpoint_seconds = checkpoint_seconds
        self._figures = figures
        self.run_metadata: dict[str, Any] = {}
        self.force_resume = False
        self.cohort: Cohort | None = None
        self._index = -1
        self._plan: dict[str, Any] = {}
        self._sources: list[PictureSource] = []
        self._unclaimed: list[int] = []
        self._cohorts: list[list[int]] = []
        self._saved_at = 0.0

    # -- what a user reads -----------------------------------------------------------------------

    @property
    def model(self) -> nn.Module | Callable[[Tensor], Any]:
        """The model, as it was given."""
        return self._held[0]

    @property
    def num_pictures(self) -> int:
        """Pictures of the study; known from the start of ``trainer.fit`` on."""
        return len(self._sources)

    def table(self) -> list[dict[str, Any]]:
        """Return one plain row an eigenpair, of every picture finished so far, in order."""
        return table_rows(self.folder.records())

    def spectrum(self, position: int) -> Spectrum:
        """Return the pairs of one finished picture."""
        return self.folder.spectrum(position)

    # -- set-up ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Freeze the model, and plan the study or take up the plan that is there."""
        if stage != "fit":
            raise InputError(f"StudyModule: expected trainer.fit, got trainer.{stage}")
        trainer = self.trainer
        check_trainer(trainer)
        dtype = torch.float64 if is_double(trainer) else torch.float32
        device = trainer.strategy.root_device
        if isinstance(self.model, nn.Module):
            model_dtype = self._operator_options.get("model_dtype") or dtype
            self.model.requires_grad_(False).eval().to(device=device, dtype=model_dtype)
        # All processes work where the first one does.
        self.folder = StudyFolder(trainer.strategy.broadcast(str(self.folder.path)))
        self._sources = self._find_sources(dtype)
        planner = Planner(
            self.model,
            self._sources,
            device,
            self._settings,
            self._operator_options,
            self.run_metadata,
        )
        # In all of them at once: the first one plans by the same picture.
        own = planner.problem() if trainer.world_size > 1 else None
        session, problem = "", ""
        if trainer.is_global_zero:
            session = uuid.uuid4().hex[:12]
            try:
                self.folder.clean()
                planner.plan(
                    self.folder,
                    batch_size=self._batch_size,
                    cohort=self._cohort_size,
                    force=self.force_resume,
                )
            except EigenexpError as error:
                problem = one_line(error)
                if trainer.world_size == 1:
                    raise
        self._session, problem = trainer.strategy.broadcast((session, problem))
        if problem:
            raise in_all_processes(InputError(problem))
        if own is not None:
            check_same(trainer, *own, self.advice)
        self._plan = cast("dict[str, Any]", self.folder.read_plan())
        self._solve = SolveSettings(
            solver=self._settings,
            batch_size=int(self._plan["batch_size"]),
            route=str(self._plan["route"]),
            dtype=dtype,
            device=device,
            operator={k: v for k, v in self._operator_options.items() if k != "route"},
        )
        size = self._plan["cohort"]
        self._cohorts = cohorts(len(self._sources), self._solve.batch_size, size)
        done = self.folder.records()
        self._unclaimed = [
            i for i, positions in enumerate(self._cohorts) if any(p not in done for p in positions)
        ]

    def _find_sources(self, dtype: torch.dtype) -> list[PictureSource]:
        options = {"channels": "keep", **self._image_options, "dtype": dtype}
        return picture_sources(self.pictures, **options)

    def check(self, trainer: L.Trainer) -> None:
        """Raise what ``trainer.fit`` would raise of settings, before anything is begun.

        Raises
        ------
        EigenexpError
            When the trainer's precision or a setting of the solver cannot be used, or no picture
            can be loaded.
        """
        check_trainer(trainer)
        dtype = torch.float64 if is_double(trainer) else torch.float32
        first: EigenexpError | None = None
        for source in self._find_sources(dtype):
            try:
                shape = tuple(source.load().tensor.shape[1:])
            except EigenexpError as error:
                first = first or error
                continue
            check_settings(shape, dtype, **self._settings)
            return
        raise first or InputError("pictures: expected at least one, got none")

    # -- the loop --------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Start the clock of saves."""
        super().on_train_start()
        self._saved_at = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """End where nothing is left to begin with."""
        if self.trainer.world_size == 1 and not self._has_work():
            self.trainer.should_stop = True
            return -1
        return None

    def _has_work(self) -> bool:
        """Take up the next pictures where those at hand are done."""
        if self.cohort is not None and self.cohort.done:
            self.folder.drop_cohort(self._index)
            self.cohort = None
        return self.cohort is not None or self._claim()

    def _claim(self) -> bool:
        while self._unclaimed:
            index = self._unclaimed.pop(0)
            if self.trainer.world_size > 1 and not self.folder.claim(self._session, index):
                continue
            self._index = index
            self.cohort = Cohort(
                self.model,
                self._sources,
                self._cohorts[index],
                self._solve,
                self.folder.records(),
            )
            saved = self.folder.load_cohort(index)
            if saved is not None:
                self.cohort.load_state_dict(saved["cohort"])
            return True
        return False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Give every picture at work one product; keep those that are finished by it.

        A step is as many turns as fit in 20 ms, one at least; under several processes, which
        Lightning holds at the same step, in a second, so that they hardly wait for each other. On
        one process that is to end at ``max_steps`` it is one turn.
        """
        trainer = self.trainer
        seconds = _SLICE_OF_ONE if trainer.max_steps == -1 else 0.0
        until = time.monotonic() + (_SLICE_OF_MANY if trainer.world_size > 1 else seconds)
        while self._has_work():
            self._turn()
            if time.monotonic() >= until:
                break
        self.count_turn()

    def _turn(self) -> None:
        if self.cohort is None:
            raise RuntimeError("turn: expected a cohort at work")
        for picture in self.cohort.turn():
            self._keep(picture)
        if time.monotonic() - self._saved_at >= self._checkpoint_seconds:
            try:
                self._save()
            except CheckpointError as error:
                self._saved_at = time.monotonic()
                log.warning("%s. The study goes on and tries again at the next save", error)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop all processes together, once none has anything left to do."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        try:
            over = agree(
                self.trainer,
                not self._has_work(),
                all_ranks=True,
                advice=self.advice,
            )
        except RankLostError:
            self._save()
            raise
        if over:
            self.trainer.should_stop = True

    def _keep(self, finished: Finished) -> None:
        """Write a finished picture's files; an error of one picture stops no other."""
        spectrum = finished.spectrum
        record: dict[str, Any] = {
            "position": finished.position,
            "name": finished.source.name,
            "where": finished.source.where,
            "status": "failed" if spectrum is None else "solved",
            "error": finished.error,
            "turn": finished.turn,
            "seconds": round(finished.seconds, 4),
            "rank": self.trainer.global_rank,
            "cohort": self._index,
            "picture": None if finished.picture is None else finished.picture.record,
        }
        figures = {}
        if spectrum is not None:
            record |= {
                "stop_reason": spectrum.stop_reason.value,
                "converged": bool(spectrum.converged.all()),
                "num_products": spectrum.num_products,
                "method": spectrum.method,
                "tol": spectrum.tol,
                "pairs": spectrum.rows(),
            }
            spectrum = spectrum.with_notes(weights_note(self.model)).with_metadata(
                {
                    **self._plan["metadata"],
                    "picture": record["picture"],
                    "position": finished.position,
                }
            )
            if self._figures and finished.picture is not None:
                from eigenexp.plots import distortion_figure

                title = f"{type(self.model).__name__} at {finished.source.name}"
                figures["distortions"] = distortion_figure(
                    spectrum, finished.picture.tensor, title=title
                )
        self.folder.write_picture(record, spectrum, finished.history, figures)

    def _save(self) -> None:
        if self.cohort is not None and not self.cohort.done:
            self.folder.save_cohort(
                self._index, self.cohort.turns, {"cohort": self.cohort.state_dict()}
            )
        self._saved_at = time.monotonic()

    def save(self) -> None:
        """Save the pictures in progress now."""
        self._save()

    def on_train_end(self) -> None:
        """Save what is in progress; write the tables."""
        self._save()
        agree(self.trainer, True, all_ranks=True, advice=self.advice)
        super().on_train_end()
        if self.trainer.is_global_zero:
            write_tables(self.folder.path, table_rows(self.folder.records()))
