"""The reference of every public name, from ``eigenexp.__all__`` and that of each public room.

Written from the code, so that a new name has its page, and one that has no docstring fails the
build.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path

from reference_pages import write
from sphinx.errors import ExtensionError

HEADINGS = {  # by the room a name lives in, in this order
    "eigensolvers": "Solve",
    "operators": "The Fisher information",
    "spectrum": "The result",
    "modules": "Under `lightning.Trainer`",
    "callbacks": "Callbacks",
    "checkpoints": "Checkpoints",
    "tracking": "Tracking",
    "pictures": "Pictures",
    "analysis": "What the numbers mean",
    "comparison": "Comparison of models",
    "stimuli": "Stimuli",
    "scoring": "Scores",
    "report": "Reports",
    "compat": "plenoptic's calls",
    "errors": "Errors",
}


def room_of(value: object) -> str:
    """Return the room that an object is defined in."""
    return str(getattr(value, "__module__", "")).split(".")[1]


def documented(names: Iterable[str], module: object) -> list[str]:
    """Return the classes and functions among the names; each must have a docstring."""
    found = []
    for name in names:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not inspect.getdoc(value):
            raise ExtensionError(f"{name} of {module} is public and has no docstring")
        found.append(name)
    return found


def summary(module: str, names: list[str]) -> list[str]:
    """Return the directive that lists names and makes a page for each."""
    lines = ["```{eval-rst}", f".. currentmodule:: {module}", "", ".. autosummary::"]
    lines += ["   :toctree: api", "", *(f"   {name}" for name in names), "```", ""]
    return lines


def pages(folder: Path) -> list[str]:
    """Write ``api.md`` and a page for each public room; return their paths."""
    import eigenexp

    rooms = [name for name in eigenexp.__all__ if inspect.ismodule(getattr(eigenexp, name))]
    top = documented(eigenexp.__all__, eigenexp)
    page = [
        "# Python",
        "",
        "`import eigenexp as ee` loads nothing but itself; every name loads when",
    ]
    page += ["it is first used.", ""]
    others = sorted({room_of(getattr(eigenexp, name)) for name in top} - set(HEADINGS))
    for room in [*HEADINGS, *others]:
        heading = HEADINGS.get(room, room.capitalize())
        names = [name for name in top if room_of(getattr(eigenexp, name)) == room]
        if names:
            page += [f"## {heading}", "", *summary("eigenexp", names)]
    page += ["## Rooms", "", "```{toctree}", ":maxdepth: 1", ""]
    page += [f"room_{room}" for room in rooms] + ["```"]
    write(folder / "api.md", page)
    shown = {id(getattr(eigenexp, name)) for name in top}
    for room in rooms:
        module = importlib.import_module(getattr(eigenexp, room).__name__)
        names = documented(getattr(module, "__all__", []), module)
        lines = [f"# ee.{room}", "", "```{eval-rst}", f".. automodule:: {module.__name__}"]
        lines += ["   :no-members:", "   :no-index:", "```", ""]
        fresh = [name for name in names if id(getattr(module, name)) not in shown]
        shown |= {id(getattr(module, name)) for name in fresh}
        if fresh:
            lines += summary(module.__name__, fresh)
        others = [name for name in names if name not in fresh]
        if others:
            lines += ["Here as well: " + ", ".join(f"`{name}`" for name in others) + "."]
        write(folder / f"room_{room}.md", lines)
    return [str(folder / name) for name in ("api.md", *(f"room_{room}.md" for room in rooms))]
