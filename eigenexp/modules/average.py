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
from eigenexp.modules.eigendistortion import EigendistortionModule, ModuleOperator, check_trainer
from eigenexp.modules.lightning_overhead import remember_signature
from eigenexp.operators import AverageFisherOperator
from eigenexp.operators.memory import to_device
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.sources import picture_sources

__all__ = ["AverageModule", "load_mean"]


class AverageModule(EigendistortionModule):
    """Eigendistortions of F̄ = 1/P Σ JᵢᵀJᵢ: those the model feels most and least at all pictures.

    The loss of a step is −½ mean ‖Jᵢ V‖², its gradient −F̄ V. Processes (``Trainer(devices=N,
    strategy="ddp")``) take a share of the pictures each and DDP's mean of gradients is F̄ V; with
    ``accumulate_grad_batches=A`` a process takes its share in A parts. Both equal one process to
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
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        pictures: Any,
        *,
        keep: int | None = None,
        image_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        # In float64, so that every precision of the solve rounds them once.
        loaded, mean = load_mean(pictures, {**(image_options or {}), "dtype": torch.float64})
        self._tensors = [picture.tensor for picture in loaded]
        self._mean_record = mean.record
        self._keep = keep
        super().__init__(model, mean.tensor.float(), **settings)
        if "parallel" in settings and settings["parallel"] is not None:
            raise InputError("parallel: expected none for a mean: its pictures are shared out")

    @property
    def num_pictures(self) -> int:
        """P."""
        return len(self._tensors)

    def _check_processes(self, trainer: L.Trainer) -> None:
        processes = trainer.num_devices * trainer.num_nodes
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
        self._check_processes(trainer)
        if self._settings["method"] != "stochastic":
            super().check(trainer)
            return
        check_trainer(trainer)
        shape = tuple(self._image.shape[1:])
        self._stochastic(Problem.of_size(shape, self._solve_dtype(trainer)))

    def _make_operator(self, options: Mapping[str, Any]) -> AverageFisherOperator:
        like = self._image
        images = [to_device(tensor, like.device, like.dtype) for tensor in self._tensors]
        self._check_processes(self.trainer)
        operator = AverageFisherOperator(self.model, images, keep=self._keep, **options)
        # What all processes must agree on is that of the first picture.
        operator.num_responses, operator.product_eps  # noqa: B018
        if self._settings["method"] != "stochastic":
            operator.prepare(range(self.trainer.global_rank, len(images), self.trainer.world_size))
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

    def _share(self, part: int, parts: int) -> tuple[list[int], int]:
        """Return the pictures of this process, or of one part of them, and how many all have."""
        trainer, solver = self.trainer, self._solver
        sampled = isinstance(solver, StochasticPower) and not solver.wants_all
        everyone = solver.sample() if isinstance(solver, StochasticPower) and sampled else None
        chosen = list(range(len(self._tensors))) if everyone is None else everyone
        return chosen[trainer.global_rank :: trainer.world_size][part::parts], len(chosen)

    def _multiply(self, probe: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return this process's part of F̄ V, scaled so that the mean of all parts is F̄ V."""
        operator, trainer = self.operator, self.trainer
        parts = trainer.accumulate_grad_batches
        indices, together = self._share(self._part, parts)
        if parts == 1 and len(indices) == len(self._tensors):
            return super()._multiply(probe)
        if self.solver.request != "fisher":
            raise InputError(
                f"method: expected one that asks for products of F alone, got {self.solver.name} "
                f"asking for {self.solver.request!r}"
            )
        if not isinstance(operator, AverageFisherOperator):
            raise TypeError("operator: expected an AverageFisherOperator")
        products = operator.part(probe, indices) * (
            trainer.world_size * parts * len(self._tensors) / together
        )
        # −½ ⟨V, F̄ V⟩ is this part's −½ mean ‖Jᵢ V‖².
        return products, (probe * products).sum()

    @remember_signature
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return −½ mean ‖Jᵢ V‖² over a part of the pictures; its gradient is a part of −F̄ V."""
        self._part = batch_idx % self.trainer.accumulate_grad_batches
        return super().training_step(batch, batch_idx)

    _part = 0

    def _picture_record(self) -> dict[str, Any]:
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
