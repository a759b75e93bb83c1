"""One picture's solve as a Lightning module: the ask/tell loop, a turn a training step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from eigenexp.analysis import Amplitude, amplitude
from eigenexp.checkpoints.agreement import check_same
from eigenexp.distributed.exchange import Exchange
from eigenexp.eigensolvers import check_settings, multiply
from eigenexp.errors import ImageError, InputError, InputTypeError
from eigenexp.modules.metrics import monitored_metrics
from eigenexp.modules.solver_module import SolverModule
from eigenexp.modules.turns import check_trainer, is_double
from eigenexp.operators import FisherOperator
from eigenexp.operators.calling import copy_image
from eigenexp.operators.noise import Noise
from eigenexp.operators.perturbations import Perturbations, coordinates_at
from eigenexp.pictures.picture import Picture
from eigenexp.spectrum import Spectrum
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.storage.plain import plain

__all__ = ["EigendistortionModule"]

_OBSERVER_OPTIONS = ("noise", "perturbations", "model_dtype")
"""Options of an operator that say what its response is."""


class EigendistortionModule(SolverModule):
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
        How products are computed; ``"auto"`` chooses by trying them.
    parallel
        ``"columns"``: under several processes each multiplies its share of a block's columns; pays
        with methods that ask for blocks. Other than that, processes do the same work twice.
    noise
        How the response varies, one of :mod:`eigenexp.noise`; ``None`` for F = JᵀJ.
    perturbations
        Which changes are considered, of :mod:`eigenexp.perturbations`; ``None`` for all.
    operator_options
        More of :class:`~eigenexp.FisherOperator`: ``chunk_size``, ``recompute``, ``compile``,
        ``model_dtype`` (the model is then put in that precision, the solver stays in its own).
    solver_options
        Passed to the method: ``miss_chance`` (1e-3, or None for no search for missed pairs),
        ``relative_tol`` (of the bottom's eigenvalues), or for instance ``basis_size=40``.

    Raises
    ------
    InputTypeError, ImageError, InputError
        When the picture or a setting cannot be used; of the trainer's settings, in ``trainer.fit``.
    ModelError
        In ``trainer.fit``, when the model cannot be used.

    Notes
    -----
    ``trainer.callback_metrics`` has ``worst_residual``, ``products`` and ``eigenvalue/<i>`` after
    every turn, for ``ModelCheckpoint(monitor="worst_residual", every_n_train_steps=100)`` and the
    like. ``EarlyStopping`` looks at the end of an epoch, which is endless here:
    ``Trainer(limit_train_batches=50)`` makes epochs of 50 turns.

    Examples
    --------
    >>> module = EigendistortionModule(model, image, k=2, which="top", tol=1e-3)
    >>> trainer = L.Trainer(max_steps=2000, callbacks=[ee.ConvergenceStopping()])
    >>> trainer.fit(module)
    >>> [str(status) for status in module.spectrum().status]
    ['converged', 'converged']
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
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
        operator_options: Mapping[str, Any] | None = None,
        **solver_options: Any,
    ) -> None:
        if parallel not in (None, "columns"):
            raise InputError(
                f"parallel: expected None or 'columns' for one picture, got {parallel!r}; "
                "StudyModule takes many pictures, AverageModule their mean"
            )
        tensor = image.tensor if isinstance(image, Picture) else image
        super().__init__(
            model,
            _checked_image(tensor),
            {
                "method": method,
                "k": k,
                "which": which,
                "tol": tol,
                "seed": seed,
                "max_products": max_products,
                **solver_options,
            },
            {
                "route": route,
                **({} if noise is None else {"noise": noise}),
                **({} if perturbations is None else {"perturbations": perturbations}),
                **(operator_options or {}),
            },
        )
        self.picture = image if isinstance(image, Picture) else None
        self._parallel = parallel
        self._check_settings(self._image.dtype)
        # The callback that logs convergence sets this; without it the module logs for itself.
        self.logged_by_callback = False
        self._exchange: Exchange | None = None

    # -- what a user reads -----------------------------------------------------------------------

    @property
    def exchange(self) -> Exchange:
        """What processes exchange blocks through; there while ``trainer.fit`` trains."""
        if self._exchange is None:
            raise RuntimeError(
                "exchange: expected trainer.fit(module) at work; processes meet in it"
            )
        return self._exchange

    def spectrum(self) -> Spectrum:
        """Return the best pairs so far; ``eigenvectors`` are ``(k, C, H, W)``.

        Warns
        -----
        UserWarning
            When a pair is not converged and verified; its status and residual say how far it is.
        """
        spectrum = self.result()
        doubtful = [row for row in spectrum.rows() if row["status"] != "converged"]
        if doubtful and self.solver.done:
            worst = max(row["relative_residual"] for row in doubtful)
            warnings.warn(
                f"{len(doubtful)} of {len(spectrum)} pairs are not proven (worst residual "
                f"{worst:.1e} of λmax, tol {spectrum.tol:.1e}): {spectrum.stop_message}",
                stacklevel=2,
            )
        return spectrum

    def amplitude(self, spectrum: Spectrum | None = None) -> Amplitude:
        """Return how far each distortion may be scaled, see :func:`eigenexp.amplitude`.

        Parameters
        ----------
        spectrum
            Some of the pairs; by default all.

        Raises
        ------
        InputError
            For the mean of many pictures, which have no response together.
        ModelError
            When the model fails away from the picture, or the noise has no g.
        """
        if not isinstance(self.operator, FisherOperator):
            raise InputError(
                "amplitude: expected one picture, got the mean of many, which have no response "
                "together; solve one of them alone"
            )
        known = {} if self.picture is None else {"value_range": self.picture.record["value_range"]}
        options = self.operator_options
        chosen = self.solver.result() if spectrum is None else spectrum
        return amplitude(
            self.model,
            self.image,
            chosen.reshape(self.operator.image_shape),
            **{key: options[key] for key in _OBSERVER_OPTIONS if key in options},
            **known,
        )

    # -- set-up ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Freeze the model, move it and the picture, linearise, and build the solver."""
        trainer = self.trainer
        if stage not in ("fit", "predict"):
            raise InputError(
                f"{type(self).__name__}: expected trainer.fit or trainer.predict, got "
                f"trainer.{stage}"
            )
        self._prepare(self._solve_dtype(trainer), trainer.strategy.root_device)

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
        self._check_settings(self._solve_dtype(trainer))

    def _check_settings(self, dtype: torch.dtype) -> None:
        considered = self._operator_options.get("perturbations")
        shape = tuple(self._image.shape[1:])
        if considered is not None:
            coordinates = coordinates_at(considered, self._image.reshape(shape))
            shape = shape if coordinates is None else coordinates.shape
        check_settings(shape, dtype, **self._settings)

    # -- the loop --------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Meet the other processes; restore the global random state of a resumed run."""
        super().on_train_start()
        if self.is_distributed:
            self._check_processes_agree()
        self._exchange = Exchange(self.trainer, self.advice)
        if isinstance(self.model, nn.Module):
            self.model.eval()
        self._restore_random_state()
        self._show_progress()

    def _check_processes_agree(self) -> None:
        solver = self.solver
        settings = {**self._settings, **self._operator_options, "parallel": self._parallel}
        state = {
            "settings": plain(settings),
            "state": [solver.num_products, None if solver.done else tensor_sha256(solver.ask())],
        }
        check_same(self.trainer, plain(self.metadata()), state, self.advice)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """End the run when nothing is left to ask, with or without a stopping callback."""
        if self.solver.done:
            self.trainer.should_stop = True
            return -1
        return None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take one turn: ask the solver, multiply, tell it the products."""
        self._tell(*self._multiply(self.solver.ask()))

    def _multiply(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the solver requested for ``block``, and J V where all of it is at hand."""
        if self._parallel == "columns" and self.is_distributed:
            return self._multiply_share(block)
        products, responses = multiply(self.operator, self.solver.request, block)
        if not self.is_distributed:
            return products, responses
        # All have done the same: the mean keeps them the same to the last bit.
        return self.exchange.mean(products), None

    def _multiply_share(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """Multiply this process's columns, and gather those of all.

        Responses are gathered where the solver reads them, so that eigenvalues are ‖Jv‖² as by one
        process.
        """
        (rank, size), width = self.processes, block.shape[1]
        share = -(-width // size)
        first = min(rank * share, width)
        last = min(first + share, width)
        # A process without a column of its own multiplies one all the same, to know the sizes.
        own = block[:, first : max(last, first + 1)] if first < width else block[:, :1]
        products, responses = multiply(self.operator, self.solver.request, own.contiguous())

        def gather(columns: Tensor) -> Tensor:
            part = columns[:, : last - first]
            return self.exchange.gather_columns(part, share)[:, :width].contiguous()

        if responses is None or not self.solver.reads_responses:
            return gather(products), None
        return gather(products), gather(responses)

    def _tell(self, products: Tensor, responses: Tensor | None) -> None:
        self.solver.tell(products, responses)
        self.count_turn()
        self._show_progress()

    def _show_progress(self) -> None:
        """Keep ``trainer.callback_metrics`` current, which callbacks with a ``monitor`` read.

        Written there directly, at every turn: ``self.log`` takes 0.3 ms.
        """
        metrics = monitored_metrics(self.solver.progress(), self.solver.settings.n)
        self.trainer.callback_metrics.update(metrics)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the convergence norms when no callback of ours does."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        every = max(1, cast("Any", self.trainer).log_every_n_steps)
        if self.logged_by_callback or self.trainer.barebones or self.trainer.global_step % every:
            return
        progress = self.solver.progress()
        if math.isfinite(progress.worst):
            self.log_dict(
                {"worst_residual": progress.worst, "products": float(progress.num_products)},
                prog_bar=True,
            )

    def teardown(self, stage: str) -> None:
        """Let go of the other processes, also after an error."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _picture_record(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        return super()._picture_record(dtype) if self.picture is None else self.picture.record

    # -- trainer.predict -------------------------------------------------------------------------

    def predict_dataloader(self) -> list[int]:
        """Return one item: there is one spectrum.

        Raises
        ------
        InputError
            When there was neither a fit nor a checkpoint.
        """
        if self.solver.num_products == 0:
            raise InputError(
                "predict: expected trainer.fit(module) before, or ckpt_path=…; got a solver that "
                "has not begun"
            )
        return [0]

    def predict_step(self, batch: Any, batch_idx: int) -> Spectrum:
        """Return :meth:`spectrum`, of the fit before or of ``trainer.predict(ckpt_path=…)``."""
        with torch.inference_mode(False):
            return self.spectrum()


def _checked_image(image: Any) -> Tensor:
    """Return a copy of a picture that a solve can be of.

    Raises
    ------
    InputTypeError, ImageError
        One line that says what to pass instead.
    """
    if not isinstance(image, Tensor):
        raise InputTypeError(
            f"image: expected a tensor or a Picture, got {type(image).__name__}; "
            "load files with eigenexp.load_picture"
        )
    if image.ndim != 4 or image.shape[0] != 1:
        hint = {2: "image[None, None] makes one", 3: "image[None] makes one"}.get(
            image.ndim, "StudyModule takes many pictures"
        )
        raise ImageError(
            f"image: expected one picture of shape (1, C, H, W), got {tuple(image.shape)}; {hint}"
        )
    return copy_image(image)
