"""What the screen shows: our own lines, and beside them nothing until something is wrong."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Collection, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TextIO

from eigenexp.errors import EigenexpError, one_line

__all__ = [
    "PlainFormatter",
    "aligned",
    "at_least",
    "at_most",
    "known_digits",
    "printable",
    "quiet",
    "say",
    "tell_error",
]

MOST_DIGITS = 7
"""Digits of a number whose error bound would support more."""


def printable(text: str) -> str:
    """Return ``text`` without characters that a terminal obeys instead of showing."""
    return "".join(c if c.isprintable() else "?" for c in text)


class PlainFormatter(logging.Formatter):
    """Lines of a log without escapes: what a library quotes of a server or a file is foreign."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        return "\n".join(printable(line) for line in super().format(record).splitlines())


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines a person reads; names in them are foreign, and shown as they are."""
    for line in text.split("\n"):
        print(printable(line), file=file, flush=True)


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


def known_digits(value: float, error: float, *, is_ceiling: bool = False) -> str:
    """Return a number that is not negative with the digits that its error bound supports.

    ``3.9(2)e-06``: 3.9e-06, off by at most 2 in its last digit, what rounding adds included.
    ``1.029302``: off by at most 1 in its last digit, of which there are :data:`MOST_DIGITS` at the
    most. ``≤ 2e-06``: not one digit is known, only that it is no larger. ``≈ 0.5``: nothing is.

    Parameters
    ----------
    value
        The number.
    error
        How far the true one may be away; infinite or NaN where nobody knows.
    is_ceiling
        Whether the true one is at most ``value`` where ``error`` is unknown.

    Examples
    --------
    >>> known_digits(3.91e-6, 1.2e-7), known_digits(1e-9, 2e-6), known_digits(1.0293024, 0.0)
    ('3.9(2)e-06', '≤ 2.1e-06', '1.029302')
    """
    if math.isinf(value) and value > 0:
        return "∞"
    if not math.isfinite(value):
        return "unknown"
    if not math.isfinite(error):
        return at_most(value) if is_ceiling else f"≈ {value:.2g}"
    if error == 0:
        return f"{value:.{MOST_DIGITS}g}"
    true, off = Decimal(repr(value)), Decimal(repr(error))
    if not value > 2 * error:
        return at_most(true + off)
    finest = true.adjusted() - MOST_DIGITS + 1
    place = max(off.adjusted(), finest)
    while True:
        shown = round(true, -place)
        last = math.ceil((off + abs(true - shown)).scaleb(-place))
        if last < 10:
            break
        place += 1
    size = shown.adjusted()
    if -5 < size < MOST_DIGITS and place <= 0:
        digits, power = f"{shown:.{-place}f}", ""
    else:
        digits, _, power = f"{float(shown):.{size - place}e}".partition("e")
        power = f"e{power}"
    return digits + ("" if place == finest and last == 1 else f"({last})") + power


def at_most(value: float | Decimal) -> str:
    """Return ``≤ value``, rounded up to two digits: all that is known is that it is no larger."""
    return "≤ " + _two_digits(value, ROUND_CEILING)


def at_least(value: float) -> str:
    """Return ``≥ value``, rounded down to two digits."""
    return "≥ " + _two_digits(value, ROUND_FLOOR)


def _two_digits(value: float | Decimal, rounding: str) -> str:
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not exact:
        return "0"
    return f"{float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), rounding)):.2g}"


def tell_error(error: EigenexpError) -> None:
    """Print the one line of an error; where all processes have the same, the first one does."""
    if _speaks_for_all() or not error.in_all_processes:
        _tell(error)


def _tell(message: object) -> None:
    print(f"eigenexp: {printable(one_line(message))}", file=sys.stderr)


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
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[screen])
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("lightning", "alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
