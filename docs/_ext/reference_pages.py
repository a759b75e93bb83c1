"""Reference pages made from the code: the command line, the configuration, the benchmarks."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def write(path: Path, lines: list[str]) -> None:
    """Write a page unless it says this already: Sphinx reads again what is newer."""
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def help_of(*words: str) -> str:
    """Return what ``eigenexp … --help`` prints on a terminal 100 columns wide."""
    command = [sys.executable, "-m", "eigenexp.cli", *words, "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.rstrip()


def commands() -> list[str]:
    """Return the names of all commands, in the order of ``eigenexp --help``."""
    lines = help_of().splitlines()
    start = lines.index("  COMMAND") + 1
    names = []
    for line in lines[start:]:
        if not line.strip():
            break
        if line.startswith("    ") and not line.startswith("     "):
            names.append(line.split()[0])
    return names


def command_line() -> list[str]:
    """Return the page of the command line."""
    page = ["# Command line", "", "What `--help` says, command by command.", ""]
    page += ["```text", help_of(), "```", ""]
    for name in commands():
        page += [f"(command-{name})=", f"## eigenexp {name}", "", "```text"]
        page += [help_of(name), "```", ""]
    return page


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in escaped] + [""]


def default_of(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as YAML would say it."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = field.default
    if value is dataclasses.MISSING or value == "???":
        return "(must be given)"
    if dataclasses.is_dataclass(value):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def keys_of(kind: type, group: str) -> list[str]:
    """Return the description and the keys of one typed group."""
    rows = []
    for field in dataclasses.fields(kind):
        name = str(field.type).replace(" | None", " or null")
        rows.append([f"`{group}{field.name}`", f"`{name}`", default_of(field)])
    text = inspect.cleandoc(kind.__doc__ or "").replace(":func:", "").replace(":class:", "")
    text = text.replace("``", "`")
    return [text, "", *table(["key", "type", "default"], rows)]


def configuration() -> list[str]:
    """Return the page of the configuration: typed groups, then the files that fill them."""
    from eigenexp.experiments.schema import SCHEMAS, FitConfig

    page = ["# Configuration", ""]
    page += [
        "`eigenexp fit --config` prints the whole configuration of a command before anything runs.",
        "A key that is not here, or a value of another type, is refused by name.",
        "",
        "## Keys of a run",
        "",
        *keys_of(FitConfig, ""),
    ]
    sections: dict[str, list[str]] = {}
    for group, name, kind in SCHEMAS:
        if group:
            heading = f"### {group}: {name}"
            sections.setdefault(group, []).extend([heading, "", *keys_of(kind, f"{group}.")])
    for field in dataclasses.fields(FitConfig):
        kind = field.default_factory
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and field.name not in sections:
            sections[field.name] = keys_of(kind, f"{field.name}.")
    for group, lines in sections.items():
        page += [f"(group-{group})=", f"## {group}", "", *lines]
    page += ["## Files of `conf/`", "", "A folder is a group, a file an option of it.", ""]
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        place = path.relative_to(ROOT / "conf")
        page += [f"### conf/{place}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return page


def said(value: object) -> str:
    """Return a cell: numbers with the digits that mean something."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def benchmarks() -> list[str]:
    """Return the page of measured figures: one section a file of ``benchmarks/results/``."""
    page = [
        "# Benchmarks",
        "",
        "Each table is a file that the command beside it wrote, as committed. *Products* are",
        "columns F·v: nearly all of the cost, and the same on every machine. Seconds are of the",
        "machine named.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        page += [f"## {result['title']}", "", "```", result["command"], "```", ""]
        page += [result["about"], "", f"*{result['machine']}, {result['date']}.*", ""]
        rows = [[said(row.get(column)) for column in result["columns"]] for row in result["rows"]]
        page += table(result["columns"], rows)
    return page


def write_pages(app: Sphinx, _: Config) -> None:
    """Write the pages into ``docs/reference``."""
    folder = Path(app.srcdir) / "reference"
    write(folder / "command_line.md", command_line())
    write(folder / "configuration.md", configuration())
    write(folder / "benchmarks.md", benchmarks())


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what is here."""
    app.connect("config-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
