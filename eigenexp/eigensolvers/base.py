"""The ask/tell contract every eigensolver keeps.

.. code-block:: python

    solver = Lanczos(n, k=5, which="both", tol=1e-6, seed=0)
    while not solver.done:
        block = solver.ask()                # (n, b)
        solver.tell(operator @ block)
    spectrum = solver.result()

A solver is frozen settings plus explicit state. It knows tensors only: no model, no file, no
logger. Its state can be saved after any ``tell`` and the rest of the run is then bit-identical.
"""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.numerics import check_numbers, rounding_floor, unit_of
from eigenexp.eigensolvers.progress import Progress
from eigenexp.eigensolvers.settings import MISS_CHANCE, Settings, Which
from eigenexp.errors import CheckpointError, InputError, InputTypeError, ProductError
from eigenexp.operators.perturbations import Coordinates
from eigenexp.operators.protocol import Request
from eigenexp.spectrum import Spectrum, StopReason
from eigenexp.storage.plain import plain

__all__ = ["Eigensolver"]

STATE_VERSION = 2


class Eigensolver(abc.ABC):
    """Base of all eigensolvers: validation, counting, state; subclasses do the mathematics.

    A subclass implements ``_ask``, ``_tell``, ``_export_state``, ``_import_state``, and in the
    units that products are told in (:func:`.numerics.unit_of`) ``_progress`` and ``_result``.
    Random numbers come from :meth:`_randn` alone (drawn on the CPU, so equal on every device).
    ``_tell`` must either finish or leave the state as it was.

    Parameters
    ----------
    n, k, which, tol, seed, max_products, rank_bound, image_shape, miss_chance, relative_tol
        See :class:`Settings`.
    dtype, device
        Of the blocks asked for and the products told: the model's own. Small projected problems
        are solved in float64 whatever the dtype.
    start
        ``(n, s)`` vectors worth trying first (the picture and the constant, for gain control), or
        ``None``. Need not be orthogonal.
    product_eps
        Relative rounding of the products where it is worse than ``dtype``'s (a bf16 network).
    work
        Multiplications of one product, where they are counted.
    embedding
        B, where vectors are coordinates of changes e = B z of a picture; :meth:`result` returns e.
    strict_verification
        Accepted with a warning: it is ``miss_chance`` now.
    """

    name: ClassVar[str]

    def __init__(
        self,
        n: int,
        *,
        k: int = 1,
        which: Which = "both",
        tol: float = 1e-4,
        seed: int = 0,
        max_products: int | None = None,
        rank_bound: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        start: Tensor | None = None,
        product_eps: float = 0.0,
        work: int | None = None,
        embedding: Coordinates | None = None,
        miss_chance: float | None = MISS_CHANCE,
        relative_tol: float | None = None,
        strict_verification: bool | None = None,
    ) -> None:
        if strict_verification:
            warnings.warn(
                "strict_verification is miss_chance now, the chance a missed pair may have: every "
                f"search is followed until it is reached (here {miss_chance})",
                DeprecationWarning,
                stacklevel=2,
            )
        self.settings = Settings(
            n=n,
            k=k,
            which=which,
            tol=tol,
            seed=seed,
            max_products=max_products,
            rank_bound=rank_bound,
            image_shape=None if image_shape is None else tuple(image_shape),
            miss_chance=miss_chance,
            relative_tol=relative_tol,
        )
        if dtype not in (torch.float32, torch.float64):
            raise InputTypeError(
                f"dtype: expected torch.float32 or torch.float64, got {dtype}; solve in float32"
            )
        self.dtype = dtype
        self.device = torch.device(device)
        # Relative rounding of one product, and the residual over λmax it cannot resolve.
        self.eps = max(float(torch.finfo(dtype).eps), product_eps)
        self.floor = rounding_floor(dtype, n, product_eps)
        if start is not None:
            if start.ndim != 2 or start.shape[0] != n:
                raise InputError(f"start: expected shape ({n}, s), got {tuple(start.shape)}")
            start = start.detach().to(dtype=dtype, device=self.device, copy=True)
        self.start = start
        self.embedding, self.work = embedding, work
        # Why this method was taken, where ``auto`` chose it.
        self.choice: str | None = None
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        self._num_products = 0
        self._num_verification_products = 0
        self._stop_reason: StopReason | None = None
        self._pending: Tensor | None = None
        self._latest: Progress | None = None
        # What F is measured in: known from the first product that is not 0.
        self._unit: float | None = None

    @property
    def unit(self) -> float:
        """What products are divided by before anything is computed of them: a power of 4."""
        return self._unit or 1.0

    # -- the loop ------------------------------------------------------------------------------

    @property
    def request(self) -> Request:
        """What ``tell`` expects for the block asked.

        ``"fisher"``: F·V; ``"jacobian"``: J·V; ``"adjoint"``: Jᵀ·U (the block is then ``(m, b)``).
        """
        return "fisher"

    def ask(self) -> Tensor:
        """Return the next block ``(n, b)``; the same one until it is told.

        Raises
        ------
        RuntimeError
            When the solver is done.
        """
        if self.done:
            raise RuntimeError(f"ask: the solver is done ({self._stop_reason}); read result()")
        if self._pending is None:
            self._pending = self._ask()
            self._latest = None
        return self._pending.clone()

    def tell(self, products: Tensor, responses: Tensor | None = None) -> None:
        """Take the products of the block last asked for; arguments are not changed.

        Parameters
        ----------
        products
            ``(n, b)``: F·V (see :attr:`request` for the exceptions).
        responses
            ``(m, b)``: J·V, where at hand. Eigenvalues are then read as ‖Jv‖², which has no
            cancellation.

        Raises
        ------
        ProductError
            When nothing was asked, or the products have the wrong shape, dtype or device, hold
            NaN or inf, or cannot come from a symmetric operator. The state stays as it was.
        """
        block = self._pending
        if block is None:
            raise ProductError("tell: expected ask() before tell(), got products nobody asked for")
        self._check_products(products, block)
        if responses is not None and (responses.ndim != 2 or responses.shape[1] != block.shape[1]):
            raise ProductError(
                f"tell: expected responses of shape (m, {block.shape[1]}), "
                f"got {tuple(responses.shape)}"
            )
        self._latest = None
        self._tell(block, *self._in_units(products, responses))
        self._pending = None
        budget = self.settings.max_products
        if self._stop_reason is None and budget is not None and self._num_products >= budget:
            self._stop_reason = StopReason.MAX_PRODUCTS

    def _in_units(self, products: Tensor, responses: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what was told, measured so that its squares are at home in the dtype."""
        is_square = self.request == "fisher"
        if self._unit is None:
            largest = float(products.abs().max()) if products.numel() else 0.0
            if largest > 0:
                self._unit = unit_of(largest, self.dtype, squared=is_square)
            elif responses is not None and bool(responses.any()):
                raise ProductError(
                    f"tell: expected products that {self.dtype} can hold, got 0 for a response "
                    "that is not; scale the model's response up, or solve in float64"
                )
        if self.unit == 1.0:
            return products, responses
        root = math.sqrt(self.unit)
        if responses is not None:
            responses = responses / root
        return products / (self.unit if is_square else root), responses

    def _check_products(self, products: Tensor, block: Tensor) -> None:
        # "jacobian" and "adjoint" requests change the first dimension; only b is fixed then.
        fits = products.ndim == 2 and products.shape[1] == block.shape[1]
        if self.request == "fisher":
            fits = fits and products.shape[0] == block.shape[0]
        if not fits:
            raise ProductError(
                f"tell: expected products of shape {tuple(block.shape)}, as asked, "
                f"got {tuple(products.shape)}"
            )
        check_numbers(products, block)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to ask."""
        return self._stop_reason is not None

    @property
    def stop_reason(self) -> StopReason:
        """Why the solver stopped, or ``StopReason.RUNNING``."""
        return self._stop_reason or StopReason.RUNNING

    @property
    def num_products(self) -> int:
        """Products (columns) told so far, verification included."""
        return self._num_products

    @property
    def num_verification_products(self) -> int:
        """Products spent only on the proof that the pairs are extremal."""
        return self._num_verification_products

    @property
    @abc.abstractmethod
    def block_size(self) -> int:
        """Largest number of columns ``ask`` ever returns."""

    @property
    def reads_responses(self) -> bool:
        """Whether J V changes what the solver finds; where not, nobody need bring it."""
        return True

    @property
    def stored_vectors(self) -> int:
        """Vectors of length n kept in memory at the most, the products stored with them too."""
        return self.block_size

    def progress(self) -> Progress:
        """Return Ritz values and residuals of the wanted pairs; costs no product.

        Made once after a ``tell``, for all who read it.
        """
        if self._latest is None:
            self._latest = self._made_progress()
        return self._latest

    def _made_progress(self) -> Progress:
        progress = self._progress()
        if self.unit == 1.0:
            return progress
        return replace(
            progress,
            eigenvalues=progress.eigenvalues * self.unit,
            residuals=progress.residuals * self.unit,
            scale=progress.scale * self.unit,
        )

    def result(self) -> Spectrum:
        """Return the best pairs so far with their certificates; valid at any time.

        Eigenvectors are ``(k, n)``, or pictures where there is an ``embedding``. Pairs that are not
        proven carry another status than ``converged``.
        """
        spectrum = self._result()
        if self.choice is not None:
            spectrum = replace(spectrum, notes=(self.choice, *spectrum.notes))
        if self.embedding is not None:
            columns = spectrum.eigenvectors.mT.to(self.dtype)
            pictures = spectrum.eigenvectors.new_zeros(0, *self.embedding.picture_shape)
            if len(spectrum):
                pictures = self.embedding.pictures(columns)
            n = self.settings.n
            spectrum = replace(spectrum, eigenvectors=pictures, dimension=n)
        return spectrum if self.unit == 1.0 else spectrum.times(self.unit)

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as tensors and plain containers (``weights_only`` loadable).

        Tensors are copies. Valid after any ``tell``.
        """
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "settings": plain(asdict(self.settings)),
            "dtype": str(self.dtype),
            "generator": self._generator.get_state(),
            "num_products": self._num_products,
            "num_verification_products": self._num_verification_products,
            "unit": self._unit,
            "stop_reason": None if self._stop_reason is None else self._stop_reason.value,
            "pending": None if self._pending is None else self._pending.clone(),
            "state": self._export_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``.

        ``tol``, ``max_products``, ``miss_chance`` and ``relative_tol`` may differ from the saved
        run: the solver then goes on under its own. Everything else must be equal. States of
        version 1 are taken over; the search for missed pairs is then made by today's rule, and
        what was finished says that it was not.

        Raises
        ------
        CheckpointError
            When the state belongs to another method, size, end or dtype.
        """
        # ``auto`` was a solver of its own in version 1, around the one it chose.
        state = state.get("chosen", state)
        if state.get("version") not in (1, STATE_VERSION) or state.get("name") != self.name:
            raise CheckpointError(
                f"state: expected {self.name!r} version {STATE_VERSION}, got "
                f"{state.get('name')!r} version {state.get('version')}; resume with that method"
            )
        saved, own = dict(state["settings"]), plain(asdict(self.settings))
        for key in ("n", "k", "which", "image_shape"):
            if saved[key] != own[key]:
                raise CheckpointError(
                    f"state: expected {key} = {own[key]}, got {saved[key]}; resume with the "
                    "settings of the saved run"
                )
        self._generator.set_state(state["generator"].to(device="cpu", dtype=torch.uint8))
        self._num_products = int(state["num_products"])
        self._num_verification_products = int(state["num_verification_products"])
        # States of before there were units are in none.
        unit = state.get("unit", 1.0 if self._num_products else None)
        self._unit = None if unit is None else float(unit)
        reason = state["stop_reason"]
        self._stop_reason = None if reason is None else StopReason(reason)
        pending = state["pending"]
        self._pending = None if pending is None else self._own(pending)
        self._import_state(state["state"])
        free = ("tol", "max_products", "miss_chance", "relative_tol")
        if any(key in saved and saved[key] != own[key] for key in free):
            self._reopen()
        self._latest = None

    def _reopen(self) -> None:
        """Go on after ``tol`` or ``max_products`` changed; subclasses re-test convergence."""
        if self._num_products < (self.settings.max_products or self._num_products + 1):
            self._stop_reason = None

    def _own(self, tensor: Tensor) -> Tensor:
        """Copy a loaded tensor to this solver's device, floating ones to its dtype."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device=self.device, dtype=dtype, copy=True)

    def _randn(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, equal on every device, in this solver's dtype."""
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(device=self.device, dtype=self.dtype)

    # -- for subclasses ------------------------------------------------------------------------

    @abc.abstractmethod
    def _ask(self) -> Tensor: ...

    @abc.abstractmethod
    def _progress(self) -> Progress: ...

    @abc.abstractmethod
    def _result(self) -> Spectrum: ...

    @abc.abstractmethod
    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None: ...

    @abc.abstractmethod
    def _export_state(self) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _import_state(self, state: Mapping[str, Any]) -> None: ...
