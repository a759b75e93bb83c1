"""The curves of a run's history, named and ordered once for every drawing of them.

:func:`~eigenexp.plots.convergence_figure` draws them by matplotlib; the report draws them in the
colours of its page, which follow the reader's theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eigenexp.errors import InputError

__all__ = [
    "EIGENVALUE_TITLE",
    "PRODUCTS_TITLE",
    "RESIDUAL_TITLE",
    "Series",
    "eigenvalue_series",
    "residual_series",
    "worst_series",
]

PRODUCTS_TITLE = "products F·v"
RESIDUAL_TITLE = "‖Fv − λv‖ / λmax"
EIGENVALUE_TITLE = "λ"


class Series(NamedTuple):
    """One curve: its name and the points a logarithmic axis can show, gaps left out."""

    label: str
    products: list[float]
    values: list[float]


def residual_series(history: Mapping[str, Any] | None) -> list[Series]:
    """Return the relative residual of every pair against products.

    Parameters
    ----------
    history
        ``products`` (``t`` numbers) and ``residuals``: values by pair's name, as
        ``ConvergenceLogging.history`` has them, or ``t`` rows of one value a pair with
        ``eigenindex`` naming the pairs. ``None`` and NaN are gaps.

    Raises
    ------
    InputError
        When a curve has another number of values than there are products.
    """
    return _series(history, "residuals")


def eigenvalue_series(history: Mapping[str, Any] | None) -> list[Series]:
    """Return the estimate of every eigenvalue against products; see :func:`residual_series`."""
    return _series(history, "eigenvalues")


def worst_series(label: str, history: Mapping[str, Any] | None) -> Series:
    """Return a run's worst residual where every pair has one; without points where none does."""
    curves = _curves(history, "residuals")
    products = _products(history)
    rows = zip(*curves.values(), strict=True) if curves else ()
    worst = [max(row) if all(map(math.isfinite, row)) else math.nan for row in rows]
    return _drawable(label, products if curves else [], worst)


def _series(history: Mapping[str, Any] | None, kind: str) -> list[Series]:
    products = _products(history)
    return [_drawable(name, products, ys) for name, ys in _curves(history, kind).items()]


def _products(history: Mapping[str, Any] | None) -> list[float]:
    return [_number(x) for x in (history or {}).get("products") or []]


def _curves(history: Mapping[str, Any] | None, kind: str) -> dict[str, list[float]]:
    """Return the values by label, from the largest eigenvalue to the smallest."""
    given = (history or {}).get(kind)
    if history is None or given is None:
        return {}
    if isinstance(given, Mapping):
        named = sorted(((str(name), values) for name, values in given.items()), key=_order)
        curves = {_label(name): [_number(y) for y in values] for name, values in named}
    else:
        rows = [[_number(y) for y in row] for row in given]
        index = history.get("eigenindex")
        pairs = max((len(row) for row in rows), default=0)
        labels = [] if index is None else [f"index {i}" for i in index]
        labels += [f"pair {j}" for j in range(len(labels), pairs)]
        curves = {
            labels[j]: [row[j] if j < len(row) else math.nan for row in rows] for j in range(pairs)
        }
    count = len(_products(history))
    for label, values in curves.items():
        if len(values) != count:
            raise InputError(
                f"history: expected {count} {kind} of {label}, one a time, got {len(values)}"
            )
    return curves


def _drawable(label: str, products: Sequence[float], values: Sequence[float]) -> Series:
    points = [
        (x, y)
        for x, y in zip(products, values, strict=True)
        if math.isfinite(x) and x >= 0 and math.isfinite(y) and y > 0
    ]
    return Series(label, [x for x, _ in points], [y for _, y in points])


def _label(name: str) -> str:
    """Name a pair by its place (0, 1, … from the top, -1, -2, … from the bottom)."""
    if name == "worst":
        return "worst pair"
    return f"pair {name}" if _place(name) is not None else name


def _order(entry: tuple[str, Any]) -> tuple[int, int]:
    """Sort from the largest eigenvalue to the smallest: 0, 1, …, -2, -1."""
    place = _place(entry[0])
    if place is None:
        return (2, 0)
    return (0, place) if place >= 0 else (1, place)


def _place(name: str) -> int | None:
    try:
        return int(name)
    except ValueError:
        return None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
