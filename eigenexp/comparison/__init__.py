"""Comparison of models; public as ``eigenexp.compare``.

:func:`pencil` of two models, :func:`principal` distortions of any number, with bounds, and the
ask/tell solvers behind them.
"""

from eigenexp.comparison.base import ComparisonSolver
from eigenexp.comparison.distances import Distances, distances
from eigenexp.comparison.pencil import Pencil, pencil, pencil_of, solve_pencil
from eigenexp.comparison.pencil_solver import PencilSolver
from eigenexp.comparison.pencil_state import PencilPairs, PencilSettings
from eigenexp.comparison.polytope import polytope_bound
from eigenexp.comparison.principal import (
    LogRatioBounds,
    Principal,
    bound_log_ratios,
    principal,
    principal_of,
    survivors,
)
from eigenexp.comparison.principal_solver import (
    PrincipalPair,
    PrincipalSettings,
    PrincipalSolver,
)
from eigenexp.comparison.problems import Compared, IdentityOperator, operators_of

__all__ = [
    "Compared",
    "ComparisonSolver",
    "Distances",
    "IdentityOperator",
    "LogRatioBounds",
    "Pencil",
    "PencilPairs",
    "PencilSettings",
    "PencilSolver",
    "Principal",
    "PrincipalPair",
    "PrincipalSettings",
    "PrincipalSolver",
    "bound_log_ratios",
    "distances",
    "operators_of",
    "pencil",
    "pencil_of",
    "polytope_bound",
    "principal",
    "principal_of",
    "solve_pencil",
    "survivors",
]
