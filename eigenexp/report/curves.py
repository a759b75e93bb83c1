"""Convergence curves as points, ticks and labels of an SVG drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eigenexp.errors import InputError
from eigenexp.plots.amplitudes import amplitude_curves
from eigenexp.plots.series import (
    EIGENVALUE_TITLE,
    PRODUCTS_TITLE,
    RESIDUAL_TITLE,
    Series,
    eigenvalue_series,
    residual_series,
    worst_series,
)

__all__ = [
    "Chart",
    "Line",
    "amplitude_chart",
    "comparison_chart",
    "eigenvalue_chart",
    "residual_chart",
]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 14, 52
_MOST_POINTS = 600
_MOST_DECADES = 18.0


@dataclass(frozen=True)
class Line:
    """One curve: its name, points as SVG wants them, and the number of its colour."""

    name: str
    points: str
    colour: int
    last: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A drawing with a logarithmic vertical axis.

    ``x_ticks`` and ``y_ticks`` are ``(place, label)``; ``rule`` is ``(place, label)`` of a
    horizontal line, or ``None``.
    """

    title: str
    x_title: str
    y_title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    rule: tuple[float, str] | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def residual_chart(history: Mapping[str, Any] | None, tol: float) -> Chart | None:
    """Return the residual of every pair against products; ``None`` where nothing is recorded."""
    series = _read(residual_series, history)
    return _chart(series, "Residuals", RESIDUAL_TITLE, rule=(tol, "tol"))


def eigenvalue_chart(history: Mapping[str, Any] | None) -> Chart | None:
    """Return the estimate of every eigenvalue against products."""
    return _chart(_read(eigenvalue_series, history), "Eigenvalues", EIGENVALUE_TITLE)


def comparison_chart(runs: Sequence[tuple[str, Mapping[str, Any] | None]]) -> Chart | None:
    """Return the worst residual of each run against products; one colour a run."""
    series: list[Series] = []
    for name, history in runs:
        try:
            series.append(worst_series(name, history))
        except InputError:
            series.append(Series(name, [], []))
    return _chart(series, "Worst residual of each run", RESIDUAL_TITLE)


def amplitude_chart(record: Mapping[str, Any] | None) -> Chart | None:
    """Return true d′ and α√λ of the first and the last pair over α; ``None`` without a record."""
    given = (record or {}).get("pairs")
    pairs = [pair for pair in given if isinstance(pair, Mapping)] if isinstance(given, list) else []
    series = []
    for pair in pairs[:1] + pairs[1:][-1:]:
        for name, points in amplitude_curves(pair).items():
            label = f"index {pair.get('index')}: {name}"
            series.append(Series(label, [x for x, _ in points], [y for _, y in points]))
    title = "d′ at finite amplitudes"
    return _chart(series, title, "d′", x_title="α, amplitude", log_x=True)


def _read(
    read: Callable[[Mapping[str, Any] | None], list[Series]], history: Mapping[str, Any] | None
) -> list[Series]:
    """Return the curves of a record; one that does not fit together has none."""
    try:
        return read(history)
    except InputError:
        return []


def _chart(
    series: Sequence[Series],
    title: str,
    y_title: str,
    rule: tuple[float, str] | None = None,
    *,
    x_title: str = PRODUCTS_TITLE,
    log_x: bool = False,
) -> Chart | None:
    kept = [
        (curve.label, number, list(zip(curve.products, curve.values, strict=True)))
        for number, curve in enumerate(series)
    ]
    points = [point for _, _, curve in kept for point in curve]
    if not points:
        return None
    levels = [math.log10(y) for _, y in points]
    if rule is not None and rule[0] > 0:
        levels.append(math.log10(rule[0]))
    high = math.ceil(max(levels) + 1e-9)
    low = max(math.floor(min(levels) - 1e-9), high - _MOST_DECADES)
    far, near = max(x for x, _ in points), min(x for x, _ in points)

    def to_x(x: float) -> float:
        if log_x:
            share = math.log(x / near) / math.log(far / near) if far > near else 0.0
        else:
            share = x / far if far > 0 else 0.0
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 2)

    def to_y(level: float) -> float:
        share = (high - max(level, low)) / (high - low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * share, 2)

    lines = []
    for name, number, curve in kept:
        if curve:
            placed = [(to_x(x), to_y(math.log10(y))) for x, y in _thin(curve)]
            text = " ".join(f"{x},{y}" for x, y in placed)
            lines.append(Line(name, text, number % 8, placed[-1]))
    step = max(1, math.ceil((high - low) / 6))
    y_ticks = [(to_y(e), _power(e)) for e in range(int(low), high + 1, step)]
    x_ticks = [(to_x(x), f"{x:g}") for x in (_decades(near, far) if log_x else _nice(far))]
    drawn = None
    if rule is not None and rule[0] > 0:
        drawn = (to_y(math.log10(rule[0])), f"{rule[1]} {rule[0]:.0e}")
    return Chart(title, x_title, y_title, lines, x_ticks, y_ticks, drawn)


def _thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = math.ceil(len(curve) / _MOST_POINTS)
    thinned = curve[::stride]
    return thinned if thinned[-1] == curve[-1] else [*thinned, curve[-1]]


def _nice(far: float) -> list[float]:
    """Return three to six round ticks from 0 to ``far``."""
    if far <= 0:
        return [0.0]
    unit = 10.0 ** math.floor(math.log10(far))
    step = next(s * unit for s in (0.2, 0.5, 1.0, 2.0) if far / (s * unit) <= 5.5)
    step = max(step, 1.0)
    return [i * step for i in range(int(far / step + 1e-9) + 1)]


def _decades(near: float, far: float) -> list[float]:
    """Return the powers of ten in a range of positive numbers, six at most."""
    first, last = math.ceil(math.log10(near) - 1e-9), math.floor(math.log10(far) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**e for e in range(first, last + 1, step)]


def _power(exponent: int) -> str:
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "1" if exponent == 0 else "10" + str(exponent).translate(digits)
