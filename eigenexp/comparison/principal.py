"""Principal distortions of any number of models, and how far any pair could go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.comparison.pencil_solver import PencilSolver
from eigenexp.comparison.polytope import polytope_bound
from eigenexp.comparison.principal_solver import PrincipalSolver
from eigenexp.comparison.problems import Compared, IdentityOperator, operators_of
from eigenexp.comparison.space import SharedSpace
from eigenexp.errors import InputError
from eigenexp.operators.noise import Noise
from eigenexp.spectrum import StopReason, with_canonical_signs

__all__ = ["LogRatioBounds", "Principal", "bound_log_ratios", "principal", "survivors"]

RATIO_TOL = 0.05
"""Of a bound of ln λ: 0.05 of some 14 moves the bound of the value by 0.7 %."""
BUDGET = 300
"""Products for one pair of models; the bound is then what was proved by them."""


@dataclass(frozen=True, eq=False)
class LogRatioBounds:
    """What pencils of two say of all models.

    Attributes
    ----------
    lower, upper
        ``(N, N)``: ln λmax(F_i, F_j) lies between, but for the chance ``miss_chance`` of each pair
        of models; infinite above where nothing is proved. The diagonal is 0.
    num_products
        Columns times two that they took.
    miss_chance
        Summed over the pairs.
    """

    lower: Tensor
    upper: Tensor
    num_products: int
    miss_chance: float


@dataclass(frozen=True, eq=False)
class Principal:
    """The pair of distortions over which models differ most.

    Attributes
    ----------
    value
        Variance over models of ln uᵀF_iu − ln vᵀF_iv, reached by ``distortions``.
    bound, bound_rule
        No pair of distortions exceeds it; how it was had. Infinite where it was not asked for.
    distortions
        ``(2, C, H, W)``: u and v, unit 2-norm.
    log_ratios
        ``(N,)``: ln uᵀF_iu − ln vᵀF_iv, F with its ridge; half of it is the logarithm of the ratio
        of thresholds of v and u.
    residuals
        ``(2,)``: norms of the two gradients; below tol where ``converged``.
    scree
        Variance of each pair, the first one included, off the axes of those before.
    further
        The pairs after the first, as principals of their own.
    ridge, scales
        ε, and λmax of each model, of which ε is a share.
    num_products, num_bound_products
        Columns times models; those of the bound are apart.
    miss_chance
        Chance at most that the bound does not hold.
    at_ten_ridge
        The same at 10ε: what moves much with the ridge is a property of the ridge.
    """

    value: float
    bound: float
    bound_rule: str
    distortions: Tensor
    log_ratios: Tensor
    residuals: Tensor
    converged: bool
    scree: Tensor
    further: tuple[Principal, ...]
    ridge: float
    scales: tuple[float, ...]
    num_products: int
    num_bound_products: int
    miss_chance: float | None
    stop_reason: StopReason
    notes: tuple[str, ...] = ()
    at_ten_ridge: Principal | None = None

    @property
    def proven(self) -> float:
        """The share of the bound that is reached: 1 where no pair can do better."""
        if not math.isfinite(self.bound):
            return 0.0
        return min(1.0, self.value / self.bound) if self.bound > 0 else 1.0

    def survivors(self, measured: float, sd: float, width: float = 1.96) -> Tensor:
        """Return which models a measured log ratio leaves standing, see :func:`survivors`."""
        return survivors(self.log_ratios, measured, sd, width)

    def __str__(self) -> str:
        lines = [
            f"principal distortions, ridge {self.ridge:g} of lambda_max: value {self.value:.4f} "
            f"in {self.num_products} products, {self.stop_reason.value}",
            f"  no pair exceeds {self.bound:.4f}: {self.proven:.1%} reached "
            f"({self.bound_rule}; {self.num_bound_products} products)",
            "  log ratios: " + ", ".join(f"{one:+.3f}" for one in self.log_ratios.tolist()),
            "  scree: " + ", ".join(f"{one:.4f}" for one in self.scree.tolist()),
        ]
        if self.at_ten_ridge is not None:
            lines.append(f"  at 10 times the ridge: value {self.at_ten_ridge.value:.4f}")
        return "\n".join(lines)


def survivors(log_ratios: Tensor, measured: float, sd: float, width: float = 1.96) -> Tensor:
    """Return which models predict a measured ln uᵀFu − ln vᵀFv, ``(N,)`` bool.

    Parameters
    ----------
    log_ratios
        Of the models.
    measured
        From thresholds T: 2 (ln T(v) − ln T(u)).
    sd
        Its standard deviation.
    width
        A model stands where it is off by at most ``width · sd``: 1.96 keeps the true one in 95 %.

    Raises
    ------
    InputError
        When sd or width is not positive.
    """
    if not sd > 0 or not width > 0:
        raise InputError(f"sd, width: expected positive numbers, got {sd} and {width}")
    return (log_ratios - measured).abs() <= width * sd


def bound_log_ratios(
    compared: Compared,
    scales: Sequence[float],
    ridge: float,
    *,
    space: SharedSpace | None = None,
    seed: int = 0,
    ratio_tol: float = RATIO_TOL,
    miss_chance: float = 1e-3,
    max_products: int | None = BUDGET,
) -> LogRatioBounds:
    """Bound ln λmax(F_i + ε, F_j + ε) for all pairs, each F in units of its scale.

    Parameters
    ----------
    compared
        The operators.
    scales
        λmax of each.
    ridge
        ε, positive.
    space
        Vectors whose products with all operators are known already.
    seed
        Of the random vectors.
    ratio_tol
        How near the logarithms are wanted.
    miss_chance
        For each pair of models; all of them together have their sum.
    max_products
        For each pair of models.
    """
    count, n = len(compared), compared.problem.n
    lower = torch.zeros(count, count, dtype=torch.float64)
    upper, products, chance = lower.clone(), 0, 0.0
    settings = compared.as_settings()
    for i, j in itertools.combinations(range(count), 2):
        solver = PencilSolver(
            n,
            delta=2 * ridge,
            floor=ridge,
            tol=1e-4,
            ratio_tol=ratio_tol,
            scales=(scales[i], scales[j]),
            seed=seed + 1000 * i + j + 1,
            miss_chance=miss_chance,
            max_products=max_products,
            alike=True,
            **settings,
        )
        if space is not None:
            solver.take_space(space, (i, j))
        pair = compared.only(i, j)
        while not solver.done:
            solver.tell(pair.products(solver.ask()))
        products += solver.num_products
        chance += miss_chance
        for a, b, side in ((i, j, 0), (j, i, 1)):
            found = solver.pairs(side)
            mu = float(found.mu[0])
            top = min(mu + float(found.error_bounds[0]), 1.0)
            lower[a, b] = math.log(max(mu, 1e-300)) - math.log1p(-min(mu, 1 - 1e-16))
            upper[a, b] = math.log(top) - math.log1p(-top) if top < 1 else math.inf
    return LogRatioBounds(lower, upper, products, chance)


def principal(
    models: Sequence[Any],
    picture: Any = None,
    *,
    pairs: int = 1,
    ridge: float = 1e-4,
    tol: float = 1e-3,
    seed: int = 0,
    noise: Noise | Sequence[Noise | None] | None = None,
    bound: bool = True,
    ten_ridge: bool = True,
    miss_chance: float = 1e-3,
    max_products: int | None = None,
    callback: Callable[[PrincipalSolver], object] | None = None,
) -> Principal:
    """Find the two distortions whose relative visibility differs most over models.

    Maximises Var_i[ln uᵀF_iu − ln vᵀF_iv] over unit u, v (Feather et al., ICLR 2025, whose
    objective is a quarter of it). Two models: the two ends of their pencil. One model: the most and
    the least visible distortion, by comparison with the identity.

    Parameters
    ----------
    models
        Models, or operators of F.
    picture
        A picture or tensor ``(1, C, H, W)``; not needed for operators.
    pairs
        Pairs wanted: each further one differs most off the axes of those before.
    ridge
        ε: ε · λmax is added to each F. Without it models that are blind to a change have no bound.
    tol
        Norm of the gradients at which a pair has converged.
    seed
        Of all random vectors.
    noise
        One for all models, or one a model.
    bound
        Prove how far any pair could go, by pencils of two.
    ten_ridge
        Solve at 10ε too, in the space at hand; its products are counted apart.
    miss_chance
        That the bound does not hold, at most.
    max_products
        For the pairs, columns times models.
    callback
        Called with the solver after every ``tell``; True ends the solve.

    Raises
    ------
    InputError, ModelError
        When the models do not fit each other or the picture.
    """
    compared = operators_of(models, picture, noise=noise)
    if len(compared) == 1:
        compared = Compared([*compared.operators, IdentityOperator(compared.problem)])
    solver = PrincipalSolver(
        compared.problem.n,
        len(compared),
        pairs=pairs,
        ridge=ridge,
        tol=tol,
        seed=seed,
        max_products=max_products,
        **compared.as_settings(),
    )
    _run(compared, solver, callback)
    found = principal_of(compared, solver)
    if bound and ridge > 0 and solver.scales:
        many = len(compared) * (len(compared) - 1) // 2
        known = bound_log_ratios(
            compared,
            solver.scales,
            ridge,
            space=solver.space,
            seed=seed,
            miss_chance=miss_chance / many,
        )
        limit, rule = polytope_bound(known.upper)
        found = replace(
            found,
            bound=limit,
            bound_rule=rule,
            num_bound_products=known.num_products,
            miss_chance=known.miss_chance,
        )
    if ten_ridge and 0 < ridge < 0.1 and solver.done and solver.scales:
        further = solver.at_ridge(10 * ridge)
        _run(compared, further, callback)
        found = replace(found, at_ten_ridge=principal_of(compared, further))
    return found


def _run(
    compared: Compared,
    solver: PrincipalSolver,
    callback: Callable[[PrincipalSolver], object] | None,
) -> None:
    while not solver.done:
        solver.tell(compared.products(solver.ask()))
        if callback is not None and callback(solver) is True:
            break


def principal_of(compared: Compared, solver: PrincipalSolver) -> Principal:
    """Return what a solver knows, as pictures; nothing is bounded yet.

    Raises
    ------
    InputError
        When it knows no pair yet.
    """
    pairs = solver.result()
    if not pairs:
        raise InputError("result: expected a solver with a pair, got one that has none yet; go on")
    scree = torch.tensor([pair.value for pair in pairs], dtype=torch.float64)
    made = [
        Principal(
            value=pair.value,
            bound=math.inf,
            bound_rule="not asked for",
            distortions=with_canonical_signs(compared.pictures(pair.vectors)),
            log_ratios=pair.log_ratios,
            residuals=pair.residuals,
            converged=pair.converged,
            scree=scree,
            further=(),
            ridge=solver.settings.ridge,
            scales=solver.scales,
            num_products=solver.num_products,
            num_bound_products=0,
            miss_chance=None,
            stop_reason=solver.stop_reason,
        )
        for pair in pairs
    ]
    return replace(made[0], further=tuple(made[1:]))
