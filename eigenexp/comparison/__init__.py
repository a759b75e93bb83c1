"""Comparison of models: pencils of two, with bounds; public as ``eigenexp.compare``."""

from eigenexp.comparison.base import ComparisonSolver
from eigenexp.comparison.pencil import Pencil, pencil, pencil_of, solve_pencil
from eigenexp.comparison.pencil_solver import PencilSolver
from eigenexp.comparison.pencil_state import PencilPairs, PencilSettings
from eigenexp.comparison.problems import Compared, operators_of

__all__ = [
    "Compared",
    "ComparisonSolver",
    "Pencil",
    "PencilPairs",
    "PencilSettings",
    "PencilSolver",
    "operators_of",
    "pencil",
    "pencil_of",
    "solve_pencil",
]
