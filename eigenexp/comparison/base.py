"""The ask/tell contract of solvers that need the products of several operators.

    solver = PencilSolver(n, k=1, delta=1e-3, seed=0)
    while not solver.done:
        block = solver.ask()                              # (n, b)
        solver.tell([F @ block for F in operators])       # (n, b) each, in order
    pencil = solver.result()

As for :class:`~eigenexp.eigensolvers.Eigensolver`: tensors only, frozen settings, explicit state,
and a run that is saved after any ``tell`` ends in the same bits.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from eigenexp.comparison.space import SharedSpace
from eigenexp.eigensolvers.numerics import check_numbers, rounding_floor
from eigenexp.errors import CheckpointError, InputError, InputTypeError, ProductError
from eigenexp.spectrum import StopReason
from eigenexp.storage.plain import plain

__all__ = ["ComparisonSolver"]

STATE_VERSION = 1


class ComparisonSolver(abc.ABC):
    """Base: checks, counts, state; subclasses do the mathematics in ``_ask`` and ``_tell``.

    Parameters
    ----------
    n, count
        Length of a vector, and number of operators.
    settings
        A frozen dataclass with ``seed`` and ``max_products``.
    dtype, device, image_shape, start, product_eps
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`.
    """

    name: ClassVar[str]
    free: ClassVar[tuple[str, ...]] = ("max_products",)
    """Settings that may differ when a state is loaded."""

    def __init__(
        self,
        n: int,
        count: int,
        settings: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        image_shape: tuple[int, ...] | None = None,
        start: Tensor | None = None,
        product_eps: float = 0.0,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise InputTypeError(
                f"dtype: expected torch.float32 or torch.float64, got {dtype}; solve in float32"
            )
        budget = settings.max_products
        if budget is not None and budget < 1:
            raise InputError(f"max_products: expected at least 1 or None, got {budget}")
        self.n, self.count, self.settings = n, count, settings
        self.dtype, self.device = dtype, torch.device(device)
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.eps = max(float(torch.finfo(dtype).eps), product_eps)
        self.floor = rounding_floor(dtype, n, product_eps)
        if start is not None:
            if start.ndim != 2 or start.shape[0] != n:
                raise InputError(f"start: expected shape ({n}, s), got {tuple(start.shape)}")
            start = start.detach().to(dtype=dtype, device=self.device, copy=True)
        self.start = start
        self._generator = torch.Generator(device="cpu").manual_seed(settings.seed)
        self._num_products = 0
        self._stop_reason: StopReason | None = None
        self._pending: Tensor | None = None
        self.space = SharedSpace(n, count, dtype=dtype, device=self.device, eps=self.eps)

    # -- the loop ------------------------------------------------------------------------------

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
        return self._pending.clone()

    def tell(self, products: Sequence[Tensor]) -> None:
        """Take the products of the block last asked for, one ``(n, b)`` an operator, in order.

        Raises
        ------
        ProductError
            When nothing was asked, or products have the wrong number, shape, dtype or device, hold
            NaN or inf, or cannot come from symmetric operators. The state stays as it was.
        """
        block = self._pending
        if block is None:
            raise ProductError("tell: expected ask() before tell(), got products nobody asked for")
        if len(products) != self.count:
            raise ProductError(
                f"tell: expected a list of the products of {self.count} operators, got "
                f"{len(products)} of them"
            )
        for i, image in enumerate(products):
            if image.shape != block.shape:
                raise ProductError(
                    f"tell: expected products of shape {tuple(block.shape)}, as asked, got "
                    f"{tuple(image.shape)} of operator {i}"
                )
            check_numbers(image, block, f" of operator {i}")
        self.space.grow(block, products)
        self._num_products += self.count * block.shape[1]
        self._pending = None
        self._tell(block)
        budget = self.settings.max_products
        if self._stop_reason is None and budget is not None and self._num_products >= budget:
            self._stop_reason = StopReason.MAX_PRODUCTS

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
        """Products told so far: columns times operators."""
        return self._num_products

    @property
    def is_whole(self) -> bool:
        """Whether the search space holds every vector."""
        return self.space.size >= self.n

    def _with_space(self, settings: Mapping[str, Any]) -> Self:
        """Return a solver of the same operators with other settings, in a copy of the space."""
        further = type(self)(
            **settings,
            dtype=self.dtype,
            device=self.device,
            image_shape=self.image_shape,
            start=self.start,
            product_eps=self.eps,
        )
        further.space.restore(self.space.export())
        return further

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as tensors (copies) and plain containers; valid at any time."""
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "n": self.n,
            "count": self.count,
            "settings": plain(asdict(self.settings)),
            "dtype": str(self.dtype),
            "generator": self._generator.get_state(),
            "num_products": self._num_products,
            "stop_reason": None if self._stop_reason is None else self._stop_reason.value,
            "pending": None if self._pending is None else self._pending.clone(),
            "space": self.space.export(),
            "state": self._state.export(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; ``max_products`` and tolerances may differ from the saved ones.

        Raises
        ------
        CheckpointError
            When the state belongs to another solver, size, dtype or setting.
        """
        if state.get("version") != STATE_VERSION or state.get("name") != self.name:
            raise CheckpointError(
                f"state: expected {self.name!r} version {STATE_VERSION}, got "
                f"{state.get('name')!r} version {state.get('version')}"
            )
        own = {
            "n": self.n,
            "count": self.count,
            "dtype": str(self.dtype),
            **plain(asdict(self.settings)),
        }
        saved = {**{key: state[key] for key in ("n", "count", "dtype")}, **state["settings"]}
        for key, value in own.items():
            if key not in self.free and saved.get(key) != value:
                raise CheckpointError(
                    f"state: expected {key} = {value}, got {saved.get(key)}; resume with the "
                    "settings of the saved run"
                )
        self._generator.set_state(state["generator"].to(device="cpu", dtype=torch.uint8))
        self._num_products = int(state["num_products"])
        reason = state["stop_reason"]
        self._stop_reason = None if reason is None else StopReason(reason)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        pending = state["pending"]
        self._pending = None if pending is None else pending.detach().to(like, copy=True)
        self.space.restore(state["space"])
        self._state.restore(state["state"], like)
        if any(saved.get(key) != own[key] for key in self.free):
            self._reopen()

    def _reopen(self) -> None:
        """Go on where tolerances or the budget changed."""
        if self._num_products < (self.settings.max_products or self._num_products + 1):
            self._stop_reason = None

    def _randn(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, equal on every device, in this solver's dtype."""
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(device=self.device, dtype=self.dtype)

    # -- for subclasses ------------------------------------------------------------------------

    settings: Any
    _state: Any
    """A :class:`~eigenexp.eigensolvers.state.State`."""

    @abc.abstractmethod
    def _ask(self) -> Tensor: ...

    @abc.abstractmethod
    def _tell(self, block: Tensor) -> None:
        """Judge the space, which holds ``block`` and its products already."""

    @abc.abstractmethod
    def result(self) -> Any:
        """Return the best so far with its certificates; valid at any time."""
