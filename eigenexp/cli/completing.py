"""Shell completion: what the word under the cursor may become, and what lets a shell ask."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["SCRIPTS", "candidates"]

_BASH = r"""_eigenexp() {
    local line="${COMP_LINE:0:COMP_POINT}" cur="${COMP_WORDS[COMP_CWORD]}" IFS=$'\n'
    local word="${line##*[[:space:]]}"
    [[ $cur == "=" || $cur == ":" ]] && cur=""
    COMPREPLY=($(eigenexp completion --line "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"${word%"$cur"}"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=./] ]]; then
        COMPREPLY=("${COMPREPLY[0]} ")
    fi
}
complete -o nospace -o default -F _eigenexp eigenexp"""

_ZSH = r"""_eigenexp() {
    local -a found
    found=("${(@f)$(eigenexp completion --line "$LBUFFER" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -Q -S '' -a found; else _files; fi
}
compdef _eigenexp eigenexp"""

_FISH = (
    r"""complete -c eigenexp -a '(eigenexp completion --line (commandline -cp | string collect))'"""
)

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""What each shell runs to complete ``eigenexp``."""

_OF_SETTINGS = ("fit", "resume")


def candidates(
    line: str, commands: Mapping[str, argparse.ArgumentParser], root: str | Path
) -> list[str]:
    """Return what the last word of a command line may become, whole words.

    Parameters
    ----------
    line
        Up to the cursor: ``eigenexp fit model=lg``.
    commands
        The parsers by the names of their commands.
    root
        Folder of the runs.
    """
    words = line.split()
    word = "" if not words or line[-1].isspace() else words.pop()
    given = words[1:]
    command = next((each for each in given if each in commands), None)
    if command is None:
        found: Iterable[str] = [*commands, "--help", "--version"]
    elif word.startswith("-"):
        found = _options(commands[command])
    elif command in _OF_SETTINGS and (command == "fit" or _has_name(given, command)):
        found = _settings(word, [each for each in given if "=" in each])
    elif re.search(r"\bRUN\b", commands[command].format_usage()):
        found = _runs(root, with_sweeps=command in ("show", "report"))
    elif command == "completion":
        found = SCRIPTS
    else:
        found = []
    return sorted({each for each in found if each.startswith(word)})


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return re.findall(r"(?<![\w-])--?[a-z][\w-]*", parser.format_usage())


def _has_name(given: Sequence[str], command: str) -> bool:
    after = given[list(given).index(command) + 1 :]
    return any(not each.startswith("-") and "=" not in each for each in after)


def _settings(word: str, overrides: Sequence[str]) -> list[str]:
    """Return groups with their options, keys under a dotted name, and the values some keys take."""
    from eigenexp.experiments.config import groups, known_settings, options

    sign = "+" if word.startswith("+") else ""
    key, equals, _ = word.removeprefix(sign).partition("=")
    if equals and key in groups():
        own = [f"./{path}:" for path in sorted(Path().glob("*.py"))] if key == "model" else []
        return [f"{sign}{key}={option}" for option in [*options(key), *own]]
    parent = key.rpartition(".")[0]
    known = known_settings(parent, overrides)
    if equals:
        value = known.get(key.rpartition(".")[2])
        values = ["true", "false"] if isinstance(value, bool) else _VALUES.get(key, [])
        return [f"{sign}{key}={each}" for each in values]
    path = f"{parent}." if parent else ""
    found = [
        f"{sign}{path}{name}{'.' if isinstance(value, Mapping) else '='}"
        for name, value in known.items()
    ]
    return found if parent else [*found, *(f"{sign}{group}=" for group in groups())]


_VALUES = {
    "solver.which": ["top", "bottom", "both"],
    "image.channels": ["gray", "color", "keep"],
    "trainer.precision": ["32-true", "64-true"],
    "operator.model_dtype": ["bf16", "fp16"],
    "parallel": ["pictures", "columns", "average"],
    "resume": ["auto", "never"],
    "model.mean": ["imagenet", "half", "clip"],
    "model.std": ["imagenet", "half", "clip"],
}


def _runs(root: str | Path, *, with_sweeps: bool) -> list[str]:
    from eigenexp.runs.folder import list_runs

    found = ["last", *(run.run_id for run in list_runs(root))]
    if with_sweeps:
        found += [path.parent.name for path in Path(root).glob("sweeps/*/manifest.json")]
    return found
