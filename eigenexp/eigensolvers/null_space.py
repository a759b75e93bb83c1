"""The bottom of F where its null space is known beforehand: m responses are fewer than n values.

Any vector with J v = 0 is then an answer, so nothing is searched for: random vectors are projected
on null J, in the way that is predicted to be cheaper.

*Rows*: Jᵀ e for every response, m half products in all; with Jᵀ = Q R the projector is I − Q Qᵀ,
also where J has a lower rank (Q then holds more than J's rows, and n − m vectors are left anyway).

*Descent*: conjugate gradients for min ‖J v‖² from random vectors, side by side. Steps lie in
the row space, so that v goes to its own projection. Each costs a product; a round ends with a true
product, from which the next one goes on, until ‖J v‖ rests at rounding (Hestenes & Stiefel 1952;
the restarts are iterative refinement).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver
from eigenexp.eigensolvers.certificates.result import make_spectrum
from eigenexp.eigensolvers.null_space_descent import Descent, squares
from eigenexp.eigensolvers.null_space_plan import make_plan
from eigenexp.eigensolvers.null_space_state import NullSpaceState
from eigenexp.eigensolvers.progress import Progress
from eigenexp.eigensolvers.settings import Which
from eigenexp.eigensolvers.state import present
from eigenexp.errors import InputError, ProductError
from eigenexp.operators.memory import ALWAYS_FITS, available_bytes
from eigenexp.operators.protocol import Request
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["NullSpace", "complement"]

_BLOCK_BYTES = 2**25
_MIN_BLOCKS = 8


def complement(rows: Tensor, starts: Tensor) -> Tensor:
    """Return orthonormal vectors ``(n, k)`` orthogonal to all ``rows`` ``(m, n)``, m + k ≤ n.

    Parameters
    ----------
    starts
        ``(n, k)`` random vectors; their projections span what is returned.
    """
    basis = torch.linalg.qr(rows.to(torch.float64).T).Q
    vectors = starts.to(torch.float64)
    for _ in range(3):  # the second time removes what rounding left, the third what QR brought back
        vectors = vectors - basis @ (basis.T @ vectors)
        vectors = torch.linalg.qr(vectors).Q
    return vectors


class NullSpace(Eigensolver):
    """Eigenvectors of a null space that is known beforehand, exactly and without a search.

    F = JᵀJ with m < n has at least n − m eigenvalues 0. The first product, of the first random
    vector, tells m; :func:`.null_space_plan.make_plan` then chooses the way. ``num_products``
    counts a row of J as half a product, which it is.

    Parameters
    ----------
    way
        ``"rows"``, ``"descent"``, or ``"auto"`` for the cheaper one.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. ``which`` must be ``"bottom"`` and
        ``k`` at most ``n - rank_bound``. No start vector is used.

    Raises
    ------
    InputError
        Where no null space of k dimensions is known.
    """

    name: ClassVar[str] = "null_space"

    def __init__(
        self,
        n: int,
        *,
        which: Which = "bottom",
        way: Literal["auto", "rows", "descent"] = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(n, which=which, **settings)
        known = n - min(n, self.settings.rank_bound or n)
        if which != "bottom" or self.settings.k > known:
            raise InputError(
                f"k, which: expected 'bottom' and at most {known} pairs for null_space, the "
                f"dimensions of a null space known beforehand (n - m), got {which!r} and "
                f"{self.settings.k}; use method='auto'"
            )
        if way not in ("auto", "rows", "descent"):
            raise InputError(f"way: expected 'auto', 'rows' or 'descent', got {way!r}")
        self.way = way
        self._counted_before = 0  # products of a solve that this one goes on with
        self._state = NullSpaceState(vectors=self._randn(n, self.settings.k))

    @property
    def _descent(self) -> Descent:
        return Descent(eps=self.eps, finest=max(self.eps, 0.1 * self.settings.tol))

    @property
    def request(self) -> Request:
        """Rows of J while they are gathered, otherwise F·V."""
        return "adjoint" if self._state.stage == "gathering" else "fisher"

    @property
    def block_size(self) -> int:
        """Columns at the most: the wanted vectors, or rows of J."""
        return max(self.settings.k, self._row_width() if self._state.m else 1)

    @property
    def stored_vectors(self) -> int:
        """The rows of J, or vectors, gradients and directions."""
        if self._state.way == "rows":
            return self._state.m + self.settings.k
        return 3 * self.settings.k

    def _row_width(self) -> int:
        m = self._state.m
        in_bytes = _BLOCK_BYTES // (m * self.dtype.itemsize)
        return max(1, min(math.ceil(m / _MIN_BLOCKS), in_bytes))

    # -- the loop --------------------------------------------------------------------------------

    def _ask(self) -> Tensor:
        state = self._state
        vectors = present(state.vectors)
        if state.stage == "starting":
            return torch.nn.functional.normalize(vectors[:, :1], dim=0)
        if state.stage == "gathering":
            width = min(self._row_width(), state.m - state.rows)
            if self.settings.max_products is not None:
                width = min(width, max(1, 2 * (self.settings.max_products - self._num_products)))
            block = torch.zeros(state.m, width, dtype=self.dtype, device=self.device)
            block[state.rows : state.rows + width].fill_diagonal_(1)
            return block
        if state.stage == "descending":
            return present(state.directions)[:, present(state.is_open)]
        if state.stage == "restarting":
            return vectors[:, present(state.is_open)]
        return vectors

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        width = block.shape[1]
        state = self._state
        half = 2 * width
        if state.stage == "starting":
            state = self._begin(block, products, responses)
        elif state.stage == "gathering":
            half = width
            state = self._gather(products)
        elif state.stage == "descending":
            state = self._unless_dear(self._descent.step(state, block, products))
        elif state.stage == "restarting":
            state = self._descent.restart(state, block, products, responses)
        else:
            self._num_verification_products += width
            state = self._measure(state, block, products, responses)
        self._state = replace(state, spent=state.spent + half)
        self._num_products = self._counted_before + math.ceil(self._state.spent / 2)
        if self._state.values is not None:
            self._judge()

    def _begin(self, block: Tensor, products: Tensor, responses: Tensor | None) -> NullSpaceState:
        state, n, k = self._state, self.settings.n, self.settings.k
        m = self.settings.rank_bound or n
        has_rows = responses is not None and len(responses) < n
        if responses is not None:
            m = len(responses)
            needed = 3 * m * n * torch.float64.itemsize
            has_rows &= needed <= ALWAYS_FITS or needed <= available_bytes(self.device)
        if self.way == "rows" and not has_rows:
            raise InputError(
                "way: expected products with J v, and room for its rows, for 'rows', got none; "
                "take way='descent'"
            )
        plan = make_plan(m, n, k, eps=self.eps, has_rows=has_rows)
        way = plan.way if self.way == "auto" else self.way
        reason = plan.reason if self.way == "auto" else "as was asked"
        largest = float((block * products).sum())
        state = replace(
            state,
            way=way,
            reason=reason,
            has_rows=has_rows,
            has_responses=responses is not None,
            m=m,
            largest=largest,
        )
        if way == "rows":
            gathered = torch.zeros(m, n, dtype=self.dtype, device=self.device)
            return replace(state, stage="gathering", gathered=gathered)
        return self._descent.begin(state)

    # -- rows ------------------------------------------------------------------------------------

    def _gather(self, products: Tensor) -> NullSpaceState:
        state, width = self._state, products.shape[1]
        if products.shape[0] != self.settings.n:
            raise ProductError(
                f"tell: expected rows of J of length {self.settings.n}, got {products.shape[0]}"
            )
        gathered = present(state.gathered)
        # Rows from the count on are not yet part of the state, whatever they hold.
        gathered[state.rows : state.rows + width] = products.T
        rows = state.rows + width
        if rows < state.m:
            return replace(state, rows=rows)
        exact = gathered.to(torch.float64)
        largest = float(torch.linalg.matrix_norm(exact, 2)) ** 2
        vectors = complement(exact, present(state.vectors)).to(self.dtype)
        return replace(
            state, stage="measuring", rows=rows, largest=largest, vectors=vectors, gathered=None
        )

    def _unless_dear(self, state: NullSpaceState) -> NullSpaceState:
        """Turn to the rows where the descent has cost what they would."""
        dear = state.spent > state.m + 2 * self.settings.k
        if not (dear and self.way == "auto" and state.has_rows):
            return state
        gathered = torch.zeros(state.m, self.settings.n, dtype=self.dtype, device=self.device)
        reason = "a descent took longer than was predicted"
        return replace(state, way="rows", reason=reason, stage="gathering", gathered=gathered)

    # -- what is known ---------------------------------------------------------------------------

    def _measure(
        self, state: NullSpaceState, block: Tensor, products: Tensor, responses: Tensor | None
    ) -> NullSpaceState:
        quotients = (block * products).sum(dim=0) if responses is None else squares(responses)
        values = quotients.double().cpu().clamp(min=0)
        residuals = (products - block * values.to(block)).norm(dim=0).double().cpu()
        return replace(state, stage="done", values=values, residuals=residuals)

    def _judge(self) -> None:
        limit = self.settings.tol * self._state.largest
        met = float(present(self._state.residuals).max()) <= limit
        self._stop_reason = StopReason.CONVERGED if met else StopReason.FLOOR

    def _reopen(self) -> None:
        super()._reopen()
        if self._state.values is not None:
            self._judge()

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, residuals and vectors ``(k, n)``, decreasing; none before the end."""
        state = self._state
        if state.values is None:
            nothing = torch.zeros(0, dtype=torch.float64)
            return nothing, nothing, present(state.vectors).T[:0]
        values, residuals = present(state.values), present(state.residuals)
        order = torch.argsort(values, descending=True, stable=True)
        vectors = present(state.vectors).T[order.to(self.device)]
        return values[order], residuals[order], vectors.contiguous()

    def _progress(self) -> Progress:
        values, residuals, _ = self._pairs()
        state, phase = self._state, self._state.stage
        if phase == "gathering":
            phase = f"gathering rows, {state.rows} of {state.m}"
        return Progress(
            eigenvalues=values,
            residuals=residuals,
            eigenindex=torch.tensor(self.settings.wanted[: len(values)], dtype=torch.int64),
            scale=state.largest,
            tol=self.settings.tol,
            num_products=self._num_products,
            phase=phase,
        )

    def _result(self) -> Spectrum:
        values, residuals, vectors = self._pairs()
        way, reason = self._state.way, self._state.reason
        notes = (f"null space by {way}: {reason}",) if way else ()
        return make_spectrum(
            self.settings,
            values=values,
            vectors=vectors,
            residuals=residuals,
            index=torch.tensor(self.settings.wanted[: len(values)], dtype=torch.int64),
            scale=self._state.largest,
            floor=self.floor,
            bounds=values.clone(),  # the eigenvalue is 0, which m < n proves
            stop_reason=self.stop_reason,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            method=self.name,
            notes=notes,
            claimed=0.0 if self.stop_reason is StopReason.CONVERGED else None,
            rule="exact" if len(values) else "",
        )

    # -- state -----------------------------------------------------------------------------------

    def _export_state(self) -> dict[str, Any]:
        state = self._state
        told = None if state.gathered is None else state.gathered[: state.rows]
        return replace(state, gathered=told).export()

    def _import_state(self, state: Mapping[str, Any]) -> None:
        own = NullSpaceState()
        own.restore(state, torch.empty(0, dtype=self.dtype, device=self.device))
        if own.gathered is not None:
            gathered = torch.zeros(own.m, self.settings.n, dtype=self.dtype, device=self.device)
            gathered[: own.rows] = own.gathered
            own = replace(own, gathered=gathered)
        self._state = own
        self._counted_before = self._num_products - math.ceil(own.spent / 2)
