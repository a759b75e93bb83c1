"""What all processes of a study go by: decided once by the first, kept, and checked ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eigenexp.checkpoints.compatibility import check_metadata
from eigenexp.checkpoints.provenance import checkpoint_metadata, model_fingerprint
from eigenexp.eigensolvers import make_solver
from eigenexp.errors import CheckpointError, EigenexpError, InputError
from eigenexp.operators import BatchedFisherOperator, FisherOperator
from eigenexp.operators.batched import pictures_at_once
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.sources import PictureSource
from eigenexp.storage.plain import plain
from eigenexp.study.folder import StudyFolder

__all__ = ["Planner", "cohorts"]


@dataclass(frozen=True)
class Planner:
    """Plans a study of a model at pictures, by the first one of them that can be used.

    Attributes
    ----------
    model
        In the state in which it is solved, on ``device``.
    sources
        The pictures, in order.
    device
        Of the solve.
    solver, operator
        Settings of :func:`~eigenexp.eigensolvers.make_solver` and of
        :class:`~eigenexp.operators.FisherOperator`.
    run_metadata
        What else :func:`~eigenexp.checkpoints.checkpoint_metadata` is to hold.
    """

    model: nn.Module | Callable[[Tensor], Any]
    sources: Sequence[PictureSource]
    device: torch.device
    solver: Mapping[str, Any]
    operator: Mapping[str, Any]
    run_metadata: Mapping[str, Any]

    def plan(
        self, folder: StudyFolder, *, batch_size: int | str, cohort: int | None, force: bool
    ) -> None:
        """Write the plan of a new study, or check that of one that goes on.

        Parameters
        ----------
        folder
            Where the study lies.
        batch_size, cohort
            As for :class:`~eigenexp.study.StudyModule`; a study that goes on keeps its own.
        force
            Go on although model or picture differ.

        Raises
        ------
        CheckpointError
            When the folder holds a study of other pictures, or of another model.
        EigenexpError
            When a setting cannot be used, or no picture can.
        """
        names = [{"name": source.name, "where": source.where} for source in self.sources]
        before = folder.read_plan()
        if before is not None and before["pictures"] != names:
            raise CheckpointError(
                f"{folder.path}: expected a study of these {len(names)} pictures, got one of "
                f"{len(before['pictures'])} others; choose another folder, or pass its pictures"
            )
        # Defaults are left out, so that a study of an older version has none but these.
        chosen = sorted(self.operator.items())
        options = {name: str(value) for name, value in chosen if value not in ("auto", None, False)}
        if before is not None and before.get("operator", {}) != options:
            raise CheckpointError(
                f"{folder.path}: expected the operator's options that this study began with, "
                f"{before.get('operator', {})}, got {options}; begin a new study to change them"
            )
        _, fisher = self._first
        make_solver(fisher, **self.solver)  # a wrong setting is one error, not one a picture
        if before is not None:
            check_metadata(before["metadata"], self._metadata, force=force, intended=("config",))
            return
        size = self._choose_batch(batch_size)
        folder.write_plan(
            {
                "pictures": names,
                "batch_size": size,
                "cohort": cohort,
                "route": fisher.route if size > 1 else self.operator.get("route", "auto"),
                "operator": options,
                "metadata": self._metadata,
            }
        )

    def problem(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what must be the same in all processes, as far as this one can read it.

        Returns
        -------
        tuple
            Metadata and state for :func:`~eigenexp.distributed.ranks.check_same`.
        """
        state: dict[str, Any] = {"settings": plain({**self.solver, **self.operator})}
        try:
            metadata = plain(self._metadata)
        except EigenexpError:
            return {}, {**state, "pictures": "none of them usable"}
        return metadata, {**state, "pictures": [source.name for source in self.sources]}

    @cached_property
    def _first(self) -> tuple[Picture, FisherOperator]:
        """The first picture that can be solved; the others get their errors in their turn."""
        first: EigenexpError | None = None
        for source in self.sources:
            try:
                picture = source.load()
                image = picture.tensor.to(self.device)
                return picture, FisherOperator(self.model, image, **self.operator)
            except EigenexpError as error:
                first = first or error
        raise first or InputError("pictures: expected at least one, got none")

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        picture, fisher = self._first
        image = picture.tensor.to(self.device)
        return checkpoint_metadata(
            model=model_fingerprint(self.model, image, fisher.jacobian.response),
            picture=picture.record,
            dtype=fisher.dtype,
            device=self.device,
            solver=dict(self.solver),
            **{**fisher.problem.told(), **self.run_metadata},
        )

    def _choose_batch(self, wanted: int | str) -> int:
        """Return how many pictures go in one pass; 1 unless the model proves to treat them apart.

        The proof is made once, on the first pictures of one shape.
        """
        picture, fisher = self._first
        size = (
            pictures_at_once(fisher.jacobian.width, fisher.dtype, fisher.device)
            if isinstance(wanted, str)
            else wanted
        )
        size = min(size, len(self.sources))
        if size < 2:
            return 1
        images = [picture.tensor.to(self.device)]
        for source in self.sources:
            if len(images) == size:
                break
            try:
                image = source.load().tensor.to(self.device)
            except EigenexpError:
                continue
            if image.shape == images[0].shape and not torch.equal(image, images[0]):
                images.append(image)
        if len(images) < 2:
            return 1
        options = {**self.operator, "route": fisher.route}
        batch = BatchedFisherOperator(self.model, images, **options)
        return size if batch.one_pass else 1


def cohorts(count: int, batch_size: int, size: int | None = None) -> list[list[int]]:
    """Divide ``count`` pictures into cohorts, in order.

    Parameters
    ----------
    size
        Pictures in a cohort. ``None``: one where pictures go alone; else at least a batch and at
        most four, and sixteen cohorts where the pictures allow it. More pictures in a cohort keep
        its batch full for longer; more cohorts share out better over processes.
    """
    if size is None:
        size = 1 if batch_size == 1 else max(batch_size, min(4 * batch_size, -(-count // 16)))
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]
