"""Products with the Jacobian J of a model at a picture, and with F = JᵀJ.

``JacobianOperator`` gives J·V and Jᵀ·U, ``FisherOperator`` F·V, ``DenseOperator`` the same
interface for a matrix at hand. How a product is computed is found out by trying once
and checked by the adjoint identity ⟨JV, U⟩ = ⟨V, JᵀU⟩; see :mod:`eigenexp.operators.routes`.
"""

from eigenexp.operators.average import AverageFisherOperator
from eigenexp.operators.batched import BatchedFisherOperator
from eigenexp.operators.dense import DenseOperator
from eigenexp.operators.fisher import FisherOperator
from eigenexp.operators.jacobian import JacobianOperator
from eigenexp.operators.protocol import FisherLike, Problem

__all__ = [
    "AverageFisherOperator",
    "BatchedFisherOperator",
    "DenseOperator",
    "FisherLike",
    "FisherOperator",
    "JacobianOperator",
    "Problem",
]
