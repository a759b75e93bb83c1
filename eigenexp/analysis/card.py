"""The rest of the spectrum in a few numbers, each with an interval: the spectrum card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from eigenexp.analysis.estimates import Estimate, half_width
from eigenexp.analysis.sketches import Quadrature, Sketch, lanczos_quadratures, sketch
from eigenexp.console import aligned
from eigenexp.errors import InputError, ModelError
from eigenexp.operators.base import Fisher
from eigenexp.spectrum import Spectrum

__all__ = ["FEWEST_PRODUCTS", "Density", "SensitivityMap", "SpectrumCard", "spectrum_card"]

FEWEST_PRODUCTS = 60
"""Below so many products the intervals are not those that were tested."""

_VECTORS = 11  # quadratures: Student's t of 10 degrees of freedom is 1.14 times as wide as normal
_ROWS = 48  # random combinations of rows of J, a half product each
_DEPTH = 3
_BINS_A_DECADE = 2
_DECADES = 6
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Density:
    """How many eigenvalues there are, by log10 λ.

    Attributes
    ----------
    edges
        ``(b + 1,)``, of log10 λ; the first bin also holds everything smaller, zeros included.
    count, low, high
        ``(b,)`` expected numbers of eigenvalues, with an interval each, which is wide where bins
        are narrower than Lanczos quadrature resolves: at the small end.
    """

    edges: Tensor
    count: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class SensitivityMap:
    """The diagonal of F: λ of a change of one pixel alone.

    Attributes
    ----------
    value, low, high
        Of the picture's shape (of the coordinates', where not every change is considered).
    """

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class SpectrumCard:
    """Numbers of the whole spectrum of F, intervals of :attr:`confidence` each.

    Attributes
    ----------
    n
        Order of F.
    trace
        tr F.
    participation_ratio
        (tr F)² / tr F²: of how many equal eigenvalues F would be.
    effective_rank
        exp(−Σ p ln p), p = λ / tr F (Roy and Vetterli 2007).
    density
        Eigenvalues by their size.
    sensitivity_map
        The diagonal of F; None for an operator without J.
    rank_bound, null_space
        Of F: at most, and a known lower bound of its null space's dimension.
    num_products
        Products F·v that it took, half products (J·v or Jᵀ·u) counted as a half.
    num_known
        Pairs of a spectrum that were taken out beforehand.
    confidence
        Of every interval, by itself; 1.0 where all is exact.
    """

    n: int
    trace: Estimate
    participation_ratio: Estimate
    effective_rank: Estimate
    density: Density
    sensitivity_map: SensitivityMap | None
    rank_bound: int
    null_space: int
    num_products: float
    num_known: int
    confidence: float
    _log_volume: Callable[[float], Estimate]

    def log_volume(self, sigma2: float) -> Estimate:
        """Return ½ log det(I + F/σ²), in nats.

        Parameters
        ----------
        sigma2
            σ², above 0, in units of λ.

        Raises
        ------
        InputError
            When it is not above 0.
        """
        if not (sigma2 > 0 and math.isfinite(sigma2)):
            raise InputError(f"sigma2: expected a number above 0, got {sigma2}")
        return self._log_volume(float(sigma2))

    def rows(self, sigma2: float | None = None) -> list[tuple[str, Estimate]]:
        """Return names and numbers; log-volume at σ² (by default tr F / n)."""
        at = self.trace.value / self.n if sigma2 is None else sigma2
        return [
            ("trace", self.trace),
            ("participation ratio", self.participation_ratio),
            ("effective rank", self.effective_rank),
            (f"log-volume, σ² = {at:.3g}", self.log_volume(at)),
        ]

    def __str__(self) -> str:
        told = "exact" if self.confidence == 1 else f"{100 * self.confidence:g} % interval"
        cells = [["", "value", told]]
        for name, found in self.rows():
            span = "" if found.is_exact else f"{found.low:.6g} to {found.high:.6g}"
            cells.append([name, str(found), span])
        lines = aligned(cells, right=(1,))
        lines.append(
            f"order {self.n}, rank at most {self.rank_bound}; {self.num_products:g} products, "
            f"{self.num_known} known pairs taken out"
        )
        return "\n".join(lines)

    def as_record(self, sigma2: float | None = None) -> dict[str, Any]:
        """Return everything but the map as plain containers, for a file."""
        names = ("trace", "participation_ratio", "effective_rank", "log_volume")
        rows = self.rows(sigma2)
        return {
            **{key: found.as_record() for key, (_, found) in zip(names, rows, strict=True)},
            "sigma2": self.trace.value / self.n if sigma2 is None else float(sigma2),
            "confidence": self.confidence,
            "n": self.n,
            "rank_bound": self.rank_bound,
            "null_space": self.null_space,
            "num_products": self.num_products,
            "num_known": self.num_known,
            "density": {
                name: getattr(self.density, name).tolist()
                for name in ("edges", "count", "low", "high")
            },
        }


def spectrum_card(
    operator: Fisher,
    spectrum: Spectrum | None = None,
    *,
    max_products: int = 300,
    confidence: float = 0.95,
    seed: int = 0,
) -> SpectrumCard:
    """Return trace, participation ratio, effective rank, log-volume, density and diagonal of F.

    Exact, from the dense J, where that takes no more products. Else by sampling: a Krylov space of
    a random block, begun with the known pairs, is a control variate for random vectors drawn
    afterwards (Hutch++, Meyer, Musco, Musco and Woodruff 2021, for any f), whose zᵀf(F)z are
    bracketed by Gauss's and Gauss–Radau's rules of Lanczos's matrices (Golub and Meurant 1994;
    Ubaru, Chen and Saad 2017). The diagonal comes from random combinations of rows of J, which
    tell the trace as well.

    Parameters
    ----------
    operator
        F, at any noise and perturbations.
    spectrum
        Pairs of it that are known, in the picture's values; they cost a product each.
    max_products
        Products F·v to spend, at least :data:`FEWEST_PRODUCTS`.
    confidence
        Of every interval by itself.
    seed
        Of all that is drawn.

    Raises
    ------
    InputError
        When a number is out of range, or the spectrum is of another size.
    ModelError
        When F is zero, of which no ratio is defined.

    Examples
    --------
    >>> import eigenexp as ee
    >>> picture = ee.load_picture("camera", crop=[120, 220, 16, 16], dtype="float64")
    >>> operator = ee.FisherOperator(ee.models.Gaussian(std=1.0), picture.tensor)
    >>> card = ee.spectrum_card(operator)
    >>> card.participation_ratio.is_exact  # a small picture
    True
    """
    if max_products < FEWEST_PRODUCTS:
        raise InputError(
            f"max_products: expected at least {FEWEST_PRODUCTS}, got {max_products}; the intervals "
            "are not reliable with fewer"
        )
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence: expected 0.5 to less than 1, got {confidence}")
    known = _known(operator, spectrum)
    null = operator.shape[0] - operator.rank_bound
    if spectrum is not None:
        null = max(null, spectrum.null_space_dimension)
    facts = {"rank_bound": operator.rank_bound, "null_space": null, "num_known": known.shape[1]}
    dense = _dense(operator, max_products)
    if dense is not None:
        return _exact_card(*dense, facts, operator.problem.image_shape)
    return _sampled_card(operator, known, max_products, confidence, seed, facts)


def _known(operator: Fisher, spectrum: Spectrum | None) -> Tensor:
    """Return the known pairs as orthonormal columns ``(n, k)`` of what the operator takes."""
    n = operator.shape[0]
    empty = torch.zeros(n, 0, dtype=operator.dtype, device=operator.device)
    if spectrum is None or not len(spectrum):
        return empty
    columns = spectrum.eigenvectors.reshape(len(spectrum), -1).T.to(empty)
    coordinates = operator.coordinates
    if coordinates is not None and len(columns) == math.prod(coordinates.picture_shape):
        columns = coordinates.coordinates(columns)
    if len(columns) != n:
        raise InputError(
            f"spectrum: expected pairs of the operator's {n} dimensions, got {len(columns)}"
        )
    return columns


def _dense(operator: Fisher, max_products: int) -> tuple[Tensor, Tensor, float] | None:
    """Return eigenvalues, the diagonal, and what they cost; None where that is too much."""
    n = operator.shape[0]
    try:
        jacobian = operator.jacobian
    except InputError:  # F alone, or a mean of several
        if n > max_products:
            return None
        matrix = operator.apply(torch.eye(n, dtype=operator.dtype, device=operator.device))[0]
        matrix = matrix.to("cpu", torch.float64)
        return torch.linalg.eigvalsh((matrix + matrix.T) / 2), matrix.diagonal(), float(n)
    cost = min(jacobian.shape) / 2
    if cost > max_products:
        return None
    try:
        dense = jacobian.to_dense().to("cpu", torch.float64)
    except InputError:  # it does not fit in memory
        return None
    rows = len(dense) <= dense.shape[1]
    values = torch.linalg.eigvalsh(dense @ dense.T if rows else dense.T @ dense)
    values = torch.nn.functional.pad(values, (n - len(values), 0))
    return values, dense.square().sum(dim=0), cost


def _exact_card(
    values: Tensor,
    diagonal: Tensor,
    cost: float,
    facts: Mapping[str, Any],
    shape: tuple[int, ...],
) -> SpectrumCard:
    values = values.clamp(min=0)
    trace = float(values.sum())
    _check_trace(trace)

    def exact(value: float) -> Estimate:
        return Estimate(value, value, value)

    edges = _edges(float(values.max()))
    counts = torch.histogram(_logs(values, edges), edges)[0]
    share = diagonal.reshape(shape)
    return SpectrumCard(
        n=len(values),
        trace=exact(trace),
        participation_ratio=exact(trace**2 / float(values.square().sum())),
        effective_rank=exact(math.exp(math.log(trace) - float(_entropic(values).sum()) / trace)),
        density=Density(edges, counts, counts, counts),
        sensitivity_map=SensitivityMap(share, share, share),
        num_products=cost,
        confidence=1.0,
        _log_volume=lambda s: exact(0.5 * float(torch.log1p(values / s).sum())),
        **facts,
    )


def _check_trace(trace: float) -> None:
    if not trace > 0:
        raise ModelError(
            "spectrum_card: expected a response that changes with the picture, got F = 0"
        )


def _entropic(values: Tensor) -> Tensor:
    """λ ln λ, 0 at 0."""
    found: Tensor = torch.special.xlogy(values, values)
    return found


def _edges(largest: float) -> Tensor:
    top = math.log10(largest) if largest > 0 else 0.0
    count = _DECADES * _BINS_A_DECADE
    steps = torch.arange(count + 1, dtype=torch.float64) / _BINS_A_DECADE
    return steps + (top - _DECADES) + 1e-9


def _logs(values: Tensor, edges: Tensor) -> Tensor:
    least = 10.0 ** float(edges[0])
    return values.clamp(min=least).log10().clamp(float(edges[0]), float(edges[-1]))


class _Samples:
    """What random vectors tell, with the sketch made before them as a control variate.

    E zᵀ f(F) z = tr f(F). With g = U f(θ) Uᵀ + c (I − UUᵀ), whose trace is known, tr g + zᵀ(f(F) −
    g) z has the same mean whatever g is, as long as z is independent of it, and varies the less the
    nearer g is: c is the mean over the other vectors' complements.
    """

    def __init__(self, found: Sketch, rules: list[Quadrature], rows: Tensor | None) -> None:
        self.found, self.rules, self.rows = found, rules, rows
        self.n, self.q = found.vectors.shape
        self.inside = torch.stack([rule.inside for rule in rules])
        self.outside = (self.n - self.inside.sum(dim=1)).clamp(min=1e-9 * self.n)

    def of(self, function: Function) -> tuple[Tensor, Tensor]:
        """Return samples of tr f(F) by Gauss's and by Radau's rule, ``(s,)`` each."""
        head = function(self.found.values)
        both = torch.tensor([rule.of(function) for rule in self.rules], dtype=torch.float64)
        found = []
        for raw in both.T:
            left = raw - self.inside @ head
            share = left / self.outside
            others = (share.sum() - share) / (len(share) - 1)
            spread = others * (self.n - self.q - self.outside)
            found.append(head.sum() + left + spread)
        return found[0], found[1]


def _sampled_card(
    operator: Fisher,
    known: Tensor,
    max_products: int,
    confidence: float,
    seed: int,
    facts: Mapping[str, Any],
) -> SpectrumCard:
    generator = torch.Generator().manual_seed(seed)

    def product(block: Tensor) -> Tensor:
        return operator.apply(block)[0]

    rows = _row_count(operator)
    budget = max_products - rows / 2 - known.shape[1]
    width = max(1, int(0.165 * budget) // _DEPTH)
    steps = max(2, int(budget - width * _DEPTH) // _VECTORS)
    found = sketch(product, known, width, _DEPTH, generator)
    rules, spent = lanczos_quadratures(product, found, _VECTORS, steps, generator)
    squares = _row_squares(operator, found, rows, generator) if rows else None
    samples = _Samples(found, rules, None if squares is None else squares[1])
    trace, _ = samples.of(lambda x: x)
    square, _ = samples.of(torch.square)
    low_entropy, high_entropy = samples.of(_entropic)
    groups = [trace] if squares is None else [trace, squares[1]]
    total = sum(len(group) for group in groups)
    weights = [len(group) / total for group in groups]
    T = sum(w * float(group.mean()) for w, group in zip(weights, groups, strict=True))
    _check_trace(T)
    S = max(float(square.mean()), T**2 / samples.n)
    least, most = float(low_entropy.mean()), float(high_entropy.mean())
    middle = (low_entropy + high_entropy) / 2
    B = float(middle.mean())

    def spread(gain: float, own: Tensor | float) -> float:
        """Half width of gain · (trace) + own, to first order (the delta method)."""
        parts = [gain * w * group for w, group in zip(weights, groups, strict=True)]
        parts[0] = parts[0] + own
        return half_width(parts, confidence)

    # ln PR = 2 ln T − ln S; ln erank = ln T − B/T.
    ratio = math.log(T**2 / S)
    off = spread(2 / T, -square / S)
    entropy = math.log(T) - B / T
    entropy_off = spread(1 / T + B / T**2, -middle / T) + abs(most - least) / (2 * T)
    trace_off = spread(1.0, 0.0)
    low_trace = max(T - trace_off, float(found.values.sum()))
    n = samples.n

    def log_volume(sigma2: float) -> Estimate:
        above, below = samples.of(lambda x: 0.5 * torch.log1p(x / sigma2))
        wide = [half_width([part], confidence) for part in (below, above)]
        low, high = float(below.mean()), float(above.mean())
        return Estimate((low + high) / 2, max(low - wide[0], 0.0), high + wide[1])

    return SpectrumCard(
        n=n,
        trace=Estimate(max(T, low_trace), low_trace, max(T, low_trace) + trace_off),
        participation_ratio=_within(ratio, off, n),
        effective_rank=_within(entropy, entropy_off, min(n, facts["rank_bound"])),
        density=_density(rules, confidence, n),
        sensitivity_map=None
        if squares is None
        else _map(squares[0], found, rows, confidence, operator.problem.image_shape),
        num_products=found.num_products + spent + rows / 2,
        confidence=confidence,
        _log_volume=log_volume,
        **facts,
    )


def _within(log: float, off: float, most: int) -> Estimate:
    """Return exp(log ± off), which is at least 1 and at most a dimension."""
    low, value, high = (
        min(max(math.exp(x), 1.0), float(most)) for x in (log - off, log, log + off)
    )
    return Estimate(value, low, high)


def _row_count(operator: Fisher) -> int:
    try:
        operator.jacobian  # noqa: B018
    except InputError:
        return 0
    return _ROWS


def _row_squares(
    operator: Fisher, found: Sketch, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return Σ (P Jᵀu)² ``(n,)`` over Gaussian u, and tr θ + ‖P Jᵀu‖² ``(s,)``: tr F."""
    m = operator.jacobian.shape[0]
    squares = torch.zeros(len(found.vectors), dtype=torch.float64)
    traces = []
    u = torch.randn(count, m, generator=generator, dtype=torch.float64)
    for part in torch.split(u, 8):
        product, _ = operator.apply(part.T.contiguous().to(found.vectors), "adjoint")
        left = product - found.vectors @ (found.vectors.T @ product)
        exact = left.to("cpu", torch.float64).square()
        squares += exact.sum(dim=1)
        traces.append(exact.sum(dim=0))
    return squares, float(found.values.sum()) + torch.cat(traces)


def _map(
    squares: Tensor, found: Sketch, count: int, confidence: float, shape: tuple[int, ...]
) -> SensitivityMap:
    """Return diag F = Σ θ u² + 2 Σ r u + diag(P F P), the last from Σ (P Jᵀu)² ~ χ² · diag."""
    vectors = found.vectors.to("cpu", torch.float64)
    residuals = found.residuals.to("cpu", torch.float64)
    exact = vectors.square() @ found.values + 2 * (vectors * residuals).sum(dim=1)
    tail = (1 - confidence) / 2
    low, high = (squares / float(chi2.ppf(p, count)) for p in (1 - tail, tail))
    parts = ((exact + x).clamp(min=0).reshape(shape) for x in (squares / count, low, high))
    return SensitivityMap(*parts)


def _density(rules: list[Quadrature], confidence: float, n: int) -> Density:
    largest = max(float(rule.gauss[0].max()) for rule in rules)
    edges = _edges(largest)
    at = 10.0 ** edges[1:-1]
    three = [_cumulative(*rule.gauss, at) for rule in rules]
    least, value, most = (torch.stack([each[i] for each in three]) for i in range(3))

    def ends(samples: Tensor) -> Tensor:
        """Return the mean over vectors at every edge; all of n lies between the outermost."""
        total = torch.full((len(samples), 1), float(n), dtype=torch.float64)
        return torch.cat([torch.zeros_like(total), samples, total], dim=1)

    below, middle, above = ends(least), ends(value), ends(most)
    count = (middle[:, 1:] - middle[:, :-1]).mean(dim=0)
    low, high = below[:, 1:] - above[:, :-1], above[:, 1:] - below[:, :-1]
    low_off, high_off = (
        torch.tensor([half_width([column], confidence) for column in samples.T])
        for samples in (low, high)
    )
    low, high = low.mean(dim=0) - low_off, high.mean(dim=0) + high_off
    return Density(edges, count, low.clamp(min=0), high.clamp(max=n))


def _cumulative(nodes: Tensor, weights: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bounds of the mass at or below each of ``at``, and a value between them.

    Chebyshev, Markov and Stieltjes: up to a node θⱼ lie at least w₁ + … + wⱼ₋₁ and at most
    w₁ + … + wⱼ, of any measure with this Gauss rule.
    """
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), weights.cumsum(0)])
    seen = torch.searchsorted(nodes, at, right=True)
    least = sums[(seen - 1).clamp(min=0)]
    most = sums[(seen + 1).clamp(max=len(weights))]
    return least, (least + most) / 2, most
