"""Randomised subspace iteration: the top of the spectrum from one random block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress, Which
from eigenexp.eigensolvers.numerics import error_bounds, statuses
from eigenexp.eigensolvers.rayleigh_ritz import Ritz, rayleigh_ritz, with_products
from eigenexp.errors import InputError
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["VERIFICATION_PRODUCTS", "RandomizedSVD"]

ITERATING, VERIFYING = "iterating", "verifying"
VERIFICATION_PRODUCTS = 10
# Fresh random vectors below which the bound of what was missed is too likely to be wrong.
_FEWEST_PROBES = 6


class RandomizedSVD(Eigensolver):
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
        Fresh Gaussian vectors that in the end estimate what the block misses; 0 for none.
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
    A small residual proves that *some* eigenvalue is near, not that it is the largest. That no
    larger one was missed is claimed in two cases alone: the block is the whole space, or
    σ_j(F Q) + ‖(I − QQᵀ)F‖ is within tol · λmax of every wanted Ritz value θ_j. It bounds λ_j from
    above (Weyl), as θ_j does from below. The norm is bounded by 10·√(2/π) times its largest value
    on r fresh Gaussian vectors, wrong with probability 10⁻ʳ (their lemma 4.1; at least 6 are
    asked for). That the start was random and had columns to spare is no such bound: where the
    spectrum falls off slowly pairs stay ``unverified``, however small their residuals are.
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
        self._block: Tensor = torch.linalg.qr(self._randn(n, self.width), "reduced").Q
        self._ritz: Ritz | None = None
        self._rounds = 0
        self._phase = ITERATING
        self._missed: Tensor | None = None
        self._best = math.inf
        self._since_best = 0

    @property
    def block_size(self) -> int:
        """Columns of the block: k and the oversampling, or the verifying vectors if more."""
        return max(self.width, self.verification_products)

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
        return None if self._missed is None else float(self._missed.mean()) * self.unit

    # -- one step --------------------------------------------------------------------------------

    def _ask(self) -> Tensor:
        if self._phase == VERIFYING:
            return self._randn(self.settings.n, self.verification_products)
        return self._block

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        self._num_products += block.shape[1]
        if self._phase == VERIFYING and self._ritz is not None:
            self._num_verification_products += block.shape[1]
            basis = self._ritz.vectors
            rest = products - basis @ (basis.T @ products)
            self._missed = torch.linalg.vector_norm(rest, dim=0)
            self._stop(self._ritz)
            return
        ritz = rayleigh_ritz(block, products, responses)
        self._ritz, self._rounds = ritz, self._rounds + 1
        # F = 0 there: every vector is an eigenvector, and none points on.
        nothing = not bool(ritz.images.any())
        self._block = torch.linalg.qr(ritz.vectors if nothing else ritz.images, "reduced").Q
        self._missed = None
        worst = self._worst(ritz)
        if worst < 0.999 * self._best:
            self._best, self._since_best = worst, 0
        else:
            self._since_best += 1
        self._look(ritz)

    def _worst(self, ritz: Ritz) -> float:
        largest = float(ritz.residuals[: self.settings.k].max())
        scale = self._scale(ritz)
        return largest / scale if scale > 0 else (0.0 if largest == 0 else math.inf)

    def _look(self, ritz: Ritz) -> None:
        """End the iteration when its work is done or it leads nowhere."""
        if self.power_iterations is not None:
            over = self._rounds >= self.power_iterations + 2
        else:
            met = self._worst(ritz) <= self.settings.tol
            over = met or self._since_best >= self._patience(ritz)
        over = over or self.width == self.settings.n
        if not over:
            return
        if self.verification_products and self.width < self.settings.n:
            self._phase = VERIFYING
        else:
            self._stop(ritz)

    def _patience(self, ritz: Ritz) -> int:
        # At the rounding floor residuals only jitter: there is nothing to wait for.
        return min(5, self.patience) if self._at_floor(ritz) else self.patience

    def _at_floor(self, ritz: Ritz) -> bool:
        return self._worst(ritz) <= 10 * self.floor

    def _stop(self, ritz: Ritz) -> None:
        if self._worst(ritz) <= self.settings.tol:
            certain = self._is_verified(ritz)
            self._stop_reason = StopReason.CONVERGED if certain else StopReason.UNVERIFIED
        elif self._at_floor(ritz):
            self._stop_reason = StopReason.FLOOR
        elif self.power_iterations is not None:
            self._stop_reason = StopReason.MAX_PRODUCTS
        else:
            self._stop_reason = StopReason.STAGNATED

    def _is_verified(self, ritz: Ritz) -> bool:
        """Whether no wanted eigenvalue can lie more than tol · λmax above its Ritz value."""
        if self.width == self.settings.n:
            return True
        bound = self._missed_norm()
        if bound is None:
            return False
        k, limit = self.settings.k, self.settings.tol * self._scale(ritz)
        largest = torch.linalg.svdvals(ritz.images.double())[:k] + bound
        return bool((largest - ritz.values[:k].double() <= limit).all())

    def _missed_norm(self) -> float | None:
        """Upper bound of ‖(I − QQᵀ)F‖, or None where too few vectors stand for it."""
        if self._missed is None or len(self._missed) < _FEWEST_PROBES:
            return None
        return 10 * math.sqrt(2 / math.pi) * float(self._missed.max())

    # -- what is known ---------------------------------------------------------------------------

    def _scale(self, ritz: Ritz) -> float:
        return max(0.0, float(ritz.values[0]))

    def _wanted(self) -> Ritz:
        """Return the k wanted pairs, or none before the first product."""
        k, ritz = self.settings.k, self._ritz
        if ritz is None:
            nothing = self._block.new_zeros(0)
            empty = self._block.new_zeros(self.settings.n, 0)
            return Ritz(nothing, empty, empty, nothing)
        return Ritz(ritz.values[:k], ritz.vectors[:, :k], ritz.images[:, :k], ritz.residuals[:k])

    def _progress(self) -> Progress:
        """Return the wanted Ritz values and their true residuals."""
        pairs = self._wanted()
        return Progress(
            eigenvalues=pairs.values.double().clamp(min=0).cpu(),
            residuals=pairs.residuals.double().cpu(),
            eigenindex=torch.arange(len(pairs.values)),
            scale=0.0 if self._ritz is None else self._scale(self._ritz),
            tol=self.settings.tol,
            num_products=self._num_products,
            phase=self._phase,
        )

    def _result(self) -> Spectrum:
        """Return the top k pairs of the block last multiplied."""
        n, tol = self.settings.n, self.settings.tol
        pairs, progress = self._wanted(), self._progress()
        floor = self.floor * progress.scale
        values, residuals = progress.eigenvalues, progress.residuals
        bounds = error_bounds(values, residuals, floor, progress.eigenindex == n - 1)
        verified = self.stop_reason is StopReason.CONVERGED
        return Spectrum(
            eigenvalues=values,
            eigenvectors=pairs.vectors.T.contiguous(),
            eigenindex=progress.eigenindex,
            residuals=residuals,
            error_bounds=bounds,
            status=statuses(residuals, tol * progress.scale, verified=verified),
            stop_reason=self.stop_reason,
            scale=progress.scale,
            tol=tol,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            null_space_dimension=n - min(n, self.settings.rank_bound or n),
            method=self.name,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        bound = self._missed_norm()
        notes = []
        if self.missed is not None:
            notes.append(
                f"the sketch misses {self.missed:.3g} of F on a random direction, on average"
            )
        if bound is not None and self._missed is not None:
            notes.append(
                f"‖(I − QQᵀ)F‖ is at most {bound * self.unit:.3g}, but for a chance of "
                f"1e-{len(self._missed)}"
            )
        if self._stop_reason is StopReason.UNVERIFIED:
            notes.append(
                "that no larger eigenvalue was missed is not proven: raise oversampling, or use "
                "method='lanczos' or 'exact'"
            )
        return tuple(notes)

    # -- state -----------------------------------------------------------------------------------

    def _reopen(self) -> None:
        super()._reopen()
        if self._stop_reason is None and self._ritz is not None:
            if self._phase == VERIFYING:
                self._phase, self._pending = ITERATING, None
            self._best, self._since_best = math.inf, 0
            self._look(self._ritz)
            if self._phase == VERIFYING and self._missed is not None:
                self._stop(self._ritz)

    def _export_state(self) -> dict[str, Any]:
        ritz = self._ritz
        return {
            "block": self._block.clone(),
            "ritz": None
            if ritz is None
            else [ritz.values.clone(), ritz.vectors.clone(), ritz.images.clone()],
            "rounds": self._rounds,
            "phase": self._phase,
            "missed": None if self._missed is None else self._missed.clone(),
            "best": self._best,
            "since_best": self._since_best,
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        self._block = self._own(state["block"])
        self.width = self._block.shape[1]
        ritz = state["ritz"]
        self._ritz = None if ritz is None else with_products(*(self._own(part) for part in ritz))
        self._rounds, self._phase = int(state["rounds"]), str(state["phase"])
        missed = state["missed"]
        self._missed = None if missed is None else self._own(missed)
        self._best, self._since_best = float(state["best"]), int(state["since_best"])
