"""Randomised subspace iteration: the top of the spectrum from one random block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.certificates.certified import CertifiedSolver
from eigenexp.eigensolvers.rayleigh_ritz import Ritz, rayleigh_ritz, with_products
from eigenexp.eigensolvers.settings import Which
from eigenexp.eigensolvers.state import State, vectors
from eigenexp.errors import InputError
from eigenexp.spectrum import StopReason

__all__ = ["VERIFICATION_PRODUCTS", "RandomizedSVD"]

ITERATING, VERIFYING = "iterating", "verifying"
VERIFICATION_PRODUCTS = 10


@dataclass
class SketchState(State):
    """What the iteration knows.

    Attributes
    ----------
    block
        What is multiplied next, ``(n, k + oversampling)``.
    ritz
        Ritz values, vectors and images of the block last multiplied, or None.
    rounds, step
        Products of the whole block so far, and whether it is ``"iterating"`` or ``"verifying"``.
    missed
        ‖(I − QQᵀ)Fω‖ for the fresh Gaussian ω, or None.
    best, since_best
        The smallest residual over λmax so far, and iterations since.
    """

    block: Any = vectors()
    ritz: Any = vectors()
    rounds: int = 0
    step: str = ITERATING
    missed: Any = vectors()
    best: float = math.inf
    since_best: int = 0


class RandomizedSVD(CertifiedSolver):
    """Top pairs by randomised subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4).

    A Gaussian block of ``k + oversampling`` columns is multiplied by F again and again and made
    orthonormal before each product, so that no power overflows and small eigenvalues are not lost
    (the plain power scheme loses all below eps^(1/(2q+1))). Each product also measures: Ritz pairs
    and their true residuals cost nothing more. Made for blocks that are cheap (accelerators) and
    spectra that fall off fast; where they do not, ``lanczos`` needs far fewer products.

    Parameters
    ----------
    which
        ``"top"``, and nothing else: a sketch of F holds its large eigenvalues.
    oversampling
        Random columns beyond k (p). More cost as many products more an iteration, and save
        iterations: the error shrinks by λ_{k+p+1}/λ_k each.
    power_iterations
        Further products with F (q) after the first one and before the last, which measures: q + 2
        products a column in all. ``None`` goes on until the residuals are at most tol · λmax.
    verification_products
        Fresh Gaussian vectors that estimate what the block misses after a fixed number of
        ``power_iterations``; 0 for none.
    patience
        Iterations without a new smallest residual after which the iteration has stagnated.
    n, k, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`. The start is random.

    Raises
    ------
    InputError
        For ``which="bottom"`` or ``"both"``, or an option out of range.

    Notes
    -----
    A small residual proves that *some* eigenvalue is near, not that it is the largest. When the
    residuals are at most tol · λmax the block is handed to the last stage of all methods, which
    searches for missed pairs: see :mod:`.certificates.certified`.
    """

    name: ClassVar[str] = "randomized_svd"

    def __init__(
        self,
        n: int,
        *,
        which: Which = "top",
        oversampling: int = 10,
        power_iterations: int | None = None,
        verification_products: int = VERIFICATION_PRODUCTS,
        patience: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(n, which=which, **settings)
        if which != "top":
            raise InputError(
                f"which: expected 'top' for randomized_svd, got {which!r}: a random sketch of F "
                "holds its large eigenvalues alone; use method='auto', 'lanczos', 'power' or "
                "'exact', or pass which='top'"
            )
        if oversampling < 0 or verification_products < 0 or patience < 1:
            raise InputError(
                "oversampling, verification_products, patience: expected at least 0, 0 and 1, got "
                f"{oversampling}, {verification_products} and {patience}"
            )
        if power_iterations is not None and power_iterations < 0:
            raise InputError(
                f"power_iterations: expected at least 0 or None, got {power_iterations}"
            )
        self.oversampling = oversampling
        self.power_iterations = power_iterations
        self.verification_products = verification_products
        self.patience = patience
        self.width = min(n, self.settings.k + oversampling)
        block = torch.linalg.qr(self._randn(n, self.width), "reduced").Q
        self._sketch = SketchState(block=block)

    @property
    def _main(self) -> SketchState:
        return self._sketch

    @property
    def stored_vectors(self) -> int:
        """The block with its products, or the space of the last stage with its own."""
        return max(3 * self.block_size, 2 * self._stage_capacity())

    @property
    def block_size(self) -> int:
        """Columns of the block: k and the oversampling, or the verifying vectors if more."""
        return max(self.width, self.verification_products)

    @property
    def _ritz(self) -> Ritz | None:
        ritz = self._sketch.ritz
        return None if ritz is None else with_products(*ritz)

    @property
    def ritz(self) -> Ritz | None:
        """All pairs of the block, those beyond k included; None before the first product."""
        ritz, unit = self._ritz, self.unit
        if ritz is None or unit == 1.0:
            return ritz
        return Ritz(ritz.values * unit, ritz.vectors, ritz.images * unit, ritz.residuals * unit)

    @property
    def missed(self) -> float | None:
        """Mean of ‖(I − QQᵀ)Fω‖ over the fresh Gaussian ω, or None before they were told."""
        missed = self._sketch.missed
        return None if missed is None else float(missed.mean()) * self.unit

    # -- one step --------------------------------------------------------------------------------

    def _main_ask(self) -> Tensor:
        if self._sketch.step == VERIFYING:
            return self._randn(self.settings.n, self.verification_products)
        block: Tensor = self._sketch.block
        return block

    def _main_tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        state, ritz = self._sketch, self._ritz
        self._num_products += block.shape[1]
        if state.step == VERIFYING and ritz is not None:
            self._num_verification_products += block.shape[1]
            rest = products - ritz.vectors @ (ritz.vectors.T @ products)
            state.missed = torch.linalg.vector_norm(rest, dim=0)
            self._stop(ritz)
            return
        ritz = rayleigh_ritz(block, products, responses)
        state.ritz, state.rounds = [ritz.values, ritz.vectors, ritz.images], state.rounds + 1
        # F = 0 there: every vector is an eigenvector, and none points on.
        nothing = not bool(ritz.images.any())
        state.block = torch.linalg.qr(ritz.vectors if nothing else ritz.images, "reduced").Q
        state.missed = None
        worst = self._worst(ritz)
        if worst < 0.999 * state.best:
            state.best, state.since_best = worst, 0
        else:
            state.since_best += 1
        self._main_look()

    def _worst(self, ritz: Ritz) -> float:
        largest, scale = float(ritz.residuals[: self.settings.k].max()), self._sketch_scale(ritz)
        return largest / scale if scale > 0 else (0.0 if largest == 0 else math.inf)

    def _main_look(self) -> None:
        """End the iteration when its work is done or it leads nowhere."""
        ritz, state = self._ritz, self._sketch
        if ritz is None:
            return
        whole = self.width == self.settings.n
        if self.power_iterations is not None:
            if not whole and state.rounds < self.power_iterations + 2:
                return
            if self.verification_products and not whole and state.missed is None:
                state.step = VERIFYING
                return
            self._stop(ritz)
            return
        met = self._worst(ritz) <= 0.97 * self.settings.tol
        spent = self._num_products >= 30 * self.settings.n + 1000
        if met or whole or spent or state.since_best >= self._patience(ritz):
            self._take_over(ritz.vectors, ritz.images)

    def _patience(self, ritz: Ritz) -> int:
        # At the rounding floor residuals only jitter: there is nothing to wait for.
        return min(5, self.patience) if self._at_floor(ritz) else self.patience

    def _at_floor(self, ritz: Ritz) -> bool:
        return self._worst(ritz) <= 10 * self.floor

    def _stop(self, ritz: Ritz) -> None:
        """End after a fixed number of iterations: with a search only where residuals are small."""
        if self._worst(ritz) <= 0.97 * self.settings.tol or self.width == self.settings.n:
            if self.settings.miss_chance is None:
                self._stop_reason = StopReason.UNVERIFIED
            else:
                self._take_over(ritz.vectors, ritz.images)
        elif self._at_floor(ritz):
            self._stop_reason = StopReason.FLOOR
        else:
            self._stop_reason = StopReason.MAX_PRODUCTS

    # -- what is known ---------------------------------------------------------------------------

    def _sketch_scale(self, ritz: Ritz) -> float:
        return max(0.0, float(ritz.values[0]))

    def _main_measured(self) -> tuple[Tensor, Tensor, Tensor, float]:
        ritz, k = self._ritz, self.settings.k
        if ritz is None:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, torch.zeros(0, dtype=torch.int64), 0.0
        values = ritz.values[:k].double().clamp(min=0).cpu()
        residuals = ritz.residuals[:k].double().cpu()
        return values, residuals, torch.arange(len(values)), self._sketch_scale(ritz)

    def _main_vectors(self) -> Tensor:
        ritz = self._ritz
        if ritz is None:
            return torch.zeros(0, self.settings.n, dtype=self.dtype, device=self.device)
        return ritz.vectors[:, : self.settings.k].T

    def _own_notes(self) -> list[str]:
        if self.missed is None:
            return []
        return [f"the sketch misses {self.missed:.3g} of F on a random direction, on average"]

    def _reopen(self) -> None:
        state = self._sketch
        if self._in_main and state.step == VERIFYING and state.missed is not None:
            state.step = ITERATING
        state.best, state.since_best = math.inf, 0
        super()._reopen()
