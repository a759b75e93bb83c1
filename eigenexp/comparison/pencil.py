"""Two models: the changes one sees and the other does not, with bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.comparison.pencil_solver import PencilSolver
from eigenexp.comparison.pencil_state import PencilPairs
from eigenexp.comparison.problems import Compared, operators_of, traces
from eigenexp.errors import InputError
from eigenexp.operators.noise import Noise
from eigenexp.spectrum import PairStatus, StopReason, with_canonical_signs

__all__ = ["Pencil", "pencil", "pencil_of", "solve_pencil"]

SCALES = ("lambda_max", "trace", "none")


@dataclass(frozen=True, eq=False)
class Pencil:
    """Pairs of F_A v = μ S v and F_B w = μ′ S w, S = F_A + F_B + δ, each F divided by its scale.

    μ → 1: only the first model sees the change; a large μ′: only the second does. μ/(1 − μ − δ‖v‖²)
    is the ratio of what they see.

    Attributes
    ----------
    mu, mu_reverse
        ``(k,)``, decreasing; empty for a side that was not asked for.
    distortions
        ``(k, C, H, W)``: v, unit 2-norm. ``distortions_reverse``: w.
    residuals, residuals_reverse
        ``(k,)``: ‖F_A v − μSv‖ / ‖v‖_S.
    error_bounds, error_bounds_reverse
        ``(k,)``: of μ; infinite where nothing is proved.
    status, status_reverse
        ``PairStatus`` a pair.
    common_null_dimension
        Dimension of the changes known to be invisible to both; at least so many where
        ``common_null_is_exact`` is false. They are never among the pairs.
    num_products
        Columns times two, those of the scales included and of ``at_ten_delta`` not.
    delta, scales, scale_bounds, scale
        δ; what each F was divided by, by how much (relative) λmax may exceed it, and what it is.
    miss_chance
        Chance at most that a pair beyond was missed; None where no search came to its end.
    stop_reason, notes
        Why the solve ended, and what else there is to say.
    at_ten_delta
        The same at 10δ: what changes much with δ is a property of δ, not of the models.
    """

    mu: Tensor
    mu_reverse: Tensor
    distortions: Tensor
    distortions_reverse: Tensor
    residuals: Tensor
    residuals_reverse: Tensor
    error_bounds: Tensor
    error_bounds_reverse: Tensor
    status: tuple[PairStatus, ...]
    status_reverse: tuple[PairStatus, ...]
    common_null_dimension: int
    common_null_is_exact: bool
    num_products: int
    delta: float
    scales: tuple[float, ...]
    scale_bounds: tuple[float, float]
    scale: str
    miss_chance: float | None
    stop_reason: StopReason
    notes: tuple[str, ...] = ()
    at_ten_delta: Pencil | None = None

    @property
    def converged(self) -> bool:
        """Whether every pair is proved."""
        return all(one is PairStatus.CONVERGED for one in (*self.status, *self.status_reverse))

    def __str__(self) -> str:
        lines = [
            f"pencil, delta = {self.delta:g} of {self.scale}: {self.num_products} products, "
            f"{self.stop_reason.value}"
        ]
        for word, mu, bounds, status in (
            ("first sees most", self.mu, self.error_bounds, self.status),
            ("second sees most", self.mu_reverse, self.error_bounds_reverse, self.status_reverse),
        ):
            for i, value in enumerate(mu.tolist()):
                lines.append(
                    f"  {word:16} {i}: mu = {value:.8f}, off by at most {float(bounds[i]):.1e}, "
                    f"{status[i].value}"
                )
        null = "" if self.common_null_is_exact else "at least "
        lines.append(f"  seen by neither: {null}{self.common_null_dimension} dimensions")
        if self.at_ten_delta is not None:
            ten = self.at_ten_delta
            said = [f"{float(m[0]):.6f}" for m in (ten.mu, ten.mu_reverse) if len(m)]
            lines.append(f"  at 10 delta: mu = {', '.join(said)}")
        return "\n".join(lines)


def solve_pencil(
    compared: Compared,
    solver: PencilSolver,
    callback: Callable[[PencilSolver], object] | None = None,
) -> None:
    """Run the ask/tell loop to its end, or until ``callback(solver)`` returns True."""
    while not solver.done:
        block = solver.ask()
        solver.tell(compared.products(block))
        if callback is not None and callback(solver) is True:
            break


def pencil_of(compared: Compared, solver: PencilSolver, scale: str = "lambda_max") -> Pencil:
    """Return what a solver knows, as pictures."""
    first, second = solver.result()
    n = compared.problem.n
    least = max(0, n - sum(operator.problem.rank_bound for operator in compared.operators))
    exact = solver.is_whole
    null = max(least, solver.common_null()) if solver.scales else least
    notes = list(solver.notes)
    if not solver.settings.delta > 0 and not exact:
        notes.append("delta = 0: nothing is proved, as S is not known to be positive")

    def shown(pairs: PencilPairs | None) -> dict[str, Any]:
        if pairs is None:
            empty = torch.zeros(0, dtype=torch.float64)
            pictures = compared.pictures(
                torch.zeros(n, 1, dtype=solver.dtype, device=solver.device)
            )[:0]
            return {
                "mu": empty,
                "distortions": pictures,
                "residuals": empty,
                "error_bounds": empty,
                "status": (),
            }
        return {
            "mu": pairs.mu,
            "distortions": with_canonical_signs(compared.pictures(pairs.vectors)),
            "residuals": pairs.residuals,
            "error_bounds": pairs.error_bounds,
            "status": pairs.status,
        }

    forward, backward = shown(first), shown(second)
    return Pencil(
        **forward,
        **{f"{key}_reverse": value for key, value in backward.items()},
        common_null_dimension=null,
        common_null_is_exact=exact,
        num_products=solver.num_products,
        delta=solver.settings.delta,
        scales=solver.scales,
        scale_bounds=solver.scale_bounds(),
        scale=scale,
        miss_chance=solver.miss_chance,
        stop_reason=solver.stop_reason,
        notes=tuple(notes),
    )


def pencil(
    model_a: Any,
    model_b: Any,
    picture: Any = None,
    *,
    k: int = 1,
    which: str = "both",
    delta: float = 1e-3,
    scale: str | Sequence[float] = "lambda_max",
    tol: float = 1e-5,
    value_tol: float | None = None,
    seed: int = 0,
    noise: Noise | Sequence[Noise | None] | None = None,
    ten_delta: bool = True,
    callback: Callable[[PencilSolver], object] | None = None,
    **settings: Any,
) -> Pencil:
    """Find what model A sees most relative to B, and the reverse.

    Parameters
    ----------
    model_a, model_b
        Models, or operators of F.
    picture
        A picture or tensor ``(1, C, H, W)``; not needed for operators.
    k
        Pairs on each side.
    which
        ``"both"``, or ``"first"`` or ``"second"`` alone.
    delta
        δ of S, in units of the scaled F: an independent look at the pixels with variance 1/δ.
        The smaller, the more the pairs are those of the models alone, and the more they cost.
    scale
        What each F is divided by: ``"lambda_max"``; ``"trace"`` (tr F/n, from n more products of
        each, counted); ``"none"``; or two numbers.
    tol
        ‖F_A v − μSv‖ ≤ tol · ‖v‖_S.
    value_tol
        Go on until every μ is proved to this; None: the bounds are what they are at ``tol``. μ to
        1e-6 is a ratio of sensitivities to 1 % where 1 − μ is 1e-4.
    seed
        Of all random vectors.
    noise
        One for both models, or a pair.
    ten_delta
        Solve at 10δ too, in the space at hand; its products are counted apart.
    callback
        Called with the solver after every ``tell``; True ends the solve.
    settings
        Further ones of :class:`~eigenexp.comparison.pencil_solver.PencilSettings`, as
        ``max_products``, ``miss_chance``, ``basis_size``.

    Returns
    -------
    Pencil

    Raises
    ------
    InputError, ModelError
        When the models do not fit each other or the picture, or are one.

    Examples
    --------
    >>> import torch, eigenexp as ee
    >>> a, b = (ee.DenseOperator(torch.diag(torch.tensor(d, dtype=torch.float64)))
    ...         for d in ([1.0, 4.0, 9.0, 2.0], [3.0, 1.0, 2.0, 8.0]))
    >>> found = ee.compare.pencil(a, b, delta=1e-9, scale="none")
    >>> f"{float(found.mu[0]):.6f} {float(found.mu_reverse[0]):.6f}"  # 9/11 and 8/10
    '0.818182 0.800000'
    """
    compared = operators_of([model_a, model_b], picture, noise=noise, names=("model_a", "model_b"))
    if model_a is model_b and len(set(compared.noises)) == 1:
        raise InputError(
            "model_a, model_b: expected two models that differ, got one given twice: ln κ = 0, "
            "both see every change alike"
        )
    known, extra = _scales(compared, scale)
    solver = PencilSolver(
        compared.problem.n,
        k=k,
        which=which,
        delta=delta,
        tol=tol,
        value_tol=value_tol,
        scales=known,
        seed=seed,
        **settings,
        **compared.as_settings(),
    )
    solve_pencil(compared, solver, callback)
    word = scale if isinstance(scale, str) else "given"
    found = pencil_of(compared, solver, word)
    found = replace(found, num_products=found.num_products + extra)
    if not ten_delta or not solver.done or not delta > 0:
        return found
    further = solver.at_delta(10 * delta)
    solve_pencil(compared, further, callback)
    return replace(found, at_ten_delta=pencil_of(compared, further, word))


def _scales(
    compared: Compared, scale: str | Sequence[float]
) -> tuple[tuple[float, float] | None, int]:
    """Return known scales and the products they took."""
    if not isinstance(scale, str):
        given = [float(one) for one in scale]
        if len(given) != 2:
            raise InputError(f"scale: expected two numbers, got {len(given)}")
        return (given[0], given[1]), 0
    if scale == "lambda_max":
        return None, 0
    if scale == "none":
        return (1.0, 1.0), 0
    if scale == "trace":
        n = compared.problem.n
        a, b = (value / n for value in traces(compared))
        return (a, b), 2 * n
    raise InputError(f"scale: expected one of {', '.join(SCALES)}, or two numbers, got {scale!r}")
