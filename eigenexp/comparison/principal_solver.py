"""Principal distortions of N models by nested subspaces.

The unit u, v that maximise the variance over models of ln uᵀF_iu − ln vᵀF_iv (Feather et al., ICLR
2025, with F in place of its square root: four times their value). V and all F_iV are kept; the
problem within V is solved from the last solution, from the ends of the pencils of V, and from
random points; the two gradients, preconditioned, enlarge V. The value never falls.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.comparison.base import ComparisonSolver
from eigenexp.comparison.correcting import FITS, Surrogates, fit_surrogates
from eigenexp.comparison.exclusion import Form
from eigenexp.comparison.scaling import scale_direction
from eigenexp.comparison.small_problem import best_pair, log_ratios, ritz_starts, spread
from eigenexp.eigensolvers.state import State, numbers, part
from eigenexp.errors import InputError, ModelError
from eigenexp.spectrum import StopReason

__all__ = ["PrincipalPair", "PrincipalSettings", "PrincipalSolver"]

PROBES = 4
SCALE_TOL = 1e-4
"""Relative error of λmax, as estimated, at which it is taken for the unit of the ridge."""
EVERY = 10
"""Steps between those that start from every pencil and from random points again."""
RANDOM = 3
REFITS = (24, 48, 96)
FRONT_EVERY = 6
"""Steps between fits of the preconditioner, whose weights move with the solution."""
STILL, GAIN = 25, 1e-7
"""Steps without that relative gain after which the solve has stagnated."""


@dataclass(frozen=True)
class PrincipalSettings:
    """What was asked of a principal solver; never changes.

    Attributes
    ----------
    n, count
        Picture values, and N.
    pairs
        Pairs wanted: each further one maximises the variance off the axes of those before.
    ridge
        ε: ε · λmax(F_i) is added to each F_i; without it blind models have no bound.
    tol
        A pair has converged when both ‖Σ d_i F_iu / uᵀF_iu‖ are at most ``tol``.
    seed, max_products
        Of the generator; budget, columns times N.
    """

    n: int
    count: int
    pairs: int = 1
    ridge: float = 1e-4
    tol: float = 1e-3
    seed: int = 0
    max_products: int | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise InputError(f"n: expected at least 2 picture values, got {self.n}")
        if self.count < 2:
            raise InputError(f"models: expected at least 2, got {self.count}")
        if not 1 <= self.pairs <= self.count - 1:
            raise InputError(
                f"pairs: expected 1 to {self.count - 1}, one fewer than models, got {self.pairs}"
            )
        if not 0 <= self.ridge < 1:
            raise InputError(f"ridge: expected a number from 0 to 1, got {self.ridge}")
        if not self.tol > 0:
            raise InputError(f"tol: expected a positive number, got {self.tol}")


@dataclass(frozen=True, eq=False)
class PrincipalPair:
    """One pair.

    ``vectors (n, 2)``: unit u and v; ``log_ratios (N,)``; ``value``: their variance off the axes of
    the pairs before; ``residuals (2,)``: norms of the gradients; ``axis (N,)``.
    """

    vectors: Tensor
    log_ratios: Tensor
    value: float
    residuals: Tensor
    axis: Tensor
    converged: bool


@dataclass
class PrincipalState(State):
    """What the solver knows beside its space.

    Attributes
    ----------
    scales
        λmax of each F; empty before it is known.
    surrogates, refits, front_at
        A_i ≈ F_i, the sizes they are fitted again at, and the step the front one was fitted at.
    started
        Whether the start vectors were tried.
    pair
        (u, v) as coefficients in V, ``(2, j)``.
    done, axes
        Pairs that are finished as coefficients, ``(2, j)`` each, and their axes ``(N,)``.
    residuals, finished
        Norms of the two gradients of each finished pair, and whether it converged.
    steps, best, still
        Steps on the present pair, its best value, and steps since that rose.
    """

    scales: list[float] = field(default_factory=list)
    surrogates: Any = part(Surrogates.restored)
    refits: list[int] = field(default_factory=list)
    front_at: int = -1
    started: bool = False
    pair: Tensor = numbers()
    norms: Tensor = numbers()
    done: list[Any] = field(default_factory=list)
    axes: list[Any] = field(default_factory=list)
    residuals: list[Any] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    steps: int = 0
    best: float = 0.0
    still: int = 0


class PrincipalSolver(ComparisonSolver):
    """Finds principal distortions; see the module.

    Parameters
    ----------
    n, count
        Picture values, and number of operators.
    settings
        See :class:`PrincipalSettings`.
    dtype, device, image_shape, start, product_eps
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`; ``start`` is tried first.
    """

    name: ClassVar[str] = "principal"
    free: ClassVar[tuple[str, ...]] = ("max_products", "tol")
    settings: PrincipalSettings
    _state: PrincipalState

    def __init__(
        self,
        n: int,
        count: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        image_shape: tuple[int, ...] | None = None,
        start: Tensor | None = None,
        product_eps: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            n,
            count,
            PrincipalSettings(n=n, count=count, **settings),
            dtype=dtype,
            device=device,
            image_shape=image_shape,
            start=start,
            product_eps=product_eps,
        )
        self._state = PrincipalState(refits=list(REFITS))
        self._next: Tensor | None = None

    def at_ridge(self, ridge: float) -> PrincipalSolver:
        """Return a solver of the same models at another ridge, in a copy of the space at hand."""
        settings = {**asdict(self.settings), "ridge": ridge, "seed": self.settings.seed + 1}
        further = self._with_space(settings)
        state = further._state
        state.scales, state.started = list(self._state.scales), True
        state.surrogates, state.refits = self._state.surrogates, list(self._state.refits)
        further._step()
        return further

    # -- the problem ---------------------------------------------------------------------------

    def _matrices(self) -> Tensor:
        """Return G_i = VᵀF_iV/λmax + ε, ``(N, j, j)``."""
        scales = torch.tensor(self._state.scales, dtype=torch.float64)
        eye = torch.eye(self.space.size, dtype=torch.float64)
        found = self.space.projected / scales[:, None, None] + self.settings.ridge * eye
        least = min(float(torch.linalg.eigvalsh(one)[0]) for one in found)
        if not least > (0.0 if self.settings.ridge else 1e3 * self.eps):
            raise InputError(
                "ridge: expected a positive number, got one at which a model is blind to a change "
                "and the objective has no bound; take ridge=1e-4"
            )
        return found

    def _projector(self) -> Tensor:
        """Return Q: the mean and the axes of the pairs before are taken out."""
        count = self.count
        q = torch.eye(count, dtype=torch.float64) - 1.0 / count
        for axis in self._state.axes:
            q = q - torch.outer(axis, axis)
        return q

    def _gradient(self, u: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Form]:
        """Return Σ d_i F_iu/s_i as a vector ``(n, 1)``, s ``(N,)``, and Σ |d_i| F_i/s_i."""
        matrices, state = self._matrices(), self._state
        s = torch.einsum("j,ijk,k->i", u, matrices, u)
        weights = d / s / torch.tensor(state.scales, dtype=torch.float64)
        ridge = self.settings.ridge
        slope = self.space.combined(weights.tolist(), ridge * float((d / s).sum()), u[:, None])
        sizes = weights.abs()
        front = Form(tuple(sizes.tolist()), ridge * float((d / s).abs().sum()))
        return slope, s, front

    # -- what to multiply next -----------------------------------------------------------------

    def _ask(self) -> Tensor:
        state, space, n = self._state, self.space, self.n
        if space.size == 0:
            return space.fresh(self._randn(n, min(PROBES, n)), self._randn)
        if not state.started and self.start is not None:
            return space.fresh(self.start[:, : n - space.size], self._randn)
        if not state.scales:
            found = self._next if self._next is not None else scale_direction(space, SCALE_TOL)
            self._next = None
            if found is not None:
                return space.fresh(found, self._randn)
        directions = []
        # The one that is nearly there need not cost a product.
        due = state.norms >= 0.25 * state.norms.max()
        d = self._projector() @ log_ratios(self._matrices(), state.pair[0], state.pair[1])
        for u in state.pair[due]:
            slope, _, front = self._gradient(u, d)
            slope = slope.to(space.basis)
            directions.append(self._corrected(slope, front))
        width = min(2, n - space.size)
        return space.fresh(torch.cat(directions, dim=1)[:, :width], self._randn)

    def _corrected(self, slope: Tensor, front: Form) -> Tensor:
        state = self._state
        surrogates = state.surrogates
        if surrogates is None or surrogates.misfit > FITS:
            return slope
        nothing = slope.new_zeros(self.n, 0)
        found: Tensor = surrogates.correction(front, slope, nothing, nothing, steps=6)
        return found

    # -- judging -------------------------------------------------------------------------------

    def _tell(self, block: Tensor) -> None:
        state, space = self._state, self.space
        if space.size == block.shape[1]:
            for i in range(self.count):
                if not bool(space.products(i).any()):
                    raise ModelError(
                        f"model {i}: expected a response that changes with the picture, got a "
                        "Jacobian that is zero here; leave it out"
                    )
        elif not state.started:
            state.started = True
        if self.start is None:
            state.started = True
        if not state.scales and not self.is_whole:
            if not state.started:
                return
            self._next = scale_direction(space, SCALE_TOL)
            if self._next is not None:
                return
        # λmax goes on to be known better as the space grows.
        state.scales = [
            float(torch.linalg.eigvalsh(space.projected[i])[-1]) for i in range(self.count)
        ]
        self._step()

    def _step(self) -> None:
        """Solve the problem within the space; judge the gradients."""
        state, size, projector = self._state, self.space.size, self._projector()
        matrices = self._matrices()
        starts = []
        if len(state.pair):
            padded = torch.zeros(2, size, dtype=torch.float64)
            padded[:, : state.pair.shape[1]] = state.pair
            starts.append(padded)
        if state.steps % EVERY == 0 or state.steps < 3 or self.is_whole:
            starts += ritz_starts(matrices)
            starts += [self._randn(2, size).double().cpu() for _ in range(RANDOM)]
        state.pair = best_pair(matrices, projector, starts)
        state.steps += 1
        ratios = log_ratios(matrices, state.pair[0], state.pair[1])
        value = spread(ratios, projector)
        gained = value > state.best * (1 + GAIN)
        state.still, state.best = 0 if gained else state.still + 1, max(value, state.best)
        self._fit(projector @ ratios)
        slopes = [self._gradient(u, projector @ ratios)[0] for u in state.pair]
        state.norms = torch.tensor([float(slope.norm()) for slope in slopes], dtype=torch.float64)
        good = float(state.norms.max()) <= self.settings.tol
        # A gradient that is small at once may be that of a saddle: the other starts come first.
        if self.is_whole or (good and state.steps >= 3) or state.still > STILL:
            self._finish_pair(ratios, good or self.is_whole)

    def _finish_pair(self, ratios: Tensor, good: bool) -> None:
        state = self._state
        d = self._projector() @ ratios
        norm = float(d.norm())
        state.done.append(state.pair.clone())
        state.axes.append(d / norm if norm > 0 else torch.zeros_like(d))
        state.residuals.append(state.norms.clone())
        state.finished.append(good)
        if len(state.done) == self.settings.pairs or norm == 0:
            self._stop_reason = (
                StopReason.CONVERGED if all(state.finished) else StopReason.STAGNATED
            )
            return
        state.pair = torch.zeros(0, dtype=torch.float64)
        state.steps, state.best, state.still = 0, 0.0, 0
        self._step()

    def _fit(self, d: Tensor) -> None:
        """Fit the surrogates, and the one in front to the weights that d and the pair give."""
        state, size = self._state, self.space.size
        outgrown = bool(state.refits) and size >= state.refits[0]
        moved = state.steps >= state.front_at + FRONT_EVERY or state.steps <= 2
        if state.surrogates is not None and not (outgrown or moved):
            return
        state.refits = [at for at in state.refits if size < at]
        count = min(size, PROBES + 2)
        places = list(range(count))
        if outgrown:
            places = [*places, *range(max(count, size - 18), size)]
        front = self._gradient(state.pair[0], d)[2]
        previous = None if outgrown else state.surrogates
        each = previous.each if previous is not None else None
        fitted = fit_surrogates(self.space, front, places, self.image_shape, each=each)
        state.surrogates = fitted or state.surrogates
        state.front_at = state.steps

    # -- what is known -------------------------------------------------------------------------

    @property
    def scales(self) -> tuple[float, ...]:
        """λmax of each F; empty before it is known."""
        return tuple(self._state.scales)

    @property
    def value(self) -> float:
        """The variance reached by the first pair; 0 before there is one."""
        state = self._state
        if state.done:
            return self.result()[0].value
        return state.best

    def _reopen(self) -> None:
        super()._reopen()
        state = self._state
        if not self.done and state.done and len(state.done) == self.settings.pairs:
            state.pair = state.done.pop()
            for one in (state.axes, state.residuals, state.finished):
                one.pop()
            self._step()

    def result(self) -> tuple[PrincipalPair, ...]:
        """Return the pairs found so far, the present one last; empty before there is one."""
        state, size = self._state, self.space.size
        found: list[PrincipalPair] = []
        if not state.scales:
            return ()
        matrices = self._matrices()
        pairs = list(zip(state.done, state.residuals, state.finished, strict=True))
        if len(pairs) < self.settings.pairs and len(state.pair):
            pairs.append((state.pair, state.norms, False))
        q = torch.eye(self.count, dtype=torch.float64) - 1.0 / self.count
        for pair, norms, good in pairs:
            c = torch.zeros(2, size, dtype=torch.float64)
            c[:, : pair.shape[1]] = pair
            ratios = log_ratios(matrices, c[0], c[1])
            value, d = spread(ratios, q), q @ ratios
            axis = d / d.norm().clamp(min=1e-300)
            found.append(
                PrincipalPair(self.space.vectors(c.mT), ratios, value, norms, axis, bool(good))
            )
            q = q - torch.outer(axis, axis)
        return tuple(found)
