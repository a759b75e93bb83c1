"""Matrices of models: how far apart they are, and what each sees of the others' distortions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenexp.comparison.principal import BUDGET, RATIO_TOL, bound_log_ratios
from eigenexp.comparison.problems import operators_of
from eigenexp.comparison.scaling import scale_direction
from eigenexp.comparison.space import SharedSpace
from eigenexp.errors import InputError
from eigenexp.operators.noise import Noise

__all__ = ["Distances", "distances"]

PROBES = 4
SCALE_TOL = 1e-6


@dataclass(frozen=True, eq=False)
class Distances:
    """Hilbert's projective distances ln κ_ij = ln(λmax/λmin) of (F_i + ε, F_j + ε).

    Attributes
    ----------
    lower, upper
        ``(N, N)``, symmetric, 0 on the diagonal: ln κ lies between; 0 where F_i and F_j are
        multiples of each other.
    ridge, scales
        ε, and λmax of each model, of which ε is a share.
    num_products
        Columns times operators, in all.
    miss_chance
        Chance at most that one of the upper bounds does not hold.
    notes
        What there is to say, as of models that are one.
    """

    lower: Tensor
    upper: Tensor
    ridge: float
    scales: tuple[float, ...]
    num_products: int
    miss_chance: float
    notes: tuple[str, ...]


def distances(
    models: Sequence[Any],
    picture: Any = None,
    *,
    ridge: float = 1e-4,
    noise: Noise | Sequence[Noise | None] | None = None,
    seed: int = 0,
    ratio_tol: float = RATIO_TOL,
    miss_chance: float = 1e-3,
    max_products: int | None = BUDGET,
) -> Distances:
    """Return the Hilbert distances of models at a picture, each between two bounds.

    Parameters
    ----------
    models
        Models, or operators of F; at least two.
    picture
        A picture or tensor ``(1, C, H, W)``; not needed for operators.
    ridge
        ε: ε · λmax is added to each F; positive, as models that are blind to a change lie
        infinitely far from those that are not.
    noise
        One for all models, or one a model.
    seed
        Of all random vectors.
    ratio_tol
        How near each of the two logarithms of a distance is wanted.
    miss_chance
        Over all pairs of models.
    max_products
        For one pair of models; the bounds are then what was proved by them.

    Raises
    ------
    InputError, ModelError
        When the models do not fit each other or the picture, or ridge is not positive.
    """
    if not 0 < ridge < 1:
        raise InputError(
            f"ridge: expected a number between 0 and 1, got {ridge}; models that are blind to a "
            "change lie infinitely far from others without one"
        )
    compared = operators_of(models, picture, noise=noise)
    count, problem = len(compared), compared.problem
    if count < 2:
        raise InputError(f"models: expected at least 2, got {count}")
    space = SharedSpace(
        problem.n, count, dtype=problem.dtype, device=problem.device, eps=compared.product_eps
    )
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype=problem.dtype, device=problem.device)

    direction: Tensor | None = randn(problem.n, min(PROBES, problem.n))
    while direction is not None:
        block = space.fresh(direction, randn)
        space.grow(block, compared.products(block))
        full = space.size >= problem.n
        direction = None if full else scale_direction(space, SCALE_TOL)
    scales = tuple(float(torch.linalg.eigvalsh(one)[-1]) for one in space.projected)
    if not min(scales) > 0:
        raise InputError(
            f"models: expected responses that change with the picture, got a Jacobian that is "
            f"zero for model {scales.index(min(scales))}; leave it out"
        )
    many = count * (count - 1) // 2
    spent = space.size * count
    known = bound_log_ratios(
        compared,
        scales,
        ridge,
        space=space,
        seed=seed,
        ratio_tol=ratio_tol,
        miss_chance=miss_chance / many,
        max_products=max_products,
    )
    lower = (known.lower + known.lower.mT).clamp(min=0)
    upper = known.upper + known.upper.mT
    notes = tuple(
        f"models {i} and {j} see every change alike, up to a factor: ln κ = 0"
        for i in range(count)
        for j in range(i + 1, count)
        if float(upper[i, j]) <= 1e-6
    )
    return Distances(
        lower, upper, ridge, scales, spent + known.num_products, known.miss_chance, notes
    )
