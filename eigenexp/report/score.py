"""A score as one HTML page: psychometric functions, D beside its prediction, the models."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eigenexp.report.page import asset, content_security_policy, environment
from eigenexp.scoring import Counts, ObserverScore, Score, task_curve
from eigenexp.storage.atomic import write_atomic

__all__ = ["render_score", "write_score_report"]

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 44


@dataclass(frozen=True)
class _Function:
    """One distortion's answers and fitted curve, as SVG wants them."""

    title: str
    points: list[tuple[float, float, float, str]]
    curve: str
    threshold: float | None
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def write_score_report(
    score: Score, path: str | os.PathLike[str], title: str | None = None, next_pair: str = ""
) -> Path:
    """Write the page of a score; return its path.

    Parameters
    ----------
    score
        From :func:`eigenexp.scoring.score`.
    path
        Of the HTML file.
    title
        Of the page.
    next_pair
        What to show next, in words.

    Raises
    ------
    OSError
        When it cannot be written.

    Examples
    --------
    >>> score = ee.scoring.score("trials.csv", "stimuli")
    >>> ee.report.write_score_report(score, "score.html").name
    'score.html'
    """
    return write_atomic(path, render_score(score, title, next_pair).encode())


def render_score(score: Score, title: str | None = None, next_pair: str = "") -> str:
    """Return the page of a score; it needs no network and no other file."""
    from eigenexp import __version__

    style = asset("report.css") + asset("score.css")
    page: str = environment().get_template("score.html.jinja").render(
        title=title or "Score of the models",
        score=score,
        functions=[(one.observer, _functions(one, score)) for one in score.observers],
        contrasts=[(one.observer, c) for one in score.observers for c in one.contrasts],
        rows=score.rows(),
        next_pair=next_pair,
        style=style,
        policy=content_security_policy(style, ""),
        exp=math.exp,
        version=__version__,
    )  # fmt: skip
    return page


def _functions(observer: ObserverScore, score: Score) -> list[_Function]:
    fit = observer.thresholds
    found = []
    for i, counts in enumerate(observer.answers.counts):
        if counts.num_trials:
            known = float(fit.log_thresholds[i]) if fit.states[i] == "known" else None
            found.append(_function(counts, known, fit.exponent, fit.lapses, score))
    return found


def _function(
    counts: Counts, threshold: float | None, exponent: float, lapses: float, score: Score
) -> _Function:
    curve = task_curve(score.design.task, score.design.alternatives)
    logs = np.log(counts.amplitudes)
    ends = [*logs, *([] if threshold is None else [threshold])]
    low, high = min(ends) - 0.3, max(ends) + 0.3

    def to_x(log: float) -> float:
        return round(float(LEFT + (WIDTH - LEFT - RIGHT) * (log - low) / (high - low)), 2)

    def to_y(share: float) -> float:
        return round(float(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)), 2)

    points = []
    for log, n, right in zip(logs, counts.trials, counts.correct, strict=True):
        if n:
            said = f"α = {math.exp(log):.4g}: {right} of {n} right"
            points.append((to_x(log), to_y(right / n), round(2 + 0.5 * math.sqrt(n), 2), said))
    line = ""
    if threshold is not None and math.isfinite(exponent):
        grid = np.linspace(low, high, 80)
        share = curve(exponent * (grid - threshold))
        share = share + lapses * (curve.chance - share)
        line = " ".join(f"{to_x(x)},{to_y(y)}" for x, y in zip(grid, share, strict=True))
    shown = np.linspace(low, high, 4)
    return _Function(
        title=counts.name,
        points=points,
        curve=line,
        threshold=None if threshold is None else to_x(threshold),
        x_ticks=[(to_x(x), f"{math.exp(x):.3g}") for x in shown],
        y_ticks=[(to_y(y), f"{y:.0%}") for y in (0.0, curve.chance, 0.75, 1.0)],
    )
