"""Tables of trials: one row an answer, written by an experiment or a simulation, checked here."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eigenexp.errors import InputError
from eigenexp.scoring.counts import Counts
from eigenexp.scoring.design import Design
from eigenexp.stimuli.manifest import TRIAL_COLUMNS
from eigenexp.storage.atomic import write_atomic
from eigenexp.storage.csv_files import read_csv

__all__ = ["Answers", "Trial", "count_answers", "read_trials", "write_trials"]

COLUMNS = (*TRIAL_COLUMNS, "response", "interval", "rt", "manifest")
_CORRECT = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}


@dataclass(frozen=True)
class Trial:
    """One answer.

    Attributes
    ----------
    observer, trial
        Who, and which of theirs.
    stimulus
        Id of its passport.
    correct
        Whether the answer was right.
    response, interval, rt
        What was answered, where the changed picture stood, seconds; None where nobody said.
    manifest
        Id of the manifest whose stimuli were shown; empty where nobody said.
    """

    observer: str
    trial: int
    stimulus: str
    correct: bool
    response: str | None = None
    interval: int | None = None
    rt: float | None = None
    manifest: str = ""


@dataclass(frozen=True)
class Answers:
    """The answers of one observer, counted by distortion.

    Attributes
    ----------
    observer
        Name.
    counts
        One a distortion of the design, in its order.
    """

    observer: str
    counts: tuple[Counts, ...]


def write_trials(trials: Iterable[Trial], path: str | os.PathLike[str]) -> Path:
    """Write a table of trials as CSV, atomically; return its path.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in trials:
        values = [one.observer, one.trial, one.stimulus, int(one.correct), one.response,
                  one.interval, one.rt, one.manifest]  # fmt: skip
        writer.writerow(["" if value is None else value for value in values])
    return write_atomic(path, text.getvalue().encode())


def read_trials(path: str | os.PathLike[str], design: Design) -> tuple[list[Trial], list[str]]:
    """Read a table of trials of a design's stimuli.

    Returns
    -------
    trials
        Those that can be used.
    problems
        A line for each kind of row that was left out.

    Raises
    ------
    InputError
        When the table cannot be read, a column is missing, or no row of it can be used.
    """
    file = Path(path)
    columns, rows = read_csv(file, "a table of trials")
    missing = [name for name in TRIAL_COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"{file}: expected the columns {', '.join(TRIAL_COLUMNS)}, got no "
            f"{' and no '.join(missing)} among {', '.join(columns) or 'nothing'}"
        )
    known = set(design.stimuli)
    trials: list[Trial] = []
    left: dict[str, list[str]] = {}
    for line, row in enumerate(rows, 2):
        why, what = _fault(row, known, design.manifest)
        if why:
            left.setdefault(why, []).append(what)
        else:
            trials.append(_trial(row, line))
    problems = [_said(why, what, len(rows)) for why, what in left.items()]
    if not trials:
        raise InputError(f"{file}: expected trials of these stimuli, got none that can be used"
                         + "".join(f"; {problem}" for problem in problems))  # fmt: skip
    return trials, problems


def _fault(row: dict[str, str | None], known: set[str], manifest: str) -> tuple[str, str]:
    """Say why a row cannot be used, and what of it does not fit."""
    given = (row.get("manifest") or "").strip()
    if given and manifest and given != manifest:
        return f"of another manifest than {manifest}", given
    stimulus = (row.get("stimulus") or "").strip()
    if stimulus not in known:
        return "of unknown stimuli", stimulus or "nothing"
    if not (row.get("observer") or "").strip():
        return "without an observer", "nothing"
    correct = (row.get("correct") or "").strip()
    if correct.lower() not in _CORRECT:
        return "whose correct is not 0 or 1", correct or "nothing"
    return "", ""


def _said(why: str, what: Sequence[str], total: int) -> str:
    kinds = list(Counter(what))
    shown = ", ".join(kinds[:3]) + (", …" if len(kinds) > 3 else "")
    return f"{len(what)} of {total} trials are {why} ({shown}) and are left out"


def _trial(row: dict[str, str | None], line: int) -> Trial:
    def text(name: str) -> str:
        return (row.get(name) or "").strip()

    return Trial(
        observer=text("observer"),
        trial=int(text("trial")) if text("trial").isdecimal() else line - 1,
        stimulus=text("stimulus"),
        correct=_CORRECT[text("correct").lower()],
        response=text("response") or None,
        interval=int(text("interval")) if text("interval").isdecimal() else None,
        rt=_number(text("rt")),
        manifest=text("manifest"),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def count_answers(trials: Iterable[Trial], design: Design) -> tuple[Answers, ...]:
    """Count the answers of each observer to each stimulus, in the order in which they come."""
    place = {name: i for i, name in enumerate(design.stimuli)}
    shown: dict[str, np.ndarray] = {}
    for one in trials:
        table = shown.setdefault(one.observer, np.zeros((2, len(place)), dtype=np.int64))
        table[:, place[one.stimulus]] += 1, one.correct
    found = []
    for observer, (n, right) in shown.items():
        counts = []
        for name in design.names:
            i = design.places(name)
            counts.append(Counts(name, design.amplitudes[i], n[i], right[i]))
        found.append(Answers(observer, tuple(counts)))
    return tuple(found)
