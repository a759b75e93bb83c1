"""Orthogonal (block power) iteration with Rayleigh-Ritz, top and bottom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress
from eigenexp.eigensolvers.numerics import error_bounds, statuses
from eigenexp.errors import InputError
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

__all__ = ["Power"]

VERIFICATION_ITERATIONS = 10


class Power(Eigensolver):
    """Orthogonal iteration: V ← orth(F V) at the top, V ← orth((σI − F) V) at the bottom.

    One product a column and iteration. The bottom's shift σ is the largest eigenvalue; its start is
    random, never F v, which would project the null space out. Both ends take turns in one block.
    Simple and slow: ``lanczos`` needs far fewer products. Where F has one eigenvalue alone, vectors
    of the two ends are eigenvectors but need not be orthogonal to each other.

    Parameters
    ----------
    guard
        Columns iterated beside the k wanted ones: they speed convergence up, and the last one
        searches for missed pairs when the wanted ones have converged. At least one.
    patience
        Iterations without a new smallest residual after which the iteration has stagnated.
    """

    name: ClassVar[str] = "power"

    def __init__(self, n: int, *, guard: int = 2, patience: int = 500, **settings: Any) -> None:
        super().__init__(n, **settings)
        if guard < 1 or patience < 1:
            raise InputError(f"guard, patience: expected at least 1, got {guard} and {patience}")
        self.patience = patience
        k, which = self.settings.k, self.settings.which
        wanted = len(self.settings.wanted)
        self._num_top = 0 if which == "bottom" else k
        self._num_bottom = wanted - self._num_top
        width = min(n, k + guard)
        self._widths = {
            "top": width if self._num_top else min(n, 1),
            "bottom": width if self._num_bottom else 0,
        }
        self._vectors = {
            end: torch.linalg.qr(self._randn(n, size)).Q if size else self._randn(n, 0)
            for end, size in self._widths.items()
        }
        self._values: dict[str, Tensor] = {}
        self._residuals: dict[str, Tensor] = {}
        # The block last multiplied, and the rotation that makes Ritz vectors of it.
        self._rotated: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._shift = 0.0
        self._verify_left = 0
        self._verified_values: Tensor | None = None
        self._best = float("inf")
        self._since_best = 0

    @property
    def block_size(self) -> int:
        """Columns of both ends together."""
        return sum(self._widths.values())

    @property
    def reads_responses(self) -> bool:
        """False: Ritz values come from the projected problem."""
        return False

    def _ask(self) -> Tensor:
        blocks = [self._vectors[end] for end, width in self._widths.items() if width]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        split = self._widths["top"]
        self._num_products += block.shape[1]
        for end, part in (("top", slice(0, split)), ("bottom", slice(split, None))):
            if self._widths[end]:
                self._iterate(end, block[:, part], products[:, part])
        worst = self._progress().worst
        if worst < 0.999 * self._best:
            self._best, self._since_best = worst, 0
        else:
            self._since_best += 1
        if self._verify_left:
            self._num_verification_products += block.shape[1]
            self._verify_left -= 1
            if not self._verify_left and worst <= self.settings.tol:
                self._finish_verification()
        elif worst <= self.settings.tol:
            self._start_verification()
        elif self._since_best >= self.patience:
            floor = self.floor
            at_floor = worst <= 10 * floor
            self._stop_reason = StopReason.FLOOR if at_floor else StopReason.STAGNATED

    def _start_verification(self) -> None:
        """Put a fresh random vector in the last column of each block and iterate on.

        A pair that the first start could not see shows as a wanted Ritz value that moves.
        """
        self._verified_values = self._progress().eigenvalues
        if all(width >= self.settings.n for width in self._widths.values() if width):
            self._stop_reason = StopReason.CONVERGED  # the blocks hold the whole space
            return
        self._verify_left = VERIFICATION_ITERATIONS
        for end, wanted in (("top", self._num_top), ("bottom", self._num_bottom)):
            if wanted and self._widths[end] > wanted:
                block = self._ritz_vectors(end).clone()
                block[:, -1:] = self._randn(self.settings.n, 1)
                self._vectors[end] = torch.linalg.qr(block).Q

    def _finish_verification(self) -> None:
        values, before = self._progress().eigenvalues, self._verified_values
        if before is None:
            return
        moved = float((values - before).abs().max())
        if moved <= self.settings.tol * self._scale():
            self._stop_reason = StopReason.CONVERGED

    def _iterate(self, end: str, v: Tensor, w: Tensor) -> None:
        """One step: Rayleigh-Ritz in span V, true residuals from W = F V, then the next V."""
        projected = (v.mT @ w).double()
        theta, s = torch.linalg.eigh((projected + projected.mT) / 2)
        if end == "top":
            theta, s = theta.flip(0), s.flip(1)
        values, s = theta.to(v), s.to(v)
        rotated = w @ s
        # W S − V S Θ in one pass over V; V S itself is made where it is asked for.
        difference = torch.addmm(rotated, v, s * values, alpha=-1)
        self._values[end] = theta.cpu()
        self._residuals[end] = torch.linalg.vector_norm(difference, dim=0).double().cpu()
        # Pairs are those of the block just multiplied; they are kept for the result.
        self._rotated[end] = (v, s)
        if end == "top":
            self._shift = max(self._shift, float(theta[0] + self._residuals[end][0]))
            following = rotated
        else:
            following = torch.addmm(rotated, v, s, beta=-1, alpha=self._shift)
        if float(following.norm()) == 0.0:  # F = 0, or F = σI: every vector is an eigenvector
            following = self._ritz_vectors(end)
        if end == "bottom":
            following = self._apart_from_top(following, float(theta[self._num_bottom - 1]))
        self._vectors[end] = torch.linalg.qr(following).Q

    def _apart_from_top(self, vectors: Tensor, value: float) -> Tensor:
        """Where both ends share one eigenvalue, keep the bottom block orthogonal to the top's."""
        if "top" not in self._rotated or not self._num_top:
            return vectors
        lowest = float(self._values["top"][self._num_top - 1])
        if lowest - value > self.settings.tol * self._scale():
            return vectors
        top = self._ritz_vectors("top")[:, : self._num_top]
        return vectors - top @ (top.mT @ vectors)

    def _ritz_vectors(self, end: str) -> Tensor:
        """Return the Ritz vectors of the block last multiplied."""
        vectors, rotation = self._rotated[end]
        if rotation is not None:
            vectors = vectors @ rotation
            self._rotated[end] = (vectors, None)
        return vectors

    def _places(self) -> tuple[Tensor, Tensor, list[int]]:
        n = self.settings.n
        values, residuals = [], []
        if self._num_top and "top" in self._values:
            values.append(self._values["top"][: self._num_top])
            residuals.append(self._residuals["top"][: self._num_top])
        if self._num_bottom and "bottom" in self._values:
            values.append(self._values["bottom"][: self._num_bottom].flip(0))
            residuals.append(self._residuals["bottom"][: self._num_bottom].flip(0))
        if not values:
            empty = torch.zeros(0, dtype=torch.float64)
            return empty, empty, []
        index = [*range(self._num_top), *range(n - self._num_bottom, n)]
        return torch.cat(values), torch.cat(residuals), index

    def _progress(self) -> Progress:
        """Return Ritz values and true residuals of the last block."""
        values, residuals, index = self._places()
        return Progress(
            eigenvalues=values.clamp(min=0),
            residuals=residuals,
            eigenindex=torch.tensor(index, dtype=torch.int64),
            scale=self._scale(),
            tol=self.settings.tol,
            num_products=self._num_products,
            phase="iterating",
        )

    def _scale(self) -> float:
        return float(self._values["top"][0].clamp(min=0)) if "top" in self._values else 0.0

    def _result(self) -> Spectrum:
        """Return the pairs of the last block, decreasing."""
        n, tol = self.settings.n, self.settings.tol
        values, residuals, index = self._places()
        scale = self._scale()
        parts = []
        if index and self._num_top:
            parts.append(self._ritz_vectors("top")[:, : self._num_top])
        if index and self._num_bottom:
            parts.append(self._ritz_vectors("bottom")[:, : self._num_bottom].flip(1))
        vectors = torch.cat(parts, dim=1) if parts else torch.zeros(n, 0).to(self._vectors["top"])
        indices = torch.tensor(index, dtype=torch.int64)
        values = values.clamp(min=0)
        floor = self.floor * scale
        bounds = error_bounds(values, residuals, floor, smallest=indices == n - 1)
        done = self.stop_reason is StopReason.CONVERGED
        status: tuple[PairStatus, ...] = statuses(residuals, tol * scale, verified=done)
        return Spectrum(
            eigenvalues=values,
            eigenvectors=vectors.mT.contiguous(),
            eigenindex=indices,
            residuals=residuals,
            error_bounds=bounds,
            status=status,
            stop_reason=self.stop_reason,
            scale=scale,
            tol=tol,
            num_products=self._num_products,
            num_verification_products=self._num_verification_products,
            null_space_dimension=n - min(n, self.settings.rank_bound or n),
            method=self.name,
        )

    def _reopen(self) -> None:
        super()._reopen()
        self._verify_left, self._verified_values = 0, None
        self._best, self._since_best = float("inf"), 0

    def _export_state(self) -> dict[str, Any]:
        return {
            "vectors": {end: v.clone() for end, v in self._vectors.items()},
            "ritz_vectors": {end: self._ritz_vectors(end).clone() for end in self._rotated},
            "values": {end: v.clone() for end, v in self._values.items()},
            "residuals": {end: v.clone() for end, v in self._residuals.items()},
            "shift": self._shift,
            "verify_left": self._verify_left,
            "verified_values": None
            if self._verified_values is None
            else self._verified_values.clone(),
            "best": self._best,
            "since_best": self._since_best,
        }

    def _import_state(self, state: Mapping[str, Any]) -> None:
        self._vectors = {end: self._own(v) for end, v in state["vectors"].items()}
        self._rotated = {end: (self._own(v), None) for end, v in state["ritz_vectors"].items()}
        self._values = {end: v.double().clone() for end, v in state["values"].items()}
        self._residuals = {end: v.double().clone() for end, v in state["residuals"].items()}
        self._shift = float(state["shift"])
        self._verify_left = int(state["verify_left"])
        verified = state["verified_values"]
        self._verified_values = None if verified is None else verified.double().clone()
        self._best = float(state["best"])
        self._since_best = int(state["since_best"])
