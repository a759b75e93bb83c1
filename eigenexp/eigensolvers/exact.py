"""All eigenpairs at once, from the dense Jacobian gathered column by column or row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver
from eigenexp.eigensolvers.certificates.result import make_spectrum
from eigenexp.eigensolvers.dense_decomposition import (
    fisher_eigenpairs,
    jacobian_eigenpairs,
    numerical_rank,
    perturbation_bounds,
)
from eigenexp.eigensolvers.progress import Progress
from eigenexp.eigensolvers.state import State, vectors
from eigenexp.errors import CheckpointError, InputError, ProductError
from eigenexp.operators.memory import check_fits
from eigenexp.operators.protocol import Request
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Exact", "Side"]

Side = Literal["auto", "columns", "rows", "fisher"]

_REQUESTS: dict[str, Request] = {"columns": "jacobian", "rows": "adjoint", "fisher": "fisher"}
# Bytes of one block asked, and blocks a matrix is gathered in: a run can be stopped between them.
_BLOCK_BYTES = 2**25
_MIN_BLOCKS = 8


@dataclass
class ExactState(State):
    """All that changes.

    Attributes
    ----------
    kind
        What is gathered: ``"columns"``, ``"rows"`` or ``"fisher"``; None before the first product.
    shape, count, gathered
        Of the whole matrix; rows told; and the matrix: row i is what was told of unit vector i,
        J eᵢ, Jᵀ eᵢ or F eᵢ. Rows from ``count`` on are not yet part of the state.
    first
        Random v, F v and J v (empty where unknown), to check the matrix with.
    """

    kind: str | None = None
    shape: tuple[int, int] = (0, 0)
    count: int = 0
    gathered: Tensor = vectors()
    first: Any = vectors()

    @property
    def is_whole(self) -> bool:
        """Whether every row is told."""
        return self.kind is not None and self.count == len(self.gathered)


@dataclass(frozen=True)
class _Solution:
    """The wanted pairs: ``vectors (k, n)`` in the solver's dtype, all else ``(k,)`` float64."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    bounds: Tensor
    scale: float
    rank: int


class Exact(Eigensolver):
    """Every eigenpair, proven, from the dense Jacobian: for pictures of a few thousand values.

    The first product is F v of a random v: it tells the number m of responses, and in the end
    checks the matrix gathered (J v and Jᵀ J v again, from the matrix). Then J is gathered with unit
    vectors: by its n columns J·eᵢ where n ≤ m, by its m rows Jᵀ·eᵢ where m < n. Its singular values
    are found in float64; the null space where m < n is proven and completed to a whole basis.

    Where products come without J v (a bare loop over ``operator @ block``, an operator made from F
    alone, F averaged over ranks), F itself is gathered by its columns and decomposed instead. Small
    eigenvalues then are exact to about eps·λmax only, as the error bounds say.

    Parameters
    ----------
    side
        What is gathered: ``"columns"`` or ``"rows"`` of J, ``"fisher"`` for the columns of F;
        ``"auto"`` chooses as above, by shape alone (never by the clock, which would make runs
        differ). Where Jᵀ·u takes much longer than J·v, ``"columns"`` may be quicker even though
        m < n; ``"rows"`` likewise the other way round.
    chunk_size
        Unit vectors a block. By default an eighth of them all, less where a block would take more
        than 32 MiB. Larger blocks keep an accelerator busy; state can be saved between blocks.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. No start vector is used.

    Raises
    ------
    InputError
        When J in float64 exceeds the memory available, here or once m is known.

    Notes
    -----
    ``num_products`` counts what was told: each column J·eᵢ or row Jᵀ·eᵢ as one, although F·v costs
    both a J·v and a Jᵀ·u. Memory is J once in the solver's dtype, and while decomposing three to
    four times J in float64; time is about 20·min(m, n)³ operations, minutes from n = 5 000 on.
    Before the whole matrix is gathered no pair is known, and none is returned.
    """

    name: ClassVar[str] = "exact"

    def __init__(
        self, n: int, *, side: Side = "auto", chunk_size: int | None = None, **settings: Any
    ) -> None:
        super().__init__(n, **settings)
        if side not in ("auto", *_REQUESTS):
            raise InputError(
                f"side: expected 'auto', 'columns', 'rows' or 'fisher', got {side!r}; "
                "'auto' takes the shorter side"
            )
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size: expected at least 1 unit vector, got {chunk_size}")
        self.side = side
        self.chunk_size = chunk_size
        self._state = ExactState(gathered=self._matrix((0, 0)))
        self._solution: _Solution | None = None
        # m is not yet known, but F's rank is at most m: J has at least as many rows.
        rows = n if side == "fisher" else min(n, self.settings.rank_bound or n)
        check_fits(rows, n, torch.float64, self.device)

    @property
    def request(self) -> Request:
        """F·v first; then columns of J, rows of J or columns of F."""
        return "fisher" if self._state.kind is None else _REQUESTS[self._state.kind]

    @property
    def block_size(self) -> int:
        """Unit vectors a block."""
        state = self._state
        length = self.settings.n if state.kind is None else len(state.gathered)
        if self.chunk_size is not None:
            return min(self.chunk_size, length)
        in_bytes = _BLOCK_BYTES // (length * state.gathered.element_size())
        return max(1, min(math.ceil(length / _MIN_BLOCKS), in_bytes))

    # -- gathering -------------------------------------------------------------------------------

    def _ask(self) -> Tensor:
        state = self._state
        if state.kind is None:
            return torch.nn.functional.normalize(self._randn(self.settings.n, 1), dim=0)
        length = len(state.gathered)
        width = min(self.block_size, length - state.count)
        if self.settings.max_products is not None:
            width = min(width, self.settings.max_products - self._num_products)
        block = torch.zeros(length, width, dtype=self.dtype, device=self.device)
        block[state.count : state.count + width].fill_diagonal_(1)
        return block

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        width, state = block.shape[1], self._state
        if state.kind is None:
            self._begin(block[:, 0], products[:, 0], responses)
            self._num_verification_products += width
        else:
            if products.shape[0] != state.gathered.shape[1]:
                raise ProductError(
                    f"tell: expected products of shape {(state.gathered.shape[1], width)}, "
                    f"got {tuple(products.shape)}"
                )
            state.gathered[state.count : state.count + width] = products.T
            if state.count + width == len(state.gathered):
                self._solution = self._solve()
            state.count += width
        self._num_products += width
        if self._solution is not None:
            self._judge(self._solution)

    def _begin(self, vector: Tensor, product: Tensor, responses: Tensor | None) -> None:
        """Choose the side and make room, now that the number m of responses is known."""
        n = self.settings.n
        m = None if responses is None else responses.shape[0]
        kind: str = self.side
        if m is None:
            if self.side in ("columns", "rows"):
                raise InputError(
                    f"side: expected products with J v for {self.side!r}, got F v alone; tell both "
                    "parts of operator.apply(block), or take side='fisher'"
                )
            kind = "fisher"
        elif kind == "auto":
            kind = "columns" if n <= m else "rows"
        length = m if kind == "rows" and m is not None else n
        other = m if kind == "columns" and m is not None else n
        check_fits(n if m is None or kind == "fisher" else m, n, torch.float64, self.device)
        response = product.new_zeros(0) if responses is None else responses[:, 0]
        first = [vector.clone(), product.clone(), response.clone()]
        shape = (length, other)
        self._state = ExactState(kind, shape, gathered=self._matrix(shape), first=first)

    # -- the decomposition -----------------------------------------------------------------------

    def _solve(self) -> _Solution:
        state = self._state
        if state.kind == "fisher":
            return self._solve_fisher(state.gathered.to(torch.float64))
        return self._solve_jacobian(state.gathered.T if state.kind == "columns" else state.gathered)

    def _solve_jacobian(self, gathered: Tensor) -> _Solution:
        n = self.settings.n
        jacobian = gathered.to(torch.float64)
        vector, product, response = self._checks()
        off = float((jacobian @ vector - response).norm())
        off_adjoint = float((jacobian.T @ response - product).norm())
        self._check(off, float(response.norm()), "J v")
        self._check(off_adjoint, float(product.norm()), "Jᵀ J v")
        spectrum, rows = jacobian_eigenpairs(gathered)
        m, scale = jacobian.shape[0], float(spectrum[0])
        wanted = torch.tensor(self.settings.wanted, device=jacobian.device)
        values, vectors = spectrum[wanted], rows[wanted].to(self.dtype)
        columns = vectors.T.to(torch.float64)
        images = jacobian.T @ (jacobian @ columns)
        residuals = torch.linalg.vector_norm(images - columns * values, dim=0)
        # The rounding of the products, by a standard bound or as the check found it, and that of
        # the decomposition.
        doubt = max(self.floor * math.sqrt(scale), 4 * off)
        doubt += math.sqrt(max(m, n) * scale) * torch.finfo(torch.float64).eps
        bounds = perturbation_bounds(values, doubt).where(wanted < m, 0)  # beyond m zero is exact
        rank = numerical_rank(spectrum, (m, n), self.dtype)
        return _Solution(values.cpu(), vectors, residuals.cpu(), bounds.cpu(), scale, rank)

    def _solve_fisher(self, fisher: Tensor) -> _Solution:
        n = self.settings.n
        vector, product, _ = self._checks()
        off = float((fisher @ vector - product).norm())
        skew = float((fisher - fisher.T).norm()) / math.sqrt(n)
        values, rows = fisher_eigenpairs(fisher)
        largest = float(values.abs().max())
        self._check(off, largest, "F v")
        self._check(skew, largest, "Fᵀ")
        scale = max(0.0, float(values[0]))
        floor = self.floor * largest
        floor += math.sqrt(n) * torch.finfo(torch.float64).eps * largest
        wanted = torch.tensor(self.settings.wanted, device=fisher.device)
        # F is positive semidefinite: a negative eigenvalue is rounding, or shows as a residual.
        values, vectors = values[wanted].clamp(min=0), rows[wanted].to(self.dtype)
        columns = vectors.T.to(torch.float64)
        symmetric = (fisher + fisher.T) / 2
        residuals = torch.linalg.vector_norm(symmetric @ columns - columns * values, dim=0)
        bounds = residuals + max(floor, 4 * off, skew)
        rank = min(n, self.settings.rank_bound or n)
        return _Solution(values.cpu(), vectors, residuals.cpu(), bounds.cpu(), scale, rank)

    def _checks(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._state.first is None:
            raise ProductError("exact: expected the first product before the matrix, got none")
        vector, product, response = (one.to(torch.float64) for one in self._state.first)
        return vector, product, response

    def _check(self, off: float, size: float, what: str) -> None:
        slack = 1e3 * math.sqrt(self.settings.n) * self.eps
        if self.device.type != "cpu":
            slack = max(slack, 1e-2)  # accelerators may multiply in reduced precision
        if off > slack * size:
            raise ProductError(
                f"tell: expected products of one symmetric F = JᵀJ, got a matrix whose {what} is "
                f"{off / size if size else math.inf:.1e} off, relative; check Jᵀ against J, and "
                "that the products repeat"
            )

    def _judge(self, solution: _Solution) -> None:
        worst = float(solution.residuals.max())
        met = worst <= self.settings.tol * solution.scale
        self._stop_reason = StopReason.CONVERGED if met else StopReason.FLOOR

    # -- what is known ---------------------------------------------------------------------------

    def _solved(self) -> _Solution | None:
        if self._solution is None and self._state.is_whole:
            self._solution = self._solve()  # after a load: the state is the matrix alone
        return self._solution

    def _progress(self) -> Progress:
        """Return the pairs once the matrix is whole; before, how much of it is gathered."""
        state = self._state
        solution, nothing = self._solved(), torch.zeros(0, dtype=torch.float64)
        wanted = torch.tensor(self.settings.wanted)
        phase = "starting"
        if state.kind is not None:
            phase = f"gathering {state.kind}, {state.count} of {len(state.gathered)}"
        return Progress(
            eigenvalues=nothing if solution is None else solution.values,
            residuals=nothing if solution is None else solution.residuals,
            eigenindex=nothing.long() if solution is None else wanted,
            scale=0.0 if solution is None else solution.scale,
            tol=self.settings.tol,
            num_products=self._num_products,
            phase=phase if solution is None else "done",
        )

    def _result(self) -> Spectrum:
        """Return the wanted pairs, or none before the whole matrix is gathered."""
        n = self.settings.n
        solution = self._solved()
        if solution is None:
            nothing = torch.zeros(0, dtype=torch.float64)
            vectors = torch.zeros(0, n, dtype=self.dtype, device=self.device)
            solution = _Solution(nothing, vectors, nothing, nothing, 0.0, n)
        found = len(solution.values)
        return make_spectrum(
            self.settings,
            values=solution.values,
            vectors=solution.vectors.clone(),
            residuals=solution.residuals,
            index=torch.tensor(self.settings.wanted[:found], dtype=torch.int64),
            scale=solution.scale,
            floor=self.floor,
            stop_reason=self.stop_reason,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            method=self.name,
            notes=self._notes(solution, found),
            bounds=solution.bounds,
            null_space_dimension=n - self._rank_bound(),
            claimed=0.0 if self.stop_reason is StopReason.CONVERGED else None,
            rule="exact" if found else "",
        )

    def _rank_bound(self) -> int:
        """min(m, n), as far as it is known."""
        bound = min(self.settings.n, self.settings.rank_bound or self.settings.n)
        if self._state.kind in ("columns", "rows"):
            bound = min(bound, *self._state.gathered.shape)
        return bound

    def _notes(self, solution: _Solution, found: int) -> tuple[str, ...]:
        state = self._state
        notes = []
        if state.kind is not None:
            what = {"columns": "columns of J", "rows": "rows of J", "fisher": "columns of F"}
            notes.append(
                f"gathered {state.count} of {len(state.gathered)} {what[state.kind]}, each counted "
                "as one product"
            )
        bound = self._rank_bound()
        if found and solution.rank < bound:
            notes.append(
                f"numerical rank {solution.rank} of at most {bound}: {bound - solution.rank} "
                "eigenvalues more are zero up to rounding"
            )
        return tuple(notes)

    # -- state -----------------------------------------------------------------------------------

    def _reopen(self) -> None:
        solution = self._solved()
        if solution is None:
            super()._reopen()
        else:
            self._judge(solution)

    def _export_state(self) -> dict[str, Any]:
        told = self._state.gathered[: self._state.count]
        return replace(self._state, gathered=told).export()

    def _import_state(self, state: Mapping[str, Any]) -> None:
        kind = state["kind"]
        if kind is not None and self.side not in ("auto", kind):
            raise CheckpointError(
                f"state: expected side {self.side!r}, got one that gathered {kind!r}; resume with "
                "the settings of the saved run"
            )
        told = dict(state)
        if "probe" in told:  # as it was called before
            told |= {"first": told["probe"], "count": len(told["gathered"]) if kind else 0}
        own = ExactState()
        own.restore(told, self._matrix((0, 0)))
        length, other = own.shape
        whole = self._matrix((length, other))
        whole[: own.count] = own.gathered
        self._state = replace(own, shape=(length, other), gathered=whole)
        self._solution = None

    def _matrix(self, shape: tuple[int, int]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
