"""Eigensolvers for F = JᵀJ, one method a file, all with one ask/tell contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.auto import auto
from eigenexp.eigensolvers.base import Eigensolver
from eigenexp.eigensolvers.davidson import Davidson
from eigenexp.eigensolvers.exact import Exact
from eigenexp.eigensolvers.lanczos import Lanczos
from eigenexp.eigensolvers.power import Power
from eigenexp.eigensolvers.progress import Progress
from eigenexp.eigensolvers.randomized_svd import RandomizedSVD
from eigenexp.eigensolvers.settings import Settings, Which
from eigenexp.errors import InputError
from eigenexp.operators.protocol import FisherLike, Problem, Request
from eigenexp.spectrum import Spectrum

__all__ = [
    "METHODS",
    "Davidson",
    "Eigensolver",
    "Exact",
    "FisherLike",
    "Lanczos",
    "Power",
    "Problem",
    "Progress",
    "RandomizedSVD",
    "Request",
    "Settings",
    "Which",
    "auto",
    "check_settings",
    "make_solver",
    "multiply",
    "solve",
]

METHODS: dict[str, Callable[..., Eigensolver]] = {
    "auto": auto,
    "davidson": Davidson,
    "exact": Exact,
    "lanczos": Lanczos,
    "power": Power,
    "randomized_svd": RandomizedSVD,
}
"""What makes a solver, by method; ``"auto"`` chooses the one that serves the problem best."""


def make_solver(
    operator: FisherLike | Problem, method: str = "auto", **settings: Any
) -> Eigensolver:
    """Return a solver for ``operator``, sizes, dtype and device taken from its problem.

    Parameters
    ----------
    operator
        Anything with a ``problem`` and products, as ``FisherOperator`` or ``DenseOperator``; or the
        problem alone, for a solver whose products come from elsewhere or not at all.
    method
        A key of :data:`METHODS`.
    settings
        ``k``, ``which``, ``tol``, ``seed``, ``max_products``, and the method's own options.

    Raises
    ------
    InputError
        When the method or a setting is unknown or does not fit.
    """
    problem = operator if isinstance(operator, Problem) else operator.problem
    return _kind(method, settings)(problem.n, **problem.as_settings(), **settings)


def check_settings(
    image_shape: tuple[int, ...], dtype: torch.dtype, method: str = "auto", **settings: Any
) -> None:
    """Raise what :func:`make_solver` would raise at a picture, before there is an operator.

    Parameters
    ----------
    image_shape
        ``(C, H, W)``.
    dtype
        Of the solve.
    method, settings
        As for :func:`make_solver`.

    Raises
    ------
    InputError
        When the method or a setting is unknown or does not fit.
    """
    make_solver(Problem.of_size(image_shape, dtype), method, **settings)


def _kind(method: str, settings: Mapping[str, Any]) -> Callable[..., Eigensolver]:
    """Return what makes a method's solver, which takes these settings."""
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(sorted(METHODS))}, got {method!r}")
    kind = METHODS[method]
    known = _settings_of(kind)
    unknown = sorted(set(settings) - known)
    if unknown:
        raise InputError(
            f"{unknown[0]}: expected a setting of {method!r} ({', '.join(sorted(known))})"
        )
    return kind


def _settings_of(kind: Callable[..., Eigensolver]) -> set[str]:
    """Return what a user may set: the common settings and the method's own options."""
    own = inspect.signature(kind).parameters
    common = {"k", "which", "tol", "seed", "max_products", "miss_chance", "relative_tol"}
    common.add("strict_verification")
    of_problem = {field.name for field in fields(Problem)}
    return common | (set(own) - {"self", "n", "settings"} - of_problem)


def multiply(operator: FisherLike, request: Request, block: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a solver requested for ``block``, and the responses J V where at hand."""
    return operator.apply(block, request)


def solve(
    operator: FisherLike,
    method: str = "auto",
    *,
    callback: Callable[[Eigensolver], object] | None = None,
    **settings: Any,
) -> Spectrum:
    """Solve for the wanted eigenpairs of ``operator``: the ask/tell loop in one call.

    Parameters
    ----------
    operator
        Anything with a ``problem`` and products, as ``FisherOperator`` or ``DenseOperator``.
    method, settings
        See :func:`make_solver`.
    callback
        Called with the solver after every ``tell``; returning ``True`` ends the loop early.

    Returns
    -------
    Spectrum
        With ``eigenvectors`` of shape ``(k, *image_shape)``; its metadata name the noise and
        the perturbations.

    Raises
    ------
    InputError, ProductError
        When a setting is unknown or a product unusable.
    """
    solver = make_solver(operator, method, **settings)
    while not solver.done:
        block = solver.ask()
        solver.tell(*multiply(operator, solver.request, block))
        if callback is not None and callback(solver) is True:
            break
    problem = operator.problem
    return solver.result().reshape(problem.picture_shape).with_metadata(problem.told())
