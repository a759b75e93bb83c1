"""Which run or sweep a person means by a few letters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from eigenexp.errors import RunNotFoundError

__all__ = ["pick"]

_T = TypeVar("_T")


def pick(name: str, known: Mapping[str, _T], *, kind: str, root: str | Path) -> _T:
    """Return the one that ``name`` means: ``last``, an id, or the start of one id alone.

    Parameters
    ----------
    known
        By id, oldest first.
    kind
        What they are, in words: ``run``.

    Raises
    ------
    RunNotFoundError
        When none or several fit.
    """
    ids = list(known)
    if name == "last" and ids:
        return known[ids[-1]]
    fitting = [name] if name in known else [one for one in ids if one.startswith(name)]
    if len(fitting) == 1:
        return known[fitting[0]]
    if fitting:
        some = ", ".join(fitting[:4])
        raise RunNotFoundError(
            f"{name}: expected one {kind}, got {len(fitting)} ({some}); name one"
        )
    newest = ", ".join(ids[-3:][::-1]) or "none"
    raise RunNotFoundError(
        f"{name}: expected a {kind} id, the start of one, 'last' or a path, got none that exists "
        f"under {Path(root)}; newest {kind}s: {newest}"
    )
