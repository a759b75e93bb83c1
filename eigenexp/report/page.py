"""From runs to one HTML page that needs nothing else: no network, no other file.

Every text is escaped by the template engine; a strict policy in the page itself lets the browser
run and load nothing but the one script and style sheet whose hashes it names.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from eigenexp.errors import InputError
from eigenexp.report.comparison import comparison_rows
from eigenexp.report.curves import (
    amplitude_chart,
    comparison_chart,
    eigenvalue_chart,
    residual_chart,
)
from eigenexp.report.view import DEFAULT_STRENGTH, ReportRun, run_view

__all__ = ["asset", "content_security_policy", "environment", "render_report"]

SMALLEST_STRENGTH = 0.001
"""The slider's left end, beside 0; its right end is 1."""


def render_report(runs: Sequence[ReportRun], title: str | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    runs
        One, or several to lay side by side.
    title
        Of the page; by default the run's own.

    Raises
    ------
    InputError
        When there is no run.
    """
    if not runs:
        raise InputError("runs: expected at least one run, got none")
    from eigenexp import __version__

    views = []
    for number, run in enumerate(runs, 1):
        view = run_view(run, number)
        view["charts"] = [
            chart
            for chart in (
                residual_chart(run.history, run.spectrum.tol),
                eigenvalue_chart(run.history),
            )
            if chart is not None
        ]
        view["amplitude_chart"] = amplitude_chart(run.amplitude)
        views.append(view)
    several = len(runs) > 1
    names = [(f"{i}: {run.title}", run.history) for i, run in enumerate(runs, 1)]
    style, script = asset("report.css"), asset("report.js")
    page: str = environment().get_template("report.html.jinja").render(
        title=title or (f"{len(runs)} runs" if several else runs[0].title),
        runs=views,
        comparison=comparison_rows(runs) if several else [],
        overview=comparison_chart(names) if several else None,
        strength=DEFAULT_STRENGTH,
        slider=_slider_place(DEFAULT_STRENGTH),
        style=style,
        script=script,
        policy=content_security_policy(style, script),
        version=__version__,
    )  # fmt: skip
    return page


def content_security_policy(style: str, script: str) -> str:
    """Return the policy that allows this style sheet, this script and embedded pictures alone."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )


def _slider_place(strength: float) -> float:
    """Return where the slider (0 to 1000, logarithmic, see report.js) stands at a strength."""
    return round(1000 * math.log(strength / SMALLEST_STRENGTH) / -math.log(SMALLEST_STRENGTH), 3)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()


@functools.cache
def asset(name: str) -> str:
    """Return the text of a file beside this one."""
    return files("eigenexp.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def environment() -> Any:
    """Return the template engine: everything is escaped, nothing may be undefined."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("eigenexp.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
