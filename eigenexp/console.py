"""What the screen shows: our own lines, and beside them nothing until something is wrong."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Collection, Sequence

from eigenexp.errors import EigenexpError

__all__ = ["aligned", "printable", "quiet", "say", "tell_error"]


def printable(text: str) -> str:
    """Return ``text`` without characters that a terminal obeys instead of showing."""
    return "".join(c if c.isprintable() else "?" for c in text)


def say(text: str) -> None:
    """Print lines a person reads; names in them are foreign, and shown as they are."""
    for line in text.split("\n"):
        print(printable(line), flush=True)


def aligned(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Return a table's rows as lines, its columns under each other, those in ``right`` flush."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def tell_error(error: EigenexpError) -> None:
    """Print the one line of an error; where all processes have the same, the first one does."""
    if _speaks_for_all() or not error.in_all_processes:
        _tell(error)


def _tell(message: object) -> None:
    print(f"eigenexp: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def _speaks_for_all() -> bool:
    ranks = sys.modules.get(
        "eigenexp.distributed.ranks"
    )  # where nobody asked, this process is alone
    return ranks is None or bool(ranks.is_first_rank())


def quiet() -> None:
    """Leave the screen to the run: libraries imported so far speak up only in trouble.

    A warning is one line, without the source it comes from; of several processes, which all warn
    of the same, the first one tells it.
    """

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if _speaks_for_all():
            _tell(message)

    warnings.showwarning = tell
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("lightning", "alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
