"""Block power iteration with Rayleigh-Ritz: simple, slow, the reference.

Sources: H. Rutishauser, "Simultaneous iteration method for symmetric matrices", Numer. Math. 16,
1970; for eigendistortions A. Berardino, J. Ballé, V. Laparra, E. Simoncelli, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from eigenexp.eigensolvers.subspace import SubspaceSolver

__all__ = ["Power"]

# The shift of the bottom end is λmax within this share.
_SHIFT_ACCURACY = 0.1


class Power(SubspaceSolver):
    """Orthogonal iteration: X ← orth(F X) at the top, X ← orth(σX − F X) at the bottom.

    One product a column an iteration, with Rayleigh-Ritz on each block. The schedule: with
    ``which="both"`` the top block is iterated until it converges and is then set aside (the bottom
    block stays orthogonal to it), with σ ≥ λmax. With ``which="bottom"`` a single vector is
    iterated until λmax is known to a tenth, and σ is that with its residual added. The bottom
    block starts from random vectors, not from F times them, which have no part in the null space.

    Parameters
    ----------
    n, **settings
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. ``start`` is not used.
    verification_products
        See :class:`~eigenexp.eigensolvers.subspace.SubspaceSolver`.
    """

    name: ClassVar[str] = "power"

    def __init__(
        self, n: int, *, verification_products: int | None = None, **settings: Any
    ) -> None:
        super().__init__(n, verification_products=verification_products, **settings)
        self._stage = "top" if self.settings.which != "bottom" else "scale"
        self._num_locked = 0
        self._lambda_max = 0.0
        self._shift = 0.0
        self._block_left = 0

    def _default_basis_size(self) -> int:
        # Block and images of one end, the other end set aside, and room for the verification.
        return 2 * self.settings.k + max(self.settings.k, 1) + 40

    @property
    def block_size(self) -> int:
        """Largest number of columns ``ask`` ever returns."""
        return self.settings.k

    @property
    def _scale(self) -> float:
        return max(super()._scale, self._lambda_max)

    @property
    def _width(self) -> int:
        n, k = self.settings.n, self.settings.k
        return 1 if self._stage == "scale" else min(k, n - self._num_locked)

    def _next_rows(self, width: int) -> list[int]:
        space = self._space
        if self._num_checks > 0 and space.num_frontier > 0 and space.room > 0:
            return [self._heaviest_row()]  # polish: residuals are at the level of tol already
        # An image inside the space adds no row: the frontier may be shorter than the block was.
        self._block_left = min(self._block_left, space.num_frontier)
        if self._block_left == 0:
            self._next_block()
        count = min(width, self._block_left)
        self._block_left -= count
        return list(range(space.num_imaged, space.num_imaged + count))

    def _next_block(self) -> None:
        """Put the next block into the frontier."""
        space = self._space
        if space.size == 0:
            self._fill(self._width)
            return
        self._set_aside()
        width = self._width
        locked = self._num_locked
        if space.num_imaged == locked:
            self._fill(width)
            return
        # Ritz vectors of the block (after a verification there are more: take the extremal ones).
        p = space.num_imaged
        first = 0 if self._stage != "bottom" else p - min(width, p - locked)
        aside = list(range(locked)) if self._stage == "bottom" else []
        block = list(range(first, first + min(width, p - locked)))
        space.rotate([*aside, *block])
        q, m = space.size, space.num_imaged
        images = space.coefficients[:q, locked:m].clone()  # F X in the rows of the space
        if self._stage == "bottom":
            images = -images
            images[locked:m] += self._shift * torch.eye(m - locked, dtype=torch.float64)
            images[:locked] = 0.0
        space.replace(locked, images)
        self._block_left = space.num_frontier
        if space.num_frontier < width:
            self._fill(width - space.num_frontier)

    def _set_aside(self) -> None:
        """Go on to the bottom end when the top is known well enough."""
        space, k = self._space, self.settings.k
        if self._stage == "bottom" or self.settings.which == "top" or space.num_imaged == 0:
            return
        ritz = space.ritz()
        if self._stage == "scale":
            if float(ritz.residuals[0]) <= _SHIFT_ACCURACY * self._scale:
                self._lambda_max = float(ritz.values[0])
                self._shift = self._lambda_max + float(ritz.residuals[0])
                space.clear()
                self._stage = "bottom"
            return
        count = min(k, len(ritz))
        # Half the target: the bottom block, kept orthogonal to it, feels its error.
        if count == k and float(ritz.residuals[:k].max()) <= 0.5 * self._target():
            self._shift = float(ritz.values[0] + ritz.residuals[0])
            space.rotate(list(range(count)))
            space.forget_frontier()
            self._num_locked, self._stage = count, "bottom"

    def _fill(self, count: int) -> None:
        for _ in range(count):
            if self._space.size < self.settings.n:
                self._inject()
        self._block_left = self._space.num_frontier

    def _export_state(self) -> dict[str, Any]:
        return {
            **super()._export_state(),
            "stage": self._stage,
            "num_locked": self._num_locked,
            "lambda_max": self._lambda_max,
            "shift": self._shift,
            "block_left": self._block_left,
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        super()._import_state(state)
        self._stage = str(state["stage"])
        self._num_locked = int(state["num_locked"])
        self._lambda_max = float(state["lambda_max"])
        self._shift = float(state["shift"])
        self._block_left = int(state["block_left"])
