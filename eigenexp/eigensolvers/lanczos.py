"""Thick-restart Lanczos with full reorthogonalisation: both ends from one Krylov space.

:mod:`.krylov` is the factorisation; here is the policy. When the wanted pairs are there, the basis
is handed to the last stage that all methods share, :mod:`.certificates.certified`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.certified import CertifiedSolver
from eigenexp.eigensolvers.certificates.stage import SMALL
from eigenexp.eigensolvers.krylov import KrylovFactorisation
from eigenexp.errors import InputError

__all__ = ["Lanczos"]

TOP_BASIS = 40
BOTTOM_BASIS = 320
AFTER = 60
"""Room that the last stage is given beside what it takes over."""


class Lanczos(CertifiedSolver):
    """Thick-restart Lanczos for one end of the spectrum or both.

    Parameters
    ----------
    basis_size
        Vectors stored at the most; memory is ``basis_size · n`` numbers, raised where k needs more.
        ``None``: 40 for the top alone, where more save nothing; 320 where the bottom is wanted,
        whose crowded eigenvalues a restart loses again and again (40 cost it 4 times the products);
        n where n is small, so that no product is ever lost.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start, miss_chance
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. The start vector is random.

    Notes
    -----
    A pair is called converged when its residual is at most ``tol · λmax`` and the chance that a
    pair beyond was missed at most ``miss_chance``: see :mod:`.certificates.certified`.
    """

    name: ClassVar[str] = "lanczos"

    def __init__(self, n: int, *, basis_size: int | None = None, **settings: Any) -> None:
        super().__init__(n, **settings)
        if basis_size is None:
            basis_size = TOP_BASIS if self.settings.which == "top" else BOTTOM_BASIS
            basis_size = max(n, 2) if n <= SMALL else basis_size
        if basis_size < 2:
            raise InputError(f"basis_size: expected at least 2 vectors, got {basis_size}")
        starts = max(1, self._null_copies)
        self.basis_size = min(n, max(basis_size, 2 * len(self.settings.wanted) + starts + 8))
        self._krylov = KrylovFactorisation(
            n, self.basis_size, dtype=self.dtype, device=self.device, eps=self.eps, floor=self.floor
        )
        for _ in range(starts):
            self._inject_random()

    @property
    def block_size(self) -> int:
        """Blocks are single vectors."""
        return 1

    @property
    def stored_vectors(self) -> int:
        """The basis, or the space of the last stage and its products."""
        return max(self.basis_size, 2 * self._stage_capacity())

    def _stage_capacity(self) -> int:
        # What is taken over, and room to follow a witness in.
        usual = super()._stage_capacity()
        return min(self.settings.n, max(usual, min(self.basis_size, usual) + AFTER))

    @property
    def _main(self) -> KrylovFactorisation:
        return self._krylov

    # -- one step ------------------------------------------------------------------------------

    def _main_ask(self) -> Tensor:
        return self._krylov.candidates[0][:, None].clone()

    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        krylov = self._krylov
        krylov.expand(block[:, 0], products[:, 0])
        self._num_products += 1
        exhausted = not krylov.candidates and krylov.size >= self.settings.n
        if krylov.size % self._interval() == 0 or not krylov.candidates:
            self._main_look()
        if not self._in_main:
            return
        if exhausted:
            self._hand_over()
            return
        if not krylov.candidates:
            self._shrink_below(krylov.capacity)
            self._inject_random()
        self._shrink_below(krylov.capacity)

    def _interval(self) -> int:
        """Return the steps between two solutions of the projected problem, of size³ work each."""
        size = self._krylov.size
        return 1 if size <= 64 else 2 if size <= 160 else 4

    def _inject_random(self) -> None:
        """Add a random candidate, last, where there is room for one."""
        krylov = self._krylov
        if krylov.size + len(krylov.candidates) >= self.settings.n:
            return
        fresh = None
        while fresh is None:
            fresh, _ = krylov.cleaned(self._randn(self.settings.n))
        krylov.inject(fresh)

    def _main_places(self) -> tuple[list[int], list[int]]:
        """Return where the wanted pairs stand among the Ritz values, and their eigenindex."""
        j, n = self._krylov.size, self.settings.n
        top = min(self._num_top, j)
        bottom = min(self._num_bottom, j - top)
        places = [*range(top), *range(j - bottom, j)]
        return places, [*range(top), *range(n - bottom, n)]

    def _main_look(self) -> None:
        """Hand over when every wanted estimate is under the tolerance."""
        krylov = self._krylov
        places, _ = self._main_places()
        if not krylov.size or len(places) < len(self.settings.wanted):
            return
        residuals = krylov.ritz()[2][places]
        # Below rounding an estimate means nothing: let the last stage decide.
        target = max(0.97 * self.settings.tol, 0.25 * self.floor) * krylov.scale
        late = [i for i in self._outermost_first() if float(residuals[i]) > target]
        if not late:
            self._hand_over()
            return
        # Next comes the candidate that carries most of the first unconverged pair's residual.
        krylov.prefer(krylov.couplings @ krylov.ritz()[1][:, places[late[0]]])

    def _hand_over(self) -> None:
        krylov = self._krylov
        # The last stage stores products, too: what is far from both ends stays behind.
        if self._stage_capacity() < self.settings.n:
            self._shrink_below(self._stage_capacity() - AFTER // 2)
        basis, products = krylov.basis_and_products()
        self._take_over(basis, products)
        krylov.release()

    def _shrink_below(self, size: int) -> None:
        """Shrink to the wanted Ritz vectors and their neighbours (thick restart)."""
        krylov = self._krylov
        if krylov.size < size or krylov.size >= self.settings.n:
            return
        keep = self._kept_places(krylov.size)
        if len(keep) < krylov.size:
            krylov.shrink(keep)

    # -- what is known -------------------------------------------------------------------------

    def _main_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        krylov = self._krylov
        if not krylov.size:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), 0.0
        places, index = self._main_places()
        values, _, residuals = krylov.ritz()
        values, residuals = values[places].clamp(min=0), residuals[places].clone()
        scale = max(krylov.scale, float(values.max()) if len(values) else 0.0)
        return values, residuals, torch.tensor(index, dtype=torch.int64), scale

    def _main_vectors(self) -> Tensor:
        if not self._krylov.size:
            return torch.zeros(0, self.settings.n, dtype=self.dtype, device=self.device)
        return self._krylov.vectors(self._main_places()[0]).mT
