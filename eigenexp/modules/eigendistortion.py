"""The solver as a Lightning module: one ask/tell step is one training step.

The probe block V is the module's one trainable parameter and the loss is −½‖J V‖², whose
gradient with respect to V is −JᵀJ V = −F V. A thin optimizer hands that product to the solver and
puts the next block into the parameter. So ``global_step``, precision, devices, accumulation and
DDP's averaging of gradients mean what a Lightning user expects.

A solver that gathers J itself (``exact``) asks for J V, or Jᵀ U of a block ``(m, b)``. Those have
another shape than the probe: they reach the solver beside the gradient, which is then zero, and the
loss is −½‖J V‖² or −½‖Jᵀ U‖². Where gradients are averaged (DDP, accumulation) it gathers F.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from eigenexp.checkpoints.agreement import check_same
from eigenexp.checkpoints.compatibility import Difference, check_metadata
from eigenexp.checkpoints.files import METADATA_KEY
from eigenexp.checkpoints.provenance import checkpoint_metadata, model_fingerprint
from eigenexp.distributed.ranks import leave_at_exit, together
from eigenexp.distributed.team import Team, Topic
from eigenexp.eigensolvers import Eigensolver, check_settings, make_solver, multiply
from eigenexp.eigensolvers.recasting import recast_solver, state_dtype
from eigenexp.errors import CheckpointError, InputError, InputTypeError, ModelError
from eigenexp.modules.lightning_overhead import (
    may_step_directly,
    remember_signature,
    silence_profiler,
    step_directly,
    terminate,
)
from eigenexp.operators import AverageFisherOperator, FisherOperator
from eigenexp.pictures.picture import Picture
from eigenexp.spectrum import Spectrum
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.storage.plain import plain

__all__ = [
    "PRECISIONS",
    "EigendistortionModule",
    "ProbeSteps",
    "SolverOptimizer",
    "check_trainer",
    "is_double",
    "operator_settings",
]

RESUME_ADVICE = "go on from the last checkpoint"
ModuleOperator = FisherOperator | AverageFisherOperator
# Lightning sets the first up to forty times a step.
_SET_EACH_STEP = frozenset({"_current_fx_name", "_width", "_gathered", "_products", "_responses"})
PRECISIONS = ("32-true", "64-true", "32", "64")
_OPERATOR_OPTIONS = ("route", "chunk_size", "recompute", "compile", "model_dtype")


def operator_settings(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an operator's options, all of them known ones.

    Raises
    ------
    InputError
        When there is no such option.
    """
    chosen = dict(options or {})
    unknown = sorted(set(chosen) - set(_OPERATOR_OPTIONS))
    if unknown:
        raise InputError(
            f"operator_options: expected {', '.join(_OPERATOR_OPTIONS)}, got {unknown[0]!r}"
        )
    return chosen


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse a trainer that would falsify products.

    Raises
    ------
    InputError
        When its precision is mixed, or it clips gradients.
    """
    precision = str(trainer.precision)
    if precision not in PRECISIONS:
        raise InputError(
            f"precision: expected '32-true' or '64-true', got {precision!r}; the solver needs "
            "products at full precision"
        )
    if trainer.gradient_clip_val:
        raise InputError(
            f"gradient_clip_val: expected None, got {trainer.gradient_clip_val}; the gradient "
            "is the product F·v, which clipping falsifies"
        )


def is_double(trainer: L.Trainer) -> bool:
    """Whether the trainer's precision is float64."""
    return str(trainer.precision).startswith("64")


class ProbeSteps:
    """An endless data loader: each item is one turn of the ask/tell loop.

    Lightning needs batches to count steps; the solver needs none, so they are all alike.
    """

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class _HalfSquaredResponse(torch.autograd.Function):
    """V → −½‖J V‖², with gradient −F V; the product comes from the operator, not from autograd."""

    @staticmethod
    def forward(ctx: Any, probe: Tensor, module: EigendistortionModule) -> Tensor:
        products, energy = module._multiply(probe.detach())
        ctx.save_for_backward(torch.zeros_like(probe) if products is None else products)
        return -0.5 * energy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (products,) = ctx.saved_tensors
        return -grad_outputs[0] * products, None


class SolverOptimizer(torch.optim.Optimizer):
    """Hands the gradient to the solver as a product, and the solver's next block to the probe.

    Parameters
    ----------
    probe
        The module's parameter, ``(n, b)``.
    module
        The module whose solver is advanced.
    """

    def __init__(self, probe: nn.Parameter, module: EigendistortionModule) -> None:
        super().__init__([probe], {})
        self._module = module

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure (forward, backward), then ``tell`` and the next ``ask``."""
        if closure is None:
            raise InputError("SolverOptimizer.step: expected a closure, got None")
        with torch.enable_grad():
            # The backward pass is where processes meet.
            loss = together(self._module.trainer, closure, RESUME_ADVICE)
        self._module._advance()
        return loss


class EigendistortionModule(L.LightningModule):
    """Eigendistortions of a model at a picture, found by ``trainer.fit``.

    Parameters
    ----------
    model
        Any differentiable module or callable. It is frozen, put in ``eval`` mode while fitting,
        and not saved in checkpoints (its fingerprint is).
    image
        ``(1, C, H, W)`` picture in [0, 1], or a :class:`~eigenexp.pictures.Picture`. Copied.
    method
        ``"auto"``, ``"lanczos"``, ``"davidson"``, ``"power"``, ``"randomized_svd"``, ``"exact"``.
    k
        Eigenpairs wanted at each end.
    which
        ``"top"``, ``"bottom"`` or ``"both"``.
    tol
        A pair converges when ‖Fv − λv‖ ≤ tol · λmax and no pair beyond it was missed, but for
        the chance ``miss_chance``.
    seed
        Seeds the solver's own generator; the global random state is not touched.
    max_products
        Budget of products F·v; ``None`` for no limit.
    route
        How products are computed; ``"auto"`` chooses by probing the model.
    parallel
        ``"columns"``: under several processes each multiplies its share of a block's columns; pays
        with methods that ask for blocks. Other than that, processes do the same work twice.
    operator_options
        More of :class:`~eigenexp.FisherOperator`: ``chunk_size``, ``recompute``, ``compile``,
        ``model_dtype`` (the model is then put in that precision, the solver stays in its own).
    solver_options
        Passed to the method: ``miss_chance`` (1e-3, or None for no search for missed pairs),
        ``relative_tol`` (of the bottom's eigenvalues), or for instance ``basis_size=40``.

    Raises
    ------
    ImageError, ModelError, InputError
        In ``trainer.fit``, when the picture, the model or a setting cannot be used.

    Examples
    --------
    >>> module = EigendistortionModule(model, image, k=2, which="both", tol=1e-4)
    >>> trainer = L.Trainer(max_steps=2000, callbacks=[ConvergenceStopping()])
    >>> trainer.fit(module)
    >>> spectrum = module.spectrum()
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        image: Tensor | Picture,
        method: str = "auto",
        k: int = 1,
        which: str = "both",
        tol: float = 1e-4,
        seed: int = 0,
        max_products: int | None = None,
        route: str = "auto",
        parallel: str | None = None,
        operator_options: Mapping[str, Any] | None = None,
        **solver_options: Any,
    ) -> None:
        super().__init__()
        if parallel not in (None, "columns"):
            raise InputError(
                f"parallel: expected None or 'columns' for one picture, got {parallel!r}; "
                "StudyModule takes many pictures, AverageModule their mean"
            )
        self._parallel = parallel
        self.picture = image if isinstance(image, Picture) else None
        tensor = image.tensor if isinstance(image, Picture) else image
        if not isinstance(tensor, Tensor):
            raise InputTypeError(
                f"image: expected a tensor or a Picture, got {type(tensor).__name__}; "
                "load files with eigenexp.load_picture"
            )
        if not callable(model):
            raise InputTypeError(f"model: expected a callable, got {type(model).__name__}")
        # Held, not registered: the model is an input of the problem, not what is trained. It is
        # then in no state dict, no DDP bucket, and keeps its eval mode.
        self._held = (model,)
        self._image = tensor.detach().clone()
        self._settings: dict[str, Any] = {
            "method": method,
            "k": k,
            "which": which,
            "tol": tol,
            "seed": seed,
            "max_products": max_products,
            **solver_options,
        }
        given = {key: value for key, value in self._settings.items() if value is not None}
        self.save_hyperparameters({**given, "model": type(model).__name__})
        # Metadata that whoever launched the run wants kept in every checkpoint: plain containers.
        self.run_metadata: dict[str, Any] = {}
        # Continue a checkpoint of another model, picture or precision all the same.
        self.force_resume = False
        # Settings changed on purpose: never a reason to refuse a checkpoint.
        self.intended_changes: tuple[str, ...] = ("config",)
        # What differed between a resumed checkpoint and the present.
        self.resume_differences: list[Difference] = []
        # The callback that logs convergence sets this; without it the module logs for itself.
        self.logged_by_callback = False
        self.probe = nn.Parameter(torch.empty(0))
        self._operator_options = operator_settings({"route": route, **(operator_options or {})})
        self._operator: ModuleOperator | None = None
        self._solver: Eigensolver | None = None
        self._responses: Tensor | None = None
        self._gathered: Tensor | None = None
        # Columns of the block last asked for; the probe may be wider.
        self._width = 0
        self._products: Tensor | None = None
        self._steps_directly = False
        self._team: Team | None = None
        self._rng_state: dict[str, Any] | None = None
        self._fingerprint: dict[str, Any] | None = None
        # Only the solver's state goes into a checkpoint, so a state dict never matches strictly.
        self.strict_loading = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what is set at every step, and is no parameter, without a search."""
        if name in _SET_EACH_STEP:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # -- what a user reads -----------------------------------------------------------------------

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
    def team(self) -> Team:
        """The processes that take each step together; there while ``trainer.fit`` trains."""
        if self._team is None:
            raise RuntimeError("team: expected trainer.fit(module) at work; processes meet in it")
        return self._team

    @property
    def model(self) -> nn.Module | Callable[[Tensor], Any]:
        """The model, as it was given."""
        return self._held[0]

    @property
    def image(self) -> Tensor:
        """The picture, ``(1, C, H, W)``."""
        return self._image

    def spectrum(self) -> Spectrum:
        """Return the best pairs so far; ``eigenvectors`` are ``(k, C, H, W)``.

        Warns
        -----
        UserWarning
            When a pair is not converged and verified; its status and residual say how far it is.
        """
        spectrum = self.solver.result().reshape(self.operator.image_shape)
        doubtful = [row for row in spectrum.rows() if row["status"] != "converged"]
        if doubtful and self.solver.done:
            worst = max(row["relative_residual"] for row in doubtful)
            warnings.warn(
                f"{len(doubtful)} of {len(spectrum)} pairs are not proven (worst residual "
                f"{worst:.1e} of λmax, tol {spectrum.tol:.1e}): {spectrum.stop_message}",
                stacklevel=2,
            )
        return spectrum

    # -- set-up ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Freeze the model, move it and the picture, linearise, and build the solver."""
        trainer = self.trainer
        if stage != "fit":
            raise InputError(f"EigendistortionModule: expected trainer.fit, got trainer.{stage}")
        check_trainer(trainer)
        silence_profiler(trainer)
        dtype = self._solve_dtype(trainer)
        device = trainer.strategy.root_device
        solver = self._solver
        if solver is not None and solver.dtype == dtype and solver.device == device:
            self._set_probe()
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
        self._set_probe()

    def _solve_dtype(self, trainer: L.Trainer) -> torch.dtype:
        return torch.float64 if is_double(trainer) else self._image.dtype

    def check(self, trainer: L.Trainer) -> None:
        """Raise what ``trainer.fit`` would raise of settings, before anything is begun.

        Raises
        ------
        InputError
            When the trainer's precision, or a setting of the solver, cannot be used.
        """
        check_trainer(trainer)
        shape = tuple(self._image.shape[1:])
        check_settings(shape, self._solve_dtype(trainer), **self._settings)

    def _make_operator(self, options: Mapping[str, Any]) -> ModuleOperator:
        """Return the operator whose eigenpairs are sought."""
        return FisherOperator(self.model, self._image, **options)

    def _make_solver(self, operator: ModuleOperator) -> Eigensolver:
        """Return the solver of the settings."""
        return make_solver(operator, **self._settings)

    def _set_probe(self) -> None:
        """Put the solver's next block into the parameter; pad to a fixed width under DDP."""
        solver = self.solver
        if solver.done:
            return
        block = solver.ask()
        self._width = block.shape[1]
        if self._is_distributed and block.shape[1] < solver.block_size:
            # DDP builds its buckets once; zero columns cost nothing and are not counted.
            padding = block.new_zeros(block.shape[0], solver.block_size - block.shape[1])
            block = torch.cat([block, padding], dim=1)
        if self.probe.shape == block.shape:
            self.probe.data.copy_(block)
        else:
            # Fresh strides: DDP refuses a column that is a slice of a row-major block.
            self.probe.data = block.new_empty(block.shape).copy_(block)
            self.probe.grad = None

    @property
    def _is_distributed(self) -> bool:
        return self._trainer is not None and self.trainer.world_size > 1

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer that advances the solver."""
        return cast("OptimizerLRScheduler", SolverOptimizer(self.probe, self))

    def train_dataloader(self) -> ProbeSteps:
        """Return the endless loader of solver steps."""
        return ProbeSteps()

    # -- the loop --------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Restore the global random state of a resumed run; keep the model in ``eval``."""
        if self._is_distributed:
            self._check_processes_agree()
        self._steps_directly = may_step_directly(self.trainer, self)
        self._team = team = Team(self.trainer, RESUME_ADVICE)
        team.talks = self._steps_directly and team.is_linked
        step_directly(
            self.trainer,
            self if self._steps_directly else None,
            team.terminated if team.talks else None,
        )
        if isinstance(self.model, nn.Module):
            self.model.eval()
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state["cpu"])
            if torch.cuda.is_available() and self._rng_state["cuda"]:
                torch.cuda.set_rng_state_all(self._rng_state["cuda"])
            self._rng_state = None

    def _check_processes_agree(self) -> None:
        solver = self.solver
        settings = {**self._settings, **self._operator_options, "parallel": self._parallel}
        state = {
            "settings": plain(settings),
            "state": [solver.num_products, tensor_sha256(self.probe)],
        }
        check_same(self.trainer, plain(self.metadata()), state, RESUME_ADVICE)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """End the run when nothing is left to ask, with or without a stopping callback."""
        if self.solver.done:
            self.trainer.should_stop = True
            return -1
        return None

    def on_train_end(self) -> None:
        """Leave the other processes in order when this one exits."""
        leave_at_exit()

    def teardown(self, stage: str) -> None:
        """Let go of the other processes, also after an error."""
        if self._team is not None:
            self._team.close()

    @remember_signature
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return −½‖J V‖² for the block in the probe; its gradient is −F V."""
        if self._steps_directly:
            products, energy = self._multiply(self.probe.detach())
            if self._parallel != "columns":
                # What DDP does to gradients.
                products = self._mean_of_processes(products)
            self._products = products
            return -0.5 * energy
        apply = cast("Callable[..., Tensor]", _HalfSquaredResponse.apply)
        return apply(self.probe, self)

    def _mean_of_processes(self, products: Tensor | None) -> Tensor | None:
        if products is not None:
            return self.team.mean(products)
        self.team.meet(self.probe.detach())
        return None

    def direct_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Take a training step, and hand its product to the solver where no gradient need be."""
        loss = self.training_step(batch, batch_idx)
        products, self._products = self._products, None
        self._advance(products)
        if self.team.heard(Topic.TERMINATED):
            terminate(self.trainer)
        return loss

    def _multiply(self, probe: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return F V, or None where the solver asked for J V or Jᵀ U, and the energy ‖·‖²."""
        if self._parallel == "columns" and self._is_distributed:
            return self._multiply_share(probe)
        request = self.solver.request
        products, responses = multiply(self.operator, request, probe)
        if request != "fisher":
            self._gathered = products
            return None, products.square().sum()
        self._responses = responses
        measured = products if responses is None else responses
        return products, measured.square().sum()

    def _multiply_share(self, probe: Tensor) -> tuple[Tensor | None, Tensor]:
        """Multiply this process's columns; return what makes the whole block of F V.

        On the short way that is the block itself, gathered; on the whole way it is this process's
        part, whose mean over processes is the block. Responses are gathered where the solver reads
        them, so that eigenvalues are ‖Jv‖² as by one process; so is what the solver asked for where
        it is not F V.
        """
        ranks, width = self.trainer.world_size, self._width
        share = -(-width // ranks)
        first = min(self.trainer.global_rank * share, width)
        last = min(first + share, width)
        # A process without a column of its own multiplies one all the same, to know the sizes.
        own = probe[:, first : max(last, first + 1)] if first < width else probe[:, :1]
        request = self.solver.request
        product, responses = multiply(self.operator, request, own.contiguous())

        def gather(block: Tensor) -> Tensor:
            part = block[:, : last - first]
            return self.team.gather_columns(part, share)[:, :width]

        if request != "fisher":
            self._gathered = gather(product)
            return None, self._gathered.square().sum()
        if self._steps_directly:
            products = gather(product)
        else:
            products = torch.zeros_like(probe)
            products[:, first:last] = ranks * product[:, : last - first]
        if responses is None or not self.solver.reads_responses:
            return products, (probe[:, : products.shape[1]] * products).sum()
        self._responses = gather(responses).contiguous()
        return products, self._responses.square().sum()

    def _advance(self, products: Tensor | None = None) -> None:
        """Tell the solver what it asked for; load the next block.

        ``products`` is F V, where it is not in ``probe.grad``. Anything else the solver asked for
        was gathered beside the gradient.
        """
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            products = gathered
        elif products is None:
            if self.probe.grad is None:
                raise ModelError("training_step: expected a gradient of the probe, got none")
            products = self.probe.grad.neg()
        width = self._width
        # A solver told no J V asks for none.
        responses = self._responses if self._has_all_responses else None
        self._responses = None
        self.solver.tell(products[:, :width], None if responses is None else responses[:, :width])
        self._set_probe()

    @property
    def _has_all_responses(self) -> bool:
        """Whether J V is at hand; of a mean over processes or batches one part is not its root."""
        if self.trainer.accumulate_grad_batches > 1:
            return False
        return not self._is_distributed or self._parallel == "columns"

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the convergence norms when no callback of ours does."""
        every = max(1, getattr(self.trainer, "log_every_n_steps", 50))
        if self.logged_by_callback or self.trainer.global_step % every:
            return
        progress = self.solver.progress()
        if math.isfinite(progress.worst):
            self.log_dict(
                {"worst_residual": progress.worst, "products": float(progress.num_products)},
                prog_bar=True,
            )

    # -- checkpoints -----------------------------------------------------------------------------

    def _response(self) -> Tensor | None:
        """Return f(x) where it is at hand."""
        return (
            self._operator.jacobian.response if isinstance(self._operator, FisherOperator) else None
        )

    def _picture_record(self) -> dict[str, Any]:
        if self.picture is not None:
            return self.picture.record
        return {"sha256": tensor_sha256(self._image), "shape": list(self._image.shape)}

    def metadata(self) -> dict[str, Any]:
        """Return where this solve comes from: versions, commit, fingerprints, settings."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model, self._image, self._response())
        picture = self._picture_record()
        return checkpoint_metadata(
            model=self._fingerprint,
            picture=picture,
            dtype=self.solver.dtype,
            device=self.solver.device,
            solver=self._settings,
            **self.run_metadata,
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
        if self.picture is None:
            current["picture"]["sha256"] = tensor_sha256(self._image.to(dtype))
        return current

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace the weights by the solver's whole state and plain metadata."""
        checkpoint["state_dict"] = {}
        progress = self.solver.progress()
        checkpoint[METADATA_KEY] = {
            "solver": self.solver.state_dict(),
            "route": self.operator.route,
            "rng_state": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            "progress": {
                "num_products": progress.num_products,
                "eigenvalues": progress.eigenvalues.tolist(),
                "residuals": progress.residuals.tolist(),
                "eigenindex": progress.eigenindex.tolist(),
                "scale": float(progress.scale),
                "phase": progress.phase,
            },
            "metadata": self.metadata(),
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the solver's state; the route of the products is the saved one.

        Raises
        ------
        CheckpointError
            When the checkpoint holds no solver or one that does not fit the settings.
        """
        saved = checkpoint.get(METADATA_KEY)
        if not isinstance(saved, Mapping) or "solver" not in saved:
            raise CheckpointError(
                "checkpoint: expected one of an EigendistortionModule, got one without a solver "
                "state; pass the checkpoint of an eigenexp run"
            )
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
        self._rng_state = dict(saved["rng_state"])
        if saved["route"] != self.operator.route:
            self._operator = self._make_operator(
                {**self._operator_options, "route": saved["route"]}
            )
        self._load(saved["solver"])
        self._set_probe()

    def _load(self, state: Mapping[str, Any]) -> None:
        """Continue from a solver's state; in another precision, from its vectors."""
        if state_dtype(state) == self.solver.dtype:
            self.solver.load_state_dict(state)
        else:
            self._solver = recast_solver(self.operator, self._settings, state)
