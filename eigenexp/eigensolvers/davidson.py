"""Generalised Davidson with a preconditioner fitted on the way: both ends, strong at the bottom.

The search space V ``(n, j)`` is kept with its products W = F V. A Ritz pair V s, θ has the residual
r = W s − θ V s; V grows by r itself towards the top, which makes a Krylov space, and by A⁻¹ r
towards the bottom, where A ≈ F is one of the ``surrogates`` (Davidson 1975;
Morgan & Scott 1986; Stathopoulos & Saad 1998). The Krylov space comes first, then the start
vectors. Only where these do not have the bottom pairs do a few random vectors follow; A is
estimated from them, and they bring every copy of a repeated eigenvalue into the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.certificate import GUARDING, MAIN, SEARCHING
from eigenexp.eigensolvers.certificates.certified import CertifiedSolver
from eigenexp.eigensolvers.certificates.stage import BASIS_BYTES
from eigenexp.eigensolvers.davidson_state import DavidsonState
from eigenexp.eigensolvers.embedded import Embedded, is_embedded
from eigenexp.eigensolvers.modulated_convolution import fit_surrogate
from eigenexp.eigensolvers.strided_frame import StridedFrame, fit_budget
from eigenexp.eigensolvers.surrogates import (
    MORE,
    choose,
    fits,
    telling_pixel,
)
from eigenexp.errors import InputError

__all__ = ["Davidson"]

LEAD_IN = 5
"""Size of the Krylov space from which λmax is taken where only the bottom is wanted."""
PROBES = 6
"""Random vectors: the fewest from which the surrogate is as good as from 16."""
FITTED = 24
"""Vectors, the last ones, that the surrogate is estimated from at the most."""
LARGE = 2**14
"""Length of a vector beyond which a step of the inner solve may cost as much as a product."""
REFITS = (16, 32, 64)
"""Sizes of the search space at which the surrogate is estimated again."""
CLOSE = 0.015
"""Misfit below which the correction equation is solved with A − θ instead of A."""
USABLE = 0.05
"""Misfit below which the bottom eigenvectors of A are worth a product each."""
LONG_BASIS = 320
"""Default of ``basis_size`` where no modulated convolution fits."""
INNER = 4
"""Steps of that inner solve; each costs one A⁻¹, no product."""


class Davidson(CertifiedSolver):
    """Generalised Davidson for one end of the spectrum or both.

    Parameters
    ----------
    basis_size
        Vectors of the search space at the most; as many products are stored beside them, so memory
        is ``2 · basis_size · n`` numbers. ``None``: 120, or what 1 GiB holds, and more where k
        needs it or n is small.
    block_size
        Columns a product is asked for at once: the corrections of that many pairs. 1 needs the
        fewest products; more pay where a product of several columns is cheap.
    preconditioner
        ``"surrogate"``: estimated from the products, see :mod:`.surrogates`;
        ``"none"``: corrections are the residuals.
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start, miss_chance
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. ``start`` is tried first where the
        bottom is wanted.

    Notes
    -----
    A pair is called converged when its residual is at most ``tol · λmax`` and the chance that a
    pair beyond was missed at most ``miss_chance``: see :mod:`.certificates.certified`, whose search
    space is Davidson's own from the first product on.
    """

    name: ClassVar[str] = "davidson"

    def __init__(
        self,
        n: int,
        *,
        basis_size: int | None = None,
        block_size: int = 1,
        preconditioner: str = "surrogate",
        **settings: Any,
    ) -> None:
        super().__init__(n, **settings)
        if preconditioner not in ("surrogate", "none"):
            raise InputError(
                f"preconditioner: expected 'surrogate' or 'none', got {preconditioner!r}"
            )
        if block_size < 1:
            raise InputError(f"block_size: expected at least 1 column, got {block_size}")
        if basis_size is not None and basis_size < 2:
            raise InputError(f"basis_size: expected at least 2 vectors, got {basis_size}")
        self._block_size = min(block_size, n)
        self._own_size = basis_size is not None
        self.preconditioner = preconditioner
        self._num_probes = max(PROBES if self._num_bottom else 2, self._null_copies + 1)
        self.basis_size = self._stage_capacity()
        if basis_size is not None:
            least = 3 * len(self.settings.wanted) + self._num_probes + 3 * self._block_size + 8
            self.basis_size = min(n, max(basis_size, least))
        self._davidson = DavidsonState(
            waiting=torch.zeros(n, 0, dtype=self.dtype, device=self.device),
            # For a long vector an estimate costs as much as many products, in time and memory.
            refits=[size for size in REFITS if size < self.basis_size and n <= LARGE],
        )
        self._space = self._new_space(self.basis_size)

    @property
    def block_size(self) -> int:
        """Columns asked for at once."""
        return self._block_size

    @property
    def stored_vectors(self) -> int:
        """The search space and its products."""
        return 2 * self.basis_size

    @property
    def _main(self) -> DavidsonState:
        return self._davidson

    def _stage_width(self) -> int:
        return self._block_size

    # -- what to multiply next -----------------------------------------------------------------

    def _main_ask(self) -> Tensor:
        state, space, n = self._davidson, self._space, self.settings.n
        width = min(self._block_size, n - space.size)
        if space.size == 0:
            return space.fresh(self._randn(n, width), self._randn)
        if state.waiting.shape[1] > 0:
            return space.fresh(state.waiting[:, :width], self._randn)
        if state.probes_left > 0:
            return space.fresh(self._randn(n, min(width, state.probes_left)), self._randn)
        _, places = self._targets()
        return space.fresh(space.residuals(places[:width])[1], self._randn)

    def _directions(self, end: str, residuals: Tensor, values: Tensor) -> Tensor:
        """Return corrections for residuals of pairs, or of suspects, at an end."""
        if self.preconditioner == "none":
            return residuals
        if end == "bottom":
            self._refit()
        state = self._davidson
        surrogate = self._surrogate()
        if surrogate is None:
            return residuals
        if not state.inner:
            return surrogate.solve(residuals) if end == "bottom" else residuals
        if end == "top" and self._certificate.phase == GUARDING:
            return residuals
        locked = self._space.vectors(self._end_places(end))
        steps = state.inner if end == "bottom" else 2 * state.inner
        return torch.cat(
            [
                surrogate.correction(end, residuals[:, i, None], float(values[i]), locked, steps)
                for i in range(residuals.shape[1])
            ],
            dim=1,
        )

    def _surrogate(self) -> Any:
        """Return the surrogate of the coordinates that vectors are of."""
        found = self._davidson.surrogate
        if found is None or self.embedding is None or not is_embedded(self.embedding):
            return found
        return Embedded(found, self.embedding)

    def _guard_directions(self) -> Tensor:
        """Return the correction of the Galerkin residual of g, not of the least squares one.

        Preconditioned, the former makes it the method of conjugate gradients, a third of the
        products where A fits.
        """
        view = self._view()
        if view is None or self._davidson.surrogate is None:
            return super()._guard_directions()
        end, trace = self._hard()
        distance = trace.suspect - view.evidence.values
        tiny = 1e-14 * float(view.evidence.values.abs().max()) + 1e-300
        distance = torch.where(distance.abs() < tiny, torch.full_like(distance, tiny), distance)
        y = view.direction(self._space, replace(trace, weights=view.evidence.probe / distance))
        return self._directions(end, y, torch.tensor([trace.suspect], dtype=torch.float64))

    def _line_up(self, worth_trying: Tensor | None) -> None:
        """Put vectors worth trying next, ``(n, s)``."""
        if worth_trying is None:
            return
        state, size = self._davidson, self._space.size
        state.waiting = worth_trying[:, : max(self.settings.n - size, 0)]
        state.guessed = [*state.guessed, *range(size, size + state.waiting.shape[1])]

    def _guess(self) -> None:
        """Estimate the surrogate from the random vectors, and line up what it has at the bottom."""
        if self.preconditioner == "none":
            return
        state = self._davidson
        if state.pixel is None:
            self._refit()
            if not fits(state.surrogate) and self._widen():
                return
        else:
            self._choose()
        state.settled = True
        surrogate = state.surrogate
        if is_embedded(self.embedding):
            return
        if surrogate is not None and (surrogate.misfit < USABLE or state.pixel is not None):
            self._line_up(surrogate.starts(self._randn(self.settings.n, 1), self._num_bottom))

    def _widen(self) -> bool:
        """Ask for what the choice of another surrogate takes: random vectors, and one pixel."""
        state, n, shape = self._davidson, self.settings.n, self._picture_shape()
        # The random vectors are told apart by their places, so that none may be rotated away.
        room = self._space.capacity - self._space.size - 2 * self._block_size
        if not self._num_bottom or shape is None or room <= MORE + 1:
            return False
        recent = self._space.products[:, -self._num_probes :]
        state.pixel = telling_pixel(recent, shape)
        e = torch.zeros(n, 1, dtype=self.dtype, device=self.device)
        e[state.pixel] = 1
        state.surrogate, state.probes_left = None, MORE
        self._line_up(e)
        return True

    def _choose(self) -> None:
        state, space = self._davidson, self._space
        shape, pixel = self._picture_shape(), state.pixel
        if shape is None or pixel is None:
            return
        count = self._num_probes + MORE + 1
        first, guessed = space.size - count, set(state.guessed)
        random = [i for i in range(first, space.size) if i not in guessed]
        v, w = space.basis[:, random], space.products[:, random]
        column = space.products @ space.basis[pixel]
        budget = fit_budget(self.work)
        state.surrogate = choose(v, w, shape, column, pixel, space.scale, budget)
        state.inner = 1
        if isinstance(state.surrogate, StridedFrame):
            every = state.surrogate.refit_interval(self.work)
            state.refits = list(range(space.size + every, LONG_BASIS, every))
        self._enlarge()

    def _enlarge(self) -> None:
        """Make room for many more vectors: without a good surrogate a restart costs the most."""
        itemsize = torch.finfo(self.dtype).bits // 8
        most = min(self.settings.n, LONG_BASIS, BASIS_BYTES // (2 * self.settings.n * itemsize))
        if self._own_size or most <= self._space.capacity:
            return
        saved, self._space = self._space.export(), self._new_space(most)
        self._space.restore(saved, torch.empty(0, dtype=self.dtype, device=self.device))
        self.basis_size = most

    def _picture_shape(self) -> tuple[int, int, int] | None:
        """Return ``(C, H, W)``, or None where the input is no picture."""
        shape = self.settings.image_shape
        if is_embedded(self.embedding):
            return None
        if shape is None or len(shape) < 2:
            return None
        *channels, height, width = shape
        return math.prod(channels), height, width

    def _refit(self) -> None:
        state, size = self._davidson, self._space.size
        outgrown = bool(state.refits) and size >= state.refits[0]
        if state.settled and state.surrogate is None:
            return
        if state.surrogate is not None and not outgrown:
            return
        state.refits = [at for at in state.refits if size < at]
        if state.pixel is not None:
            if isinstance(state.surrogate, StridedFrame):
                state.surrogate = state.surrogate.refit(self._space.basis, self._space.products)
            return
        # Vectors that were guessed tell little of how F treats all others.
        guessed = set(state.guessed)
        last = self._num_probes if state.surrogate is None else FITTED
        typical = [i for i in range(size) if i not in guessed][-last:]
        v, w = self._space.basis[:, typical], self._space.products[:, typical]
        shape = self.settings.image_shape or (self.settings.n,)
        if self.embedding is not None and is_embedded(self.embedding):
            shape = self.embedding.picture_shape
            v, w = self.embedding.pictures(v).flatten(1).mT, self.embedding.duals(w)
        fitted = fit_surrogate(v, w, shape, state.surrogate)
        if state.surrogate is None and fitted is not None:
            steps = INNER if self.settings.n <= LARGE else INNER // 2
            state.inner = steps if fitted.misfit < CLOSE else 0
        state.surrogate = fitted or state.surrogate

    # -- taking products -----------------------------------------------------------------------

    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        state, width = self._davidson, block.shape[1]
        self._grow(block, products)
        if state.krylov:
            state.krylov = not self._lead_in_is_over()
            if not state.krylov and self._num_bottom:
                self._line_up(self.start)
        elif state.waiting.shape[1] > 0:
            state.waiting = state.waiting[:, width:].contiguous()
        elif state.probes_left > 0:
            state.probes_left = max(0, state.probes_left - width)
            if state.probes_left == 0:
                self._guess()
        unready = state.krylov or state.probes_left > 0 or state.waiting.shape[1] > 0
        if unready and not self._is_whole:
            self._make_room()
            return
        self._certificate.phase = SEARCHING
        self._judge()

    def _look(self) -> None:
        super()._look()
        state = self._davidson
        begins = self._certificate.phase == SEARCHING and not self.done and not state.probed
        if begins and not self._is_whole and self._targets()[0] == "bottom":
            # Neither the Krylov space nor the start vectors were enough.
            state.probed, state.probes_left = True, self._num_probes
            self._certificate.phase = MAIN

    def _main_look(self) -> None:
        """Nothing to judge before the space is ready."""

    def _lead_in_is_over(self) -> bool:
        """Whether the Krylov space has the top pairs; for the bottom alone, λmax roughly."""
        size, wanted = self._space.size, len(self.settings.wanted)
        if self._is_whole:
            return True
        if not self._num_top:
            return size >= LEAD_IN
        if size < wanted:
            return False
        _, residuals = self._space.residuals(self._places())
        norms = self._certificate.norms = residuals.norm(dim=0).double().cpu()
        top = slice(0, self._num_top)
        return bool((norms[top] <= self._limits()[top]).all())

    def _targets(self) -> tuple[str, list[int]]:
        if self._davidson.krylov and not self._num_top:
            return "top", [0]
        return super()._targets()

    def _rotated(self) -> None:
        self._davidson.refits, self._davidson.guessed = [], []

    def _import_state(self, state: Mapping[str, Any]) -> None:
        super()._import_state(state)
        if self._davidson.pixel is not None and self._davidson.settled:
            self._enlarge()

    # -- what is known -------------------------------------------------------------------------

    def _main_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        return self._space_measured()

    def _main_vectors(self) -> Tensor:
        size = self._space.size
        places = self._places() if size >= len(self.settings.wanted) else []
        return self._space.vectors(places).mT

    def _own_notes(self) -> list[str]:
        surrogate = self._surrogate()
        if surrogate is None:
            return []
        return [f"preconditioned by {surrogate.note}"]
