"""Eigensolvers for F = JᵀJ, one method a file, all with one ask/tell contract.

See :mod:`eigenexp.eigensolvers.base` for the contract.
"""

from eigenexp.eigensolvers.base import Eigensolver, Progress, Settings
from eigenexp.eigensolvers.lanczos import Lanczos
from eigenexp.eigensolvers.methods import METHODS
from eigenexp.eigensolvers.power import Power
from eigenexp.eigensolvers.solving import make_solver, multiply, solve

__all__ = [
    "METHODS",
    "Eigensolver",
    "Lanczos",
    "Power",
    "Progress",
    "Settings",
    "make_solver",
    "multiply",
    "solve",
]
