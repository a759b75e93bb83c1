"""Thick-restart Lanczos with full reorthogonalisation: both ends from one Krylov space.

Sources: C. Lanczos, "An iteration method for the solution of the eigenvalue problem of linear
differential and integral operators", J. Res. Nat. Bur. Standards 45, 1950; K. Wu and H. Simon,
"Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal.
Appl. 22, 2000.
"""

from __future__ import annotations

from typing import ClassVar

from eigenexp.eigensolvers.subspace import SubspaceSolver
from eigenexp.eigensolvers.witness import Chain

__all__ = ["Lanczos"]


class Lanczos(SubspaceSolver):
    """Thick-restart Lanczos: one product a step, no image stored.

    At the top this is the optimum: no method without a preconditioner needs fewer products. At
    the bottom, where eigenvalues crowd, a larger basis is the main help.

    Parameters
    ----------
    n, **settings
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. ``start`` is not used: the start is
        random, because the proof that no pair was missed rests on that.
    basis_size
        Most vectors stored; default 40, or more where the wanted pairs need it.
    verification_products
        See :class:`~eigenexp.eigensolvers.subspace.SubspaceSolver`.
    """

    name: ClassVar[str] = "lanczos"

    def _next_rows(self, width: int) -> list[int]:
        space = self._space
        if space.size == 0:
            chosen = self._inject()
            self._chain = Chain(first=0, dimension=space.n, covers="simple")
            return chosen
        if space.room < 1:
            self._restart()
        if space.num_frontier == 0:
            # An invariant subspace that lacks wanted pairs: go on with a fresh random vector.
            self._chain = None
            return self._inject()
        if space.num_frontier == 1:
            return [space.num_imaged]
        self._chain = None  # several chains: no longer one Krylov space
        return [self._heaviest_row()]
