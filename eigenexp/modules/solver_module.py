"""A module that holds an operator and its solver, and saves where the solve stands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from eigenexp.checkpoints.compatibility import Difference, check_metadata
from eigenexp.checkpoints.files import METADATA_KEY
from eigenexp.checkpoints.lightning_io import AtomicCheckpointIO
from eigenexp.checkpoints.provenance import checkpoint_metadata, model_fingerprint
from eigenexp.eigensolvers import Eigensolver, Progress, make_solver
from eigenexp.eigensolvers.recasting import recast_solver, state_dtype
from eigenexp.errors import CheckpointError, EigenexpError, InputError, summary
from eigenexp.models.weights import weights_note
from eigenexp.modules.turns import TurnModule, count_on, operator_settings
from eigenexp.operators import AverageFisherOperator, FisherOperator
from eigenexp.operators.calling import check_callable
from eigenexp.spectrum import Spectrum
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.storage.plain import plain

__all__ = ["ModuleOperator", "SolverModule"]

ModuleOperator = FisherOperator | AverageFisherOperator


class SolverModule(TurnModule):
    """The problem (model, picture, settings), its operator and solver, and their checkpoints.

    Parameters
    ----------
    model
        Any differentiable module or callable.
    image
        ``(1, C, H, W)``, the module's own.
    settings
        ``method`` and everything else that :func:`~eigenexp.eigensolvers.make_solver` takes.
    operator_options
        Of :class:`~eigenexp.FisherOperator`.

    Raises
    ------
    InputTypeError, InputError
        When the model is no callable or there is no such option.
    """

    inputs: ClassVar[tuple[str, ...]] = ("model", "image")
    """What a checkpoint does not hold, and :meth:`load_from_checkpoint` must be given."""

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        image: Tensor,
        settings: dict[str, Any],
        operator_options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        check_callable(model)
        # Held, not registered: the model is an input of the problem, not what is trained. It is
        # then in no state dict, no DDP bucket, and keeps its eval mode.
        self._held = (model,)
        self._image = image
        self._settings = settings
        given = {key: value for key, value in settings.items() if value is not None}
        self.save_hyperparameters({**given, "model": type(model).__name__})
        # Metadata that whoever launched the run wants kept in every checkpoint: plain containers.
        self.run_metadata: dict[str, Any] = {}
        # Continue a checkpoint of another model, picture or precision all the same.
        self.force_resume = False
        # Settings changed on purpose: never a reason to refuse a checkpoint.
        self.intended_changes: tuple[str, ...] = ("config",)
        # What differed between a resumed checkpoint and the present.
        self.resume_differences: list[Difference] = []
        self._operator_options = operator_settings(operator_options)
        self._operator: ModuleOperator | None = None
        self._solver: Eigensolver | None = None
        self._random_state: Mapping[str, Any] | None = None
        self._fingerprint: dict[str, Any] | None = None

    @property
    def operator_options(self) -> dict[str, Any]:
        """What the operator is made with when a fit begins."""
        return dict(self._operator_options)

    @property
    def solver(self) -> Eigensolver:
        """The solver; available from the start of ``trainer.fit`` on."""
        if self._solver is None:
            raise RuntimeError("solver: expected trainer.fit(module) first; it builds the solver")
        return self._solver

    @property
    def operator(self) -> ModuleOperator:
        """The Fisher operator; available from the start of ``trainer.fit`` on."""
        if self._operator is None:
            raise RuntimeError("operator: expected trainer.fit(module) first; it linearises f")
        return self._operator

    @property
    def model(self) -> nn.Module | Callable[[Tensor], Any]:
        """The model, as it was given."""
        return self._held[0]

    @property
    def image(self) -> Tensor:
        """The picture, ``(1, C, H, W)``."""
        return self._image

    def result(self) -> Spectrum:
        """Return the best pairs so far, in the picture's shape; notes say what is to be known."""
        pairs = self.solver.result().reshape(self.operator.image_shape)
        return pairs.with_notes(weights_note(self.model))

    # -- set-up ----------------------------------------------------------------------------------

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> None:
        solver = self._solver
        if solver is not None and solver.dtype == dtype and solver.device == device:
            return
        if isinstance(self.model, nn.Module):
            model_dtype = self._operator_options.get("model_dtype") or dtype
            self.model.requires_grad_(False).eval().to(device=device, dtype=model_dtype)
        self._image = self._image.to(device=device, dtype=dtype)
        self._operator = self._make_operator(self._operator_options)
        state = None if solver is None else solver.state_dict()
        self._solver = self._make_solver(self._operator)
        if state is not None:
            self._load(state)

    def _make_operator(self, options: Mapping[str, Any]) -> ModuleOperator:
        """Return the operator whose eigenpairs are sought."""
        return FisherOperator(self.model, self._image, **options)

    def _make_solver(self, operator: ModuleOperator) -> Eigensolver:
        """Return the solver of the settings."""
        return make_solver(operator, **self._settings)

    # -- checkpoints -----------------------------------------------------------------------------

    def _response(self) -> Tensor | None:
        """Return f(x) where it is at hand."""
        return (
            self._operator.jacobian.response if isinstance(self._operator, FisherOperator) else None
        )

    def _picture_record(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Return what says which picture it is; hashed in ``dtype`` where pixels are hashed."""
        image = self._image if dtype is None else self._image.to(dtype)
        return {"sha256": tensor_sha256(image), "shape": list(image.shape)}

    def metadata(self) -> dict[str, Any]:
        """Return where this solve comes from: versions, commit, fingerprints, settings."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model, self._image, self._response())
        return checkpoint_metadata(
            model=self._fingerprint,
            picture=self._picture_record(),
            dtype=self.solver.dtype,
            device=self.solver.device,
            solver=self._settings,
            weights=weights_note(self.model) or None,
            **{**self.operator.problem.told(), **self.run_metadata},
        )

    def _metadata_like(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return :meth:`metadata` for comparison, hashed in the checkpoint's precision.

        Going from float32 to float64 keeps every weight and pixel: only hashed in float32 they are
        seen to be the same.
        """
        current = self.metadata()
        dtype = {str(d): d for d in (torch.float32, torch.float64)}.get(str(saved.get("dtype")))
        if dtype is None or dtype == self.solver.dtype:
            return current
        response = self._response()
        current["model"] = plain(model_fingerprint(self.model, self._image, response, dtype))
        current["picture"] = plain(self._picture_record(dtype))
        return current

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace the weights by the solver's whole state and plain metadata."""
        checkpoint["state_dict"] = {}
        checkpoint[METADATA_KEY] = {
            "solver": self.solver.state_dict(),
            "route": self.operator.route,
            "rng_state": _random_state(),
            "progress": _progress_record(self.solver.progress()),
            "metadata": self.metadata(),
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the solver's state; the route of the products is the saved one.

        Raises
        ------
        CheckpointError
            When the checkpoint holds no solver or one that does not fit the settings.
        """
        saved = _solver_record(checkpoint)
        try:
            self._take_up(saved, checkpoint)
        except EigenexpError:
            raise
        except (
            TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError,
        ) as error:  # fmt: skip
            raise CheckpointError(
                "checkpoint: expected a solver's state, got one with something of a wrong kind in "
                f"it ({summary(error)}); use an earlier one"
            ) from error

    def _take_up(self, saved: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
        if self._operator is None:  # no trainer has set it up
            self._prepare(state_dtype(saved["solver"]), self._image.device)
        if "metadata" in saved:
            self.resume_differences = check_metadata(
                saved["metadata"],
                self._metadata_like(saved["metadata"]),
                force=self.force_resume,
                intended=self.intended_changes,
            )
        # max_time is what each process gets: a resumed one does not begin with its time used up.
        callbacks = checkpoint.get("callbacks")
        if isinstance(callbacks, dict):
            callbacks.pop("Timer", None)
        count_on(checkpoint)
        self._random_state = dict(saved["rng_state"])
        torch.Generator().set_state(self._random_state["cpu"])  # raises where it is none
        if saved["route"] != self.operator.route:
            self._operator = self._make_operator(
                {**self._operator_options, "route": saved["route"]}
            )
        self._load(saved["solver"])

    def _restore_random_state(self) -> None:
        """Take up the global random state of a checkpoint, as far as its devices are here."""
        state, self._random_state = self._random_state, None
        if state is None:
            return
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_available() and state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])

    def _load(self, state: Mapping[str, Any]) -> None:
        """Continue from a solver's state; in another precision, from its vectors."""
        if state_dtype(state) == self.solver.dtype:
            self.solver.load_state_dict(state)
        else:
            self._solver = recast_solver(self.operator, self._settings, state)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: Any = "cpu",
        **inputs: Any,
    ) -> Self:
        """Return the module as it was saved: :meth:`spectrum` is there, and ``fit`` goes on.

        Parameters
        ----------
        checkpoint_path
            A checkpoint, or a folder of them.
        map_location
            Where its tensors are read to; the solve is where the picture is.
        inputs
            ``model`` and ``image`` (of a mean, ``pictures``), which a checkpoint does not hold;
            other arguments of the module, which then count instead of the saved ones.

        Raises
        ------
        InputError
            When one of them is missing.
        CheckpointError
            When the file cannot be used, or was saved of another model or picture.
        """
        missing = [name for name in cls.inputs if name not in inputs]
        if missing:
            raise InputError(
                f"load_from_checkpoint: expected {missing[0]}=…, got none; a checkpoint holds the "
                f"solve, and neither {' nor '.join(cls.inputs)}"
            )
        path = os.fspath(checkpoint_path)
        checkpoint = AtomicCheckpointIO().load_checkpoint(path, map_location)
        # Not the hyper-parameters: they leave out what is None.
        settings = _solver_record(checkpoint)["metadata"]["solver"]
        module = cls(**{**settings, **inputs})
        module.on_load_checkpoint(checkpoint)
        return module


def _random_state() -> dict[str, Any]:
    """Return the global random state, which Lightning does not save."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _progress_record(progress: Progress) -> dict[str, Any]:
    """Return a progress as plain values, to be read without a solver."""
    return {
        "num_products": progress.num_products,
        "eigenvalues": progress.eigenvalues.tolist(),
        "residuals": progress.residuals.tolist(),
        "eigenindex": progress.eigenindex.tolist(),
        "scale": float(progress.scale),
        "phase": progress.phase,
    }


def _solver_record(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a module saved of its solver.

    Raises
    ------
    CheckpointError
        When the checkpoint holds none.
    """
    saved = checkpoint.get(METADATA_KEY)
    if not isinstance(saved, Mapping) or "solver" not in saved:
        raise CheckpointError(
            "checkpoint: expected one of an EigendistortionModule, got one without a solver "
            "state; pass the checkpoint of an eigenexp run"
        )
    return saved
