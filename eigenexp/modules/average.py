"""Universal distortions: one solve for the mean of F over many pictures, shared by processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from eigenexp.eigensolvers import Eigensolver, Problem
from eigenexp.eigensolvers.stochastic import StochasticPower
from eigenexp.errors import ImageError, InputError
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.modules.solver_module import ModuleOperator
from eigenexp.operators import AverageFisherOperator
from eigenexp.operators.memory import to_device
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.sources import picture_sources

__all__ = ["AverageModule", "load_mean"]


class AverageModule(EigendistortionModule):
    """Eigendistortions of F̄ = 1/P Σ JᵢᵀJᵢ: those the model feels most and least at all pictures.

    Processes (``Trainer(devices=N, strategy="ddp")``) take a share of the pictures each and sum
    their products; with ``parts`` a process takes its share in parts. Both equal one process to
    rounding.

    Parameters
    ----------
    model
        As for :class:`~eigenexp.EigendistortionModule`.
    pictures
        As for :class:`~eigenexp.StudyModule`; all of one shape.
    keep
        Pictures that each process keeps linearised, see
        :class:`~eigenexp.operators.AverageFisherOperator`.
    parts
        Batches of Lightning's that a product is taken in. It is counted as one turn, at the last of
        them; signals, ``max_time`` and callbacks are heard in between, which matters where one
        product takes minutes. A product that was begun is begun again at a resumption.
    image_options
        ``crop``, ``resize``, ``channels``, ``value_range`` of :func:`~eigenexp.load_picture`.
    settings
        ``method`` (also ``"stochastic"``, see :mod:`eigenexp.eigensolvers.stochastic`), ``k``,
        ``which``, ``tol``, ``seed``, ``max_products``, ``route`` and options of the method. A
        product of F̄ is counted as one, and costs P.

    Raises
    ------
    ImageError
        When the pictures are of several shapes.
    InputError
        When there are more parts than pictures, or a setting cannot be used.
    """

    inputs = ("model", "pictures")

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        pictures: Any,
        *,
        keep: int | None = None,
        parts: int = 1,
        image_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        # In float64, so that every precision of the solve rounds them once.
        loaded, mean = load_mean(pictures, {**(image_options or {}), "dtype": torch.float64})
        self._tensors = [picture.tensor for picture in loaded]
        self._mean_record = mean.record
        self._keep = keep
        if not 1 <= parts <= len(loaded):
            raise InputError(
                f"parts: expected 1 to {len(loaded)}, one a picture at the most, got {parts}"
            )
        # What is summed of a product, and how many parts of it.
        self._parts, self._part, self._sum = parts, 0, torch.empty(0)
        super().__init__(model, mean.tensor.float(), **settings)
        if "parallel" in settings and settings["parallel"] is not None:
            raise InputError("parallel: expected none for a mean: its pictures are shared out")

    @property
    def num_pictures(self) -> int:
        """P."""
        return len(self._tensors)

    def _check_processes(self, processes: int) -> None:
        if self.num_pictures < processes:
            raise InputError(
                f"devices: expected at most one process a picture ({self.num_pictures}), got "
                f"{processes}"
            )

    def check(self, trainer: L.Trainer) -> None:
        """Raise what ``trainer.fit`` would raise of settings, before anything is begun.

        Raises
        ------
        InputError
            When there are more processes than pictures, or a setting cannot be used.
        """
        super().check(trainer)
        self._check_processes(trainer.num_devices * trainer.num_nodes)

    def _check_settings(self, dtype: torch.dtype) -> None:
        if self._settings["method"] != "stochastic":
            super()._check_settings(dtype)
            return
        shape = tuple(self._image.shape[1:])
        self._stochastic(Problem.of_size(shape, dtype))

    def _make_operator(self, options: Mapping[str, Any]) -> AverageFisherOperator:
        like = self._image
        images = [to_device(tensor, like.device, like.dtype) for tensor in self._tensors]
        rank, size = self.processes
        self._check_processes(size)
        operator = AverageFisherOperator(self.model, images, keep=self._keep, **options)
        # What all processes must agree on is that of the first picture.
        operator.num_responses, operator.product_eps  # noqa: B018
        if self._settings["method"] != "stochastic":
            operator.prepare(range(rank, len(images), size))
        return operator

    def _make_solver(self, operator: ModuleOperator) -> Eigensolver:
        if self._settings["method"] != "stochastic":
            return super()._make_solver(operator)
        return self._stochastic(operator.problem)

    def _stochastic(self, problem: Problem) -> StochasticPower:
        settings = {key: value for key, value in self._settings.items() if key != "method"}
        try:
            return StochasticPower(
                problem.n, num_pictures=self.num_pictures, **problem.as_settings(), **settings
            )
        except TypeError as error:
            raise InputError(f"stochastic: {error}") from error

    def on_train_start(self) -> None:
        """Begin a product that was left in the middle again."""
        super().on_train_start()
        self._part = 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take a turn, or one of the parts of its product."""
        solver, operator = self.solver, self.operator
        if not isinstance(operator, AverageFisherOperator):
            raise TypeError("operator: expected an AverageFisherOperator")
        sample = None
        if isinstance(solver, StochasticPower) and not solver.wants_all:
            sample = solver.sample()
        (rank, size), parts = self.processes, self._parts
        if sample is None and size == parts == 1:
            super().training_step(batch, batch_idx)
            return
        if solver.request != "fisher":
            raise InputError(
                f"method: expected one that asks for products of F alone, got {solver.name} "
                f"asking for {solver.request!r}"
            )
        chosen = list(range(self.num_pictures)) if sample is None else sample
        part = operator.part(solver.ask(), chosen[rank::size][self._part :: parts])
        self._sum = part if self._part == 0 else self._sum + part
        self._part = (self._part + 1) % parts
        if self._part == 0:
            # A part is of 1/P Σ Fᵢ over all P pictures; processes exchange a mean.
            scale = size * self.num_pictures / len(chosen)
            self._tell(self.exchange.mean(self._sum * scale), None)

    def _picture_record(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        return self._mean_record

    def _response(self) -> Tensor | None:
        """Return f at the first picture where the model takes none in the solver's precision."""
        if self._operator_options.get("model_dtype") is None:
            return None
        operator = self._operator
        if not isinstance(operator, AverageFisherOperator):
            return None
        return operator.at(0).jacobian.response


def load_mean(pictures: Any, options: Mapping[str, Any]) -> tuple[list[Picture], Picture]:
    """Load pictures of one shape, and return them and their mean.

    The mean's record holds the hash of all hashes, and ``num_pictures``.

    Raises
    ------
    ImageError
        When they are of several shapes, or one cannot be used.
    """
    sources = picture_sources(pictures, **{"channels": "keep", **options})
    loaded = [source.load() for source in sources]
    shapes = sorted({tuple(picture.tensor.shape) for picture in loaded})
    if len(shapes) > 1:
        raise ImageError(
            f"pictures: expected pictures of one shape for their mean, got {shapes[:4]}; crop or "
            "resize them to one"
        )
    files = [str(picture.record["file_sha256"] or picture.record["sha256"]) for picture in loaded]
    mean = torch.stack([picture.tensor for picture in loaded]).mean(0)
    together = hashlib.sha256("\n".join(files).encode()).hexdigest()
    record = {
        "source": f"mean of {len(loaded)} pictures",
        "sha256": together,
        "shape": list(mean.shape),
        "num_pictures": len(loaded),
        "where": [source.where for source in sources],
    }
    return loaded, Picture(mean, f"{len(loaded)} pictures", record)
