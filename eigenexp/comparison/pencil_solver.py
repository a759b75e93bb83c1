"""The pencil of two models: what one sees most relative to the other, and the reverse.

With S = F_A + F_B + δ, each F divided by its scale, the pairs with the largest μ of F_A v = μ S v,
and those of F_B w = μ′ S w, are found in one search space by S-orthogonal Rayleigh-Ritz and
corrections with surrogates of both (Golub and Ye 2002; Sleijpen and van der Vorst 1996). Neither F
is ever inverted, so that both may be singular. Then :mod:`.exclusion` shows that no pair beyond was
missed, and bounds follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.comparison.base import ComparisonSolver
from eigenexp.comparison.correcting import FITS, fit_surrogates
from eigenexp.comparison.exclusion import (
    Exclusion,
    Form,
    lehmann_upper,
    residual_gram,
    ritz_pairs,
)
from eigenexp.comparison.pencil_state import (
    SIDES,
    SPARE,
    PencilPairs,
    PencilSettings,
    PencilState,
    Side,
)
from eigenexp.comparison.scaling import scale_direction, scale_errors
from eigenexp.comparison.space import SharedSpace
from eigenexp.eigensolvers.certificates.bounds import upper_bounds
from eigenexp.eigensolvers.certificates.witness import trace_limit
from eigenexp.errors import InputError, ModelError
from eigenexp.spectrum import PairStatus, StopReason

__all__ = ["PencilSolver"]

PROBES = 6
"""Random vectors that the surrogates are fitted to."""
REFITS = (16, 32, 64)
"""Sizes of the space at which they are fitted again."""
SCALE_TOL = 2e-6
"""Relative error of λmax, as estimated, at which it is taken for the scale."""
FINER = 24
"""Steps by which a proved edge is moved towards the nearest Ritz value, each half the way."""
SCALE_SHARE = 0.125
"""Share of the chance that is spent on the bounds of the scales."""
RESTARTS = 60
"""Restarts of the search space after which the solve has stagnated."""
BASIS_BYTES = 2**30


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """Return coefficients of an earlier, smaller space as those of the present one."""
    padded = torch.zeros(rows, *tensor.shape[1:], dtype=torch.float64)
    padded[: len(tensor)] = tensor
    return padded


class PencilSolver(ComparisonSolver):
    """Finds the tops of F_A v = μSv and F_B w = μ′Sw; see the module.

    Parameters
    ----------
    n
        Picture values.
    settings
        See :class:`PencilSettings`.
    dtype, device, image_shape, start, product_eps
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`; ``start`` is tried first.
    """

    name: ClassVar[str] = "pencil"
    settings: PencilSettings
    _state: PencilState
    free: ClassVar[tuple[str, ...]] = ("max_products", "tol", "value_tol", "ratio_tol")

    def __init__(
        self,
        n: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        image_shape: tuple[int, ...] | None = None,
        start: Tensor | None = None,
        product_eps: float = 0.0,
        **settings: Any,
    ) -> None:
        own = PencilSettings(n=n, **settings)
        super().__init__(
            n,
            2,
            own,
            dtype=dtype,
            device=device,
            image_shape=image_shape,
            start=start,
            product_eps=product_eps,
        )
        self._state = PencilState(
            refits=list(REFITS), sides=[Side() for _ in own.sides], scales=list(own.scales or [])
        )
        itemsize = torch.finfo(dtype).bits // 8
        most = max(8 * (own.k + SPARE) + 40, BASIS_BYTES // (3 * n * itemsize))
        self.basis_size = min(n, own.basis_size or most)
        self._seen: dict[int, Any] = {}

    def at_delta(self, delta: float) -> PencilSolver:
        """Return a solver of the same pencil at another δ, in a copy of the space at hand."""
        settings = asdict(self.settings)
        settings.update(delta=delta, scales=self.scales, seed=self.settings.seed + 1)
        if settings["floor"]:
            settings["floor"] *= delta / self.settings.delta
        further = self._with_space(settings)
        state, own = further._state, self._state
        state.surrogates, state.refits = own.surrogates, list(own.refits)
        state.probes, state.first, state.started = list(own.probes), own.first.clone(), True
        further._judge()
        return further

    def take_space(self, space: SharedSpace, places: tuple[int, int]) -> None:
        """Begin with a copy of another space, of whose operators two are compared."""
        saved, at = space.export(), list(places)
        for name in ("products", "projected"):
            saved[name] = saved[name][at]
        self.space.restore(saved)
        state = self._state
        state.probes, state.started = list(range(min(PROBES, self.space.size))), True
        state.first = torch.zeros(self.space.size, dtype=torch.float64)
        self._fit()
        self._judge()

    # -- the pencil ----------------------------------------------------------------------------

    def _weights(self) -> tuple[float, float]:
        a, b = self._state.scales
        return 1 / a, 1 / b

    def _s(self) -> Form:
        return Form(self._weights(), self.settings.delta)

    def _m(self, side: int) -> Form:
        weights = [0.0, 0.0]
        weights[side] = self._weights()[side]
        return Form((weights[0], weights[1]), self.settings.floor)

    def _shifted(self, side: int, value: float) -> Form:
        """λS − M."""
        s, m = self._s(), self._m(side)
        pairs = zip(s.weights, m.weights, strict=True)
        a, b = (value * of_s - of_m for of_s, of_m in pairs)
        return Form((a, b), value * s.shift - m.shift)

    def _ritz(self, side: int) -> tuple[Tensor, Tensor]:
        """Return Ritz values and S-orthonormal coefficients of a side."""
        if side not in self._seen:
            space = self.space
            small = self._s().matrix(space)
            least = float(torch.linalg.eigvalsh(small)[0])
            if not least > 1e3 * self.eps * float(small.diagonal().max()) * (
                not self.settings.delta
            ):
                raise InputError(
                    "delta: expected a positive number, got one at which S = F_A + F_B + δ is "
                    "singular: both models are blind to a change; take delta=1e-3"
                )
            self._seen[side] = ritz_pairs(self._m(side).matrix(space), small)
        found: tuple[Tensor, Tensor] = self._seen[side]
        return found

    def _residuals(self, side: int, count: int) -> tuple[Tensor, Tensor]:
        """Return residual vectors ``(n, count)`` and norms of the top pairs; ‖v‖_S = 1."""
        key = 10 + side
        if key not in self._seen or self._seen[key][0].shape[1] < count:
            values, vectors = self._ritz(side)
            count = min(count, len(values))
            u = vectors[:, :count]
            r = self._m(side).times(self.space, u)
            r = r - self._s().times(self.space, u * values[:count])
            self._seen[key] = r, r.norm(dim=0).cpu()
        r, norms = self._seen[key]
        return r, norms

    # -- what to multiply next -----------------------------------------------------------------

    def _ask(self) -> Tensor:
        state, space, n = self._state, self.space, self.n
        if space.size == 0:
            return space.fresh(self._randn(n, min(PROBES, n)), self._randn)
        if not state.started and self.start is not None:
            room = n - space.size
            return space.fresh(self.start[:, :room], self._randn)
        if not state.scales:
            found = scale_direction(space, SCALE_TOL)
            if found is not None:
                return space.fresh(found, self._randn)
        if len(state.probe):
            return self._guard()
        side, i = self._worst()
        r, _ = self._residuals(side, self.settings.k)
        value = float(self._ritz(side)[0][i])
        locked = self._ritz(side)[1][:, : self.settings.k]
        return space.fresh(self._corrected(side, value, r[:, i, None], locked), self._randn)

    def _corrected(self, side: int, value: float, residual: Tensor, u: Tensor) -> Tensor:
        """Return the correction of a residual off the vectors with coefficients ``u``."""
        state, space = self._state, self.space
        residual = residual.to(space.basis)
        surrogates = state.surrogates
        if surrogates is None or surrogates.misfit > FITS:
            return residual
        locked, images = space.vectors(u), self._s().times(space, u).to(space.basis)
        found: Tensor = surrogates.correction(self._shifted(side, value), residual, locked, images)
        return found

    def _worst(self) -> tuple[int, int]:
        """Return the side and place of the pair with the largest residual."""
        best = (-1.0, 0, 0)
        for side in self.settings.sides:
            _, norms = self._residuals(side, self.settings.k)
            i = int(norms[: self.settings.k].argmax())
            best = max(best, (float(norms[i]), side, i))
        return best[1], best[2]

    def _guard(self) -> Tensor:
        """Grow at the suspect that is hardest to exclude."""
        side, suspect = int(self._state.suspect[0]), self._state.suspect[1]
        found = self._exclusion(side)
        if found is None:
            return self.space.fresh(self._randn(self.n, 1), self._randn)
        y = found.direction(self.space, self._m(side), self._s(), suspect)
        locked = self._frozen(side)
        return self.space.fresh(self._corrected(side, suspect, y, locked), self._randn)

    def _frozen(self, side: int) -> Tensor:
        """Return the frozen vectors as coefficients in the space as it is now."""
        frozen = self._state.sides[self.settings.sides.index(side)].frozen
        return _padded(frozen, self.space.size)

    def _exclusion(self, side: int) -> Exclusion | None:
        key = 20 + side
        if key not in self._seen:
            probe = _padded(self._state.probe, self.space.size)
            self._seen[key] = Exclusion.of(
                self.space, self._m(side), self._s(), self._frozen(side), probe
            )
        found: Exclusion | None = self._seen[key]
        return found

    # -- judging -------------------------------------------------------------------------------

    def _tell(self, block: Tensor) -> None:
        state, space = self._state, self.space
        self._seen = {}
        if not state.probes:
            state.probes = list(range(space.size))
            state.first = torch.zeros(space.size, dtype=torch.float64)
            state.first[0] = 1.0
            for i in range(2):
                if not bool(space.products(i).any()):
                    which = "AB"[i]
                    raise ModelError(
                        f"model_{which.lower()}: expected a response that changes with the "
                        "picture, got a Jacobian that is zero here; compare other models"
                    )
            self._check_differ()
        elif not state.started and self.start is not None:
            state.started = True
        if not state.started and self.start is None:
            state.started = True
        if not state.scales:
            if not state.started or (
                not self.is_whole and scale_direction(space, SCALE_TOL) is not None
            ):
                return
            tops = [float(torch.linalg.eigvalsh(space.projected[i])[-1]) for i in range(2)]
            state.scales = tops
        self._fit()
        self._judge()

    def _check_differ(self) -> None:
        """Refuse operators of which one is a multiple of the other, which random vectors tell."""
        if self.settings.alike:
            return
        a, b = (self.space.products(i).double() for i in range(2))
        share = float((a * b).sum() / b.square().sum())
        if share > 0 and float((a - share * b).norm()) <= 10 * self.floor * float(a.norm()):
            raise InputError(
                "model_a, model_b: expected two models that differ, got one given twice or a "
                "multiple of it: ln κ = 0, both see every change alike"
            )

    def _fit(self) -> None:
        state, size = self._state, self.space.size
        outgrown = bool(state.refits) and size >= state.refits[0]
        if state.surrogates is not None and not outgrown:
            return
        state.refits = [at for at in state.refits if size < at]
        places = list(state.probes)
        if state.surrogates is not None:
            places = [*places, *range(max(len(places), size - 18), size)]
        shape = self.image_shape
        fitted = fit_surrogates(self.space, self._s(), places, shape, state.surrogates)
        state.surrogates = fitted or state.surrogates

    def _judge(self) -> None:
        state = self._state
        if self.is_whole:
            for side in state.sides:
                side.edge = float("-inf")
            state.proved = True
            self._stop_reason = StopReason.CONVERGED
            return
        if len(state.probe):
            self._judge_guard()
        if not len(state.probe) and not self.done:
            self._judge_pairs()
        if not self.done and self.space.size + 2 > self.basis_size < self.n:
            self._restart()

    def _limit(self) -> float:
        return max(self.settings.tol * min(1.0, self._state.target), self.floor)

    def _judge_pairs(self) -> None:
        state, k = self._state, self.settings.k
        for side in self.settings.sides:
            if len(self._ritz(side)[0]) < k:
                return
            _, norms = self._residuals(side, k)
            if float(norms[:k].max()) > self._limit():
                return
        if state.proved:
            self._finish()
            return
        if self.settings.miss_chance is None:
            self._stop_reason = StopReason.UNVERIFIED
        elif self.settings.delta > 0:
            self._freeze()
        elif self.n <= self.basis_size:
            # Nothing but S itself shows that it is not singular.
            missing = self._randn(self.n, self.n - self.space.size)
            self._pending = self.space.fresh(missing, self._randn)
        else:
            self._stop_reason = StopReason.UNVERIFIED

    def _freeze(self) -> None:
        """Freeze U on both sides, then draw g."""
        state = self._state
        for place, side in enumerate(self.settings.sides):
            values, vectors = self._ritz(side)
            state.sides[place] = Side(frozen=vectors[:, : self._frozen_count(values)].clone())
        state.attempts += 1
        g = self._randn(self.n, 1).double()
        g = g / g.norm()
        inside = (self.space.basis.double().mT @ g)[:, 0].cpu()
        rest = g - self.space.basis.double() @ inside.to(g)[:, None]
        fresh = self.space.fresh(rest.to(self.space.basis), self._randn)
        outside = float((fresh.double() * g).sum())
        state.probe = torch.cat([inside, torch.tensor([outside], dtype=torch.float64)])
        self._pending = fresh

    def _frozen_count(self, values: Tensor) -> int:
        """Return how many to freeze: those before the widest of the next gaps."""
        k = self.settings.k
        last = min(k + SPARE, len(values) - 2)
        if last <= k:
            return min(k, len(values) - 1)
        gaps = values[k - 1 : last] - values[k : last + 1]
        enough = 0.5 * float(gaps.max())
        first = int(torch.nonzero(gaps >= enough)[0])
        return k + first

    def _chance(self) -> float:
        """Chance that one side of the present attempt may have."""
        whole = (self.settings.miss_chance or 0.0) * (1 - SCALE_SHARE)
        found: float = whole / 2.0**self._state.attempts / len(self.settings.sides)
        return found

    def _slack(self) -> float:
        """How far beyond the last wanted value an edge may lie at first."""
        wanted = [self.settings.tol]
        if self.settings.value_tol is not None:
            wanted.append(self.settings.value_tol / 2)
        return max(min(wanted), self._rounding())

    def _rounding(self) -> float:
        """How far μ may be off by the rounding of products."""
        least = self.settings.delta
        if self.is_whole:  # S itself is known
            least = float(torch.linalg.eigvalsh(self._s().matrix(self.space))[0])
        return 2 * self.floor / max(least, 1e-300)

    def _edge(self, side: int) -> float:
        """τ at the begin of an attempt."""
        own = self._state.sides[self.settings.sides.index(side)]
        count = own.frozen.shape[1]
        value = float(self._ritz(side)[0][count - 1])
        slack = self._slack()
        if self.settings.ratio_tol is not None:
            slack = max(self.settings.ratio_tol * (1 - value) / 2, self._rounding())
        return value + slack

    def _judge_guard(self) -> None:
        state = self._state
        limit = trace_limit(self._chance(), self.n)
        worst = (0.0, 0, 1.0)
        for place, side in enumerate(self.settings.sides):
            found, edge = self._exclusion(side), self._edge(side)
            if found is None:
                worst = max(worst, (2.0, side, 1.0))
                continue
            if float(found.values[0]) >= edge:
                # A pair beyond the frozen ones: converge it, and begin anew.
                state.probe = torch.zeros(0, dtype=torch.float64)
                state.suspect = []
                return
            own = state.sides[place]
            if own.edge <= edge:
                continue
            bound, suspect = found.largest(edge, limit)
            if bound > limit:
                worst = max(worst, (bound / limit, side, suspect))
                self._approach(found, own, edge, limit)
            else:
                own.edge = edge
        if worst[0] > 1.0:
            state.suspect = [float(worst[1]), worst[2]]
            return
        for place, side in enumerate(self.settings.sides):
            found = self._exclusion(side)
            if found is not None:
                state.sides[place].edge = self._finest(found, state.sides[place].edge, limit)
        state.proved = True
        state.probe = torch.zeros(0, dtype=torch.float64)
        self._finish()

    def _approach(self, found: Exclusion, own: Side, edge: float, limit: float) -> None:
        """Note a farther edge beyond which nothing is, while the wanted one is not reached.

        All edges of a side stand on the trace of one vector, so that they cost no further chance.
        """
        if self.settings.ratio_tol is None or self.space.size % 4:  # a look costs time
            return
        for _ in range(3):
            last = min(own.edge, 1.0)
            closer = edge + (last - edge) / 4
            if closer <= edge or found.largest(closer, limit)[0] > limit:
                return
            own.edge = closer

    def _finest(self, found: Exclusion, edge: float, limit: float) -> float:
        nearest = float(found.values[0])
        for _ in range(FINER):
            closer = nearest + (edge - nearest) / 2
            if closer >= edge or found.largest(closer, limit, last=edge)[0] > limit:
                break
            edge = closer
        return edge

    def _finish(self) -> None:
        """Stop where the bounds are as small as asked; else ask for smaller residuals."""
        settings, state = self.settings, self._state
        if settings.value_tol is None and settings.ratio_tol is None:
            self._stop_reason = StopReason.CONVERGED
            return
        enough = True
        for side in settings.sides:
            values = self._ritz(side)[0][: settings.k]
            bounds = self._bounds(side)
            if settings.value_tol is not None:
                enough &= bool((bounds <= settings.value_tol).all())
            if settings.ratio_tol is not None:
                room = settings.ratio_tol * values * (1 - values)
                enough &= bool((bounds <= room.clamp(min=1e-15)).all())
        if enough:
            self._stop_reason = StopReason.CONVERGED
        elif self._limit() <= self.floor:
            self._stop_reason = StopReason.FLOOR
        else:
            state.target *= 0.3

    # -- bounds --------------------------------------------------------------------------------

    def _bounds(self, side: int) -> Tensor:
        """Return bounds of |μ − truth| of the present wanted pairs, ``(k,)``."""
        k, space = self.settings.k, self.space
        own: Side = self._state.sides[self.settings.sides.index(side)]
        values, vectors = self._ritz(side)
        values, k = values[:k], min(k, len(values))
        if self.is_whole:
            return torch.full((k,), self._rounding(), dtype=torch.float64)
        if own.edge == float("inf"):
            return torch.full((k,), float("inf"), dtype=torch.float64)
        m, s, delta = self._m(side), self._s(), self.settings.delta
        count = own.frozen.shape[1]
        frozen = self._frozen(side)
        small = frozen.mT @ m.matrix(space) @ frozen
        theta, turned = torch.linalg.eigh((small + small.mT) / 2)
        theta, frozen = theta.flip(0), frozen @ turned.flip(1)
        gram = residual_gram(space, m, s, theta, frozen, delta)
        upper = upper_bounds(theta, gram, own.edge)[:k]
        if len(self._ritz(side)[0]) >= count:
            present = self._ritz(side)[0][:count]
            if float(present[-1]) > own.edge:
                gram = residual_gram(space, m, s, present, vectors[:, :count], delta)
                upper = torch.minimum(upper, lehmann_upper(present, gram, own.edge)[:k])
        return (upper - values).clamp(min=0) + self._rounding()

    def _restart(self) -> None:
        """Shrink the space to what matters: frozen vectors, g, Ritz vectors, the x of suspects."""
        state, size = self._state, self.space.size
        keep: list[Tensor] = []
        for place, side in enumerate(self.settings.sides):
            own = state.sides[place]
            if own.frozen.numel():
                keep.append(_padded(own.frozen, size))
            count = max(self.settings.k + SPARE, self.basis_size // 5)
            keep.append(self._ritz(side)[1][:, :count])
        for vector in (state.first, state.probe):
            if len(vector):
                keep.append(_padded(vector, size)[:, None])
        if len(state.probe):
            for side in self.settings.sides:
                found = self._exclusion(side)
                if found is not None and state.suspect:
                    _, z = found.at(max(state.suspect[1], self._edge(side)))
                    keep.append((found.vectors @ z)[:, None])
        rotation = self.space.restart(torch.cat(keep, dim=1))
        state.restarts += 1
        if state.restarts > RESTARTS:
            self._stop_reason = StopReason.STAGNATED
        rows = len(rotation)

        def turned(vector: Tensor) -> Tensor:
            found: Tensor = rotation.mT @ _padded(vector, rows)
            return found

        for own in state.sides:
            if own.frozen.numel():
                own.frozen = turned(own.frozen)
        state.first = turned(state.first)
        if len(state.probe):
            state.probe = turned(state.probe)
        state.refits = []
        self._seen = {}

    def _reopen(self) -> None:
        super()._reopen()
        self._seen = {}
        if not self.done and self._state.scales:
            self._state.target = 1.0
            self._judge()

    # -- what is known -------------------------------------------------------------------------

    @property
    def progress(self) -> dict[str, float]:
        """How far the solver is: the largest residual, the leading μ of each side, products."""
        found: dict[str, float] = {"products": float(self._num_products)}
        if not self._state.scales:
            return found
        norms = []
        for side in self.settings.sides:
            values, _ = self._ritz(side)
            found[f"mu_{SIDES[side]}"] = float(values[0])
            norms.append(float(self._residuals(side, self.settings.k)[1].max()))
        found["residual"] = max(norms)
        return found

    @property
    def scales(self) -> tuple[float, ...]:
        """What F_A and F_B are divided by; empty before it is known."""
        return tuple(self._state.scales)

    def scale_bounds(self) -> tuple[float, float]:
        """Return by how much λmax of each F may exceed its scale, relative."""
        if self.settings.scales is not None or not self._state.scales:
            return (0.0, 0.0)
        if self.is_whole:
            return (self.floor, self.floor)
        chance = (self.settings.miss_chance or 0.0) * SCALE_SHARE / 2
        errors = scale_errors(self.space, self._state.first, self._state.scales, chance)
        return errors[0], errors[1]

    def common_null(self) -> int:
        """Return how many independent vectors of the space both F take to nothing."""
        small = self.space.matrix(self._weights(), 0.0)
        values, vectors = torch.linalg.eigh(small)
        few = int((values <= 1e3 * self.floor).sum())
        if not few:
            return 0
        images = self._s_without(vectors[:, :few])
        return int((images.norm(dim=0).cpu() <= 10 * self.floor).sum())

    def _s_without(self, coefficients: Tensor) -> Tensor:
        return Form(self._weights(), 0.0).times(self.space, coefficients)

    def pairs(self, side: int) -> PencilPairs:
        """Return one side: 0 for the first operator on top, 1 for the second."""
        settings = self.settings
        values, vectors = self._ritz(side)
        k = min(settings.k, len(values))
        u = vectors[:, :k]
        _, norms = self._residuals(side, k)
        norms = norms[:k]
        found = self.space.vectors(u)
        bounds = self._bounds(side)[:k]
        status = tuple(
            self._status(float(r), float(b), float(v))
            for r, b, v in zip(norms, bounds, values[:k], strict=True)
        )
        return PencilPairs(
            mu=values[:k].clamp(min=0.0, max=1.0),
            vectors=found / found.norm(dim=0),
            residuals=norms.clone(),
            error_bounds=bounds,
            status=status,
        )

    def _status(self, residual: float, bound: float, value: float) -> PairStatus:
        settings = self.settings
        if residual > max(settings.tol, self.floor):
            return PairStatus.UNCONVERGED
        good = self._state.proved
        if settings.value_tol is not None:
            good &= bound <= settings.value_tol
        if settings.ratio_tol is not None:
            good &= bound <= max(settings.ratio_tol * value * (1 - value), 1e-15)
        return PairStatus.CONVERGED if good else PairStatus.UNVERIFIED

    @property
    def miss_chance(self) -> float | None:
        """The chance spent: that a pair beyond was missed is at most this; None: not searched."""
        if self.is_whole:
            return 0.0
        if not self._state.proved or self.settings.miss_chance is None:
            return None
        spent = 1 - 0.5**self._state.attempts
        return self.settings.miss_chance * ((1 - SCALE_SHARE) * spent + SCALE_SHARE)

    @property
    def notes(self) -> Sequence[str]:
        """What a result says beside its numbers."""
        state = self._state
        said = []
        if state.surrogates is not None and state.surrogates.misfit <= FITS:
            said.append(f"preconditioned by {state.surrogates.note}")
        return said

    def result(self) -> tuple[PencilPairs | None, PencilPairs | None]:
        """Return both sides, None where one is not asked for or known yet."""
        if not self._state.scales:
            return None, None
        sides = self.settings.sides
        first, second = (self.pairs(side) if side in sides else None for side in (0, 1))
        return first, second
