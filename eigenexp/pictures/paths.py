"""Paths as a person writes them."""

from __future__ import annotations

import glob
import os
from pathlib import Path

__all__ = ["absolute_glob", "expand_home"]


def expand_home(text: str | Path) -> Path:
    """Return the path, ``~`` and ``~user`` expanded unless a file has that very name."""
    path = Path(text)
    if path.exists() or path.is_symlink():
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # no such user: the name of a file that is not there
        return path


def absolute_glob(text: str | Path) -> str | None:
    """Return ``text`` as an absolute pattern, or ``None`` when it is none.

    What exists by its very name in front of the pattern is taken literally: so ``*.png`` works in
    a folder called ``run [1]``, and so does ``/data/run [1]/*.png``.
    """
    parts = Path(os.path.abspath(expand_home(text))).parts
    literal = 0
    while literal < len(parts) and Path(*parts[: literal + 1]).exists():
        literal += 1
    pattern = parts[literal:]
    if not any(set(part) & set("*?[") for part in pattern):
        return None
    return str(Path(*(glob.escape(part) for part in parts[:literal]), *pattern))
