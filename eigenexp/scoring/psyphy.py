"""Tables of trials as psyphy (flatironinstitute/psyphy) writes and reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eigenexp.errors import InputError
from eigenexp.scoring.plane import PlaneAnswers
from eigenexp.storage.csv_files import read_csv

__all__ = ["PsyphyTrials", "read_psyphy"]

Array = NDArray[np.float64]

_COLUMNS = (("ref", "probe"), ("ref", "comparison"), ("stimulus 0", "stimulus 1"))
"""Of the reference and the comparison, by version of psyphy."""


@dataclass(frozen=True)
class PsyphyTrials:
    """Trials of a reference and a comparison, in coordinates of a stimulus space.

    psyphy's ``TrialData`` has the same as ``stimuli`` ``(N, 2, d)`` and ``responses``:
    ``PsyphyTrials(stimuli[:, 0], stimuli[:, 1], responses)``.

    Parameters
    ----------
    references, comparisons
        ``(N, d)``.
    correct
        ``(N,)`` or ``(N, 1)`` of 0 and 1, psyphy's response: 1 is right.

    Raises
    ------
    InputError
        When shapes or values do not fit.
    """

    references: Array
    comparisons: Array
    correct: NDArray[np.bool_]

    def __post_init__(self) -> None:
        first, second = (np.asarray(v, dtype=np.float64) for v in
                         (self.references, self.comparisons))  # fmt: skip
        right = np.asarray(self.correct)
        if right.ndim == 2 and right.shape[1] == 1:
            right = right[:, 0]
        if first.ndim != 2 or first.shape != second.shape or right.shape != first.shape[:1]:
            raise InputError(
                "psyphy: expected references and comparisons (N, d) and N responses, got shapes "
                f"{first.shape}, {second.shape} and {right.shape}"
            )
        if not np.isin(right, (0, 1)).all():
            raise InputError("psyphy: expected responses of 0 and 1, got others")
        object.__setattr__(self, "references", first)
        object.__setattr__(self, "comparisons", second)
        object.__setattr__(self, "correct", right.astype(bool))

    def __len__(self) -> int:
        return len(self.references)

    def answers(
        self,
        reference: ArrayLike | None = None,
        task: str = "oddity",
        alternatives: int = 3,
    ) -> PlaneAnswers:
        """Return the answers about one reference, as changes in the plane.

        Parameters
        ----------
        reference
            ``(2,)``; may be left out where there is one alone.
        task, alternatives
            As in :func:`eigenexp.analysis.units.fraction_correct`; psyphy's usual task is oddity.

        Raises
        ------
        InputError
            When the space is no plane, or there is no such reference or more than one.
        """
        if self.references.shape[1] != 2:
            raise InputError(
                f"psyphy: expected stimuli in a plane, got {self.references.shape[1]} coordinates"
            )
        there = np.unique(self.references, axis=0)
        if reference is None:
            if len(there) != 1:
                raise InputError(
                    f"reference: expected one of {len(there)} to be named, such as "
                    f"reference={there[0].tolist()}"
                )
            chosen = there[0]
        else:
            chosen = np.asarray(reference, dtype=np.float64)
        own = np.isclose(self.references, chosen, rtol=0, atol=1e-9).all(axis=1)
        if not own.any():
            raise InputError(
                f"reference: expected one that was shown, such as {there[0].tolist()}, got "
                f"{chosen.tolist()}"
            )
        offsets = self.comparisons[own] - chosen
        cells, which = np.unique(offsets.round(12), axis=0, return_inverse=True)
        which = which.reshape(-1)
        trials = np.bincount(which, minlength=len(cells))
        correct = np.bincount(which, self.correct[own], minlength=len(cells)).astype(np.int64)
        return PlaneAnswers(cells, trials, correct, task, alternatives)


def read_psyphy(path: str | os.PathLike[str]) -> PsyphyTrials:
    """Read a CSV of psyphy: a reference, a comparison and a response a row.

    Columns ``ref`` and ``probe`` (or ``comparison``), or ``stimulus 0`` and ``stimulus 1``, each a
    list of coordinates, and ``response``, 0 or 1, alone or in a list. Nothing is executed.

    Raises
    ------
    InputError
        When the table cannot be read, a column is missing, or a cell does not fit; names its line.
    """
    file = Path(path)
    columns, rows = read_csv(file, "a table of psyphy")
    named = next((pair for pair in _COLUMNS if set(pair) <= set(columns)), None)
    if named is None or "response" not in columns:
        raise InputError(
            f"{file}: expected the columns ref, probe, response (or stimulus 0, stimulus 1, "
            f"response), got {', '.join(columns) or 'nothing'}"
        )
    if not rows:
        raise InputError(f"{file}: expected at least one trial, got none")
    points: tuple[list[Sequence[float]], list[Sequence[float]]] = ([], [])
    responses = []
    for line, row in enumerate(rows, 2):
        for column, found in zip(named, points, strict=True):
            found.append(_numbers(row[column], f"{file}, line {line}, {column}"))
        response = _numbers(row["response"], f"{file}, line {line}, response")
        if len(response) != 1 or response[0] not in (0.0, 1.0):
            raise InputError(
                f"{file}, line {line}: expected a response of 0 or 1, got {row['response']!r}"
            )
        responses.append(response[0])
    for column, found in zip(named, points, strict=True):
        if len({len(point) for point in found} | {len(points[0][0])}) > 1:
            raise InputError(f"{file}: expected as many coordinates in every row of {column}")
    return PsyphyTrials(np.array(points[0]), np.array(points[1]), np.array(responses))


def _numbers(text: str | None, where: str) -> list[float]:
    """Return the numbers of a cell: ``[1.0, 2.0]``, ``(1.0, 2.0)`` or ``1``."""
    plain = (text or "").strip().replace("(", "[").replace(")", "]")
    plain = plain.replace(",]", "]")
    try:
        value = json.loads(plain)
        numbers = [float(v) for v in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError, RecursionError):
        numbers = [float("nan")]
    if not numbers or not np.isfinite(numbers).all():
        raise InputError(f"{where}: expected numbers such as [0.1, 0.2], got {text!r}")
    return numbers
