"""Reading tables that a person or another program wrote."""

from __future__ import annotations

import csv
from pathlib import Path

from eigenexp.errors import InputError
from eigenexp.storage.regular import file_fault

__all__ = ["read_csv"]

_MOST_BYTES = 256 << 20


def read_csv(path: Path, what: str) -> tuple[list[str], list[dict[str, str | None]]]:
    """Return the columns of a CSV file and its rows, each by column; a cell left out is ``None``.

    Raises
    ------
    InputError
        Naming ``what`` was expected, when the file is missing, a pipe or device, larger than
        256 MB or no table.
    """
    try:
        fault = file_fault(path, _MOST_BYTES)
        if fault is not None:
            raise InputError(f"{path}: expected {what}, got {fault}")
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            return list(reader.fieldnames or []), list(reader)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {what} as CSV, got no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected {what} as CSV; {error}") from error
