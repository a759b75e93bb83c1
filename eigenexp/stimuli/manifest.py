"""What is known of each stimulus, its passport, and of all of them, the manifest of their folder.

``manifest.json`` is the truth, ``manifest.csv`` the same rows for a table. Reading checks every
value and executes nothing; a manifest whose content is not that of its id was changed by hand.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eigenexp.errors import CheckpointError, InputError
from eigenexp.stimuli.fields import read_fields
from eigenexp.storage.atomic import write_atomic, write_json_atomic
from eigenexp.storage.json_files import read_json
from eigenexp.storage.plain import plain
from eigenexp.storage.regular import file_fault

__all__ = [
    "MANIFEST_FILE",
    "PAIRS",
    "SCHEMA_VERSION",
    "TABLE_FILE",
    "TRIAL_COLUMNS",
    "Display",
    "Manifest",
    "Passport",
    "Prediction",
    "Reference",
    "read_manifest",
    "read_table",
    "write_manifest",
]

MANIFEST_FILE = "manifest.json"
TABLE_FILE = "manifest.csv"
SCHEMA_VERSION = 1
PAIRS = ("top", "bottom", "principal", "control")
"""Kinds of distortions: the two ends of a spectrum, principal ones of several models, random."""
TRIAL_COLUMNS = ("observer", "trial", "stimulus", "correct")
"""Columns of every table of trials; ``response``, ``interval``, ``rt``, ``manifest`` may follow.

``stimulus`` is a :attr:`Passport.id`, ``manifest`` a :attr:`Manifest.id`, ``correct`` 0 or 1.
"""

_MOST_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,120}")


@dataclass(frozen=True)
class Display:
    """How picture values become numbers in a file, and the file light.

    Attributes
    ----------
    gamma
        ``"srgb"``, or the exponent as text (``"2.2"``; ``"1.0"``: linear).
    linear_light
        Whether the pictures' values are light, which the file holds through the inverse of
        ``gamma``; else they are what the file holds, full scale at ``white``.
    bits
        Of each value in the file, 8 or 16.
    rounding
        ``"plain"``, ``"dithered"`` or ``"model"``.
    black, white
        Picture values at 0 and at full scale.
    pixels_per_degree
        Of visual angle, at the intended distance; None where nobody said.
    """

    gamma: str
    linear_light: bool
    bits: int
    rounding: str
    black: float
    white: float
    pixels_per_degree: float | None


@dataclass(frozen=True)
class Reference:
    """The unchanged picture of some stimuli, written as they are.

    Attributes
    ----------
    id
        Its name in the manifest.
    picture, picture_sha256
        Name of the picture, and the hash of its values.
    file, file_sha256
        Path from the manifest's folder, with ``/``, and the hash of the file's bytes.
    """

    id: str
    picture: str
    picture_sha256: str
    file: str
    file_sha256: str

    def __post_init__(self) -> None:
        _check_name("id", self.id)
        _check_file(self.file, self.file_sha256)


@dataclass(frozen=True)
class Prediction:
    """What one model says of one stimulus.

    Attributes
    ----------
    model, fingerprint, noise
        As in :class:`Passport`.
    eigenvalue
        uᵀFu of the unit distortion u: λ where u is an eigenvector of this model.
    d_prime_linear, d_prime_true, d_prime_rounded
        As in :class:`Passport`.
    """

    model: str
    fingerprint: str
    noise: str
    eigenvalue: float
    d_prime_linear: float
    d_prime_true: float
    d_prime_rounded: float


@dataclass(frozen=True)
class Passport:
    """One stimulus: where it came from, what is in its file, what is predicted of it.

    Attributes
    ----------
    id
        Its name in the manifest and in tables of trials.
    file, file_sha256
        Path from the manifest's folder, with ``/``, and the hash of the file's bytes.
    reference
        Id of the unchanged picture's :class:`Reference`.
    picture, picture_sha256
        Name of the picture, and the hash of its values.
    model, fingerprint
        Name of the model whose pair this is, and the hash of its class, settings and weights.
    noise, perturbations
        Of the Fisher information, in words.
    distortion
        Name of the unit distortion: stimuli of one differ by α alone.
    pair, index
        One of :data:`PAIRS`, and the place in the whole spectrum, of the principal distortions, or
        the number of the control direction.
    eigenvalue, error_bound
        λ and how far it may be away; uᵀFu and the rounding of it for other directions. The bound is
        None where none is known.
    status
        That of the pair (:class:`~eigenexp.spectrum.PairStatus`); ``"measured"`` for a direction
        that is no pair.
    level
        d′ asked for, or None where an amplitude was.
    alpha, sign
        The stimulus is x + sign·α·e, α > 0, in the picture's units.
    d_prime_linear
        α√λ.
    d_prime_true
        ‖g(x + sign·αe) − g(x)‖, neither clipped nor rounded.
    d_prime_rounded
        The same between the two files, as they are read back: what an observer can see.
    gain
        By which every d′ here is multiplied; 1 is the model's own noise.
    fraction_correct
        Of an ideal observer at ``d_prime_rounded``, in the manifest's task.
    peak_grey_levels, rms_grey_levels
        Largest and root-mean-square size of sign·αe, of 255 levels from black to white.
    clipped_pixels
        Picture values (pixels times channels) of x + sign·αe outside black to white.
    run_id
        Of the run, empty where there was none.
    flags
        What is wrong with it: ``"rounding"``, ``"clipping"``, ``"validity"``, ``"unverified"``.
    predictions
        What each model given says, its own first.
    """

    id: str
    file: str
    file_sha256: str
    reference: str
    picture: str
    picture_sha256: str
    model: str
    fingerprint: str
    noise: str
    perturbations: str
    distortion: str
    pair: str
    index: int
    eigenvalue: float
    error_bound: float | None
    status: str
    level: float | None
    alpha: float
    sign: int
    d_prime_linear: float
    d_prime_true: float
    d_prime_rounded: float
    gain: float
    fraction_correct: float
    peak_grey_levels: float
    rms_grey_levels: float
    clipped_pixels: int
    display_gamma: str
    pixels_per_degree: float | None
    run_id: str
    flags: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()

    def __post_init__(self) -> None:
        _check_name("id", self.id)
        _check_file(self.file, self.file_sha256)
        if self.pair not in PAIRS:
            raise InputError(f"pair: expected one of {', '.join(PAIRS)}, got {self.pair!r}")
        if self.sign not in (-1, 1):
            raise InputError(f"sign: expected -1 or 1, got {self.sign}")
        if not self.alpha > 0:
            raise InputError(f"alpha: expected a number above 0, got {self.alpha}")

    @property
    def signed_alpha(self) -> float:
        """Amplitude with its sign: the stimulus is x + signed_alpha · e."""
        return self.sign * self.alpha

    def row(self) -> dict[str, Any]:
        """Return its line in ``manifest.csv``: flags by spaces, predictions as JSON."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        facts["flags"] = " ".join(self.flags)
        predictions = [dataclasses.asdict(one) for one in self.predictions]
        facts["predictions"] = json.dumps(predictions, allow_nan=False)
        return facts


@dataclass(frozen=True)
class Manifest:
    """All stimuli of a folder.

    Attributes
    ----------
    task
        One of :data:`eigenexp.analysis.units.TASKS`.
    alternatives
        m of ``"mafc"``; 2 for ``"2afc"``, 3 for ``"oddity"``.
    display
        Of every file.
    references
        The unchanged pictures.
    stimuli
        The passports, in the order in which they were made.
    """

    task: str
    alternatives: int
    display: Display
    references: tuple[Reference, ...]
    stimuli: tuple[Passport, ...]

    def __post_init__(self) -> None:
        counts = Counter([one.id for one in self.references])
        counts.update(one.id for one in self.stimuli)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise InputError(f"stimuli: expected each id once, got {twice[0]!r} more than once")
        known = {one.id for one in self.references}
        lost = next((one for one in self.stimuli if one.reference not in known), None)
        if lost is not None:
            raise InputError(
                f"stimulus {lost.id}: expected the reference among {len(known)} pictures, got "
                f"{lost.reference!r}"
            )

    @property
    def id(self) -> str:
        """First 16 digits of the SHA-256 of everything in it: which files it speaks of."""
        facts = _floating(_facts(self))
        text = json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def by_id(self) -> Mapping[str, Passport]:
        """The passports by their ids."""
        return {one.id: one for one in self.stimuli}

    def reference_of(self, stimulus: Passport) -> Reference:
        """Return the unchanged picture of a stimulus."""
        return next(one for one in self.references if one.id == stimulus.reference)


def write_manifest(manifest: Manifest, folder: str | os.PathLike[str]) -> Path:
    """Write ``manifest.csv`` and ``manifest.json`` into a folder, each atomically, JSON last.

    Returns
    -------
    Path
        Of ``manifest.json``.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Passport)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for one in manifest.stimuli:
        row = {key: "" if value is None else value for key, value in one.row().items()}
        writer.writerow({k: repr(v) if isinstance(v, float) else v for k, v in row.items()})
    write_atomic(Path(folder) / TABLE_FILE, text.getvalue().encode())
    facts = {"schema_version": SCHEMA_VERSION, "id": manifest.id, **_facts(manifest)}
    return write_json_atomic(Path(folder) / MANIFEST_FILE, facts)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a folder; nothing in it is executed, no other file is opened.

    Parameters
    ----------
    path
        The folder, or ``manifest.json`` itself.

    Raises
    ------
    CheckpointError
        When it is missing, damaged, of a newer schema, or its content is not that of its id.
    """
    given = Path(path)
    file = given / MANIFEST_FILE if given.is_dir() else given
    facts = read_json(file, "the manifest of a folder of stimuli")
    version = facts.pop("schema_version", None)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{file}: expected a manifest of schema up to {SCHEMA_VERSION}, got {version!r}; "
            "update eigenexp to read it, or name the folder that eigenexp stimuli wrote"
        )
    wanted = facts.pop("id", None)
    try:
        manifest: Manifest = read_fields(Manifest, facts, "manifest")
    except (InputError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected a manifest of eigenexp; {error}") from error
    if manifest.id != wanted:
        raise CheckpointError(
            f"{file}: expected the content of manifest {wanted}, got another ({manifest.id}); it "
            "was changed by hand or is damaged: export the stimuli again"
        )
    return manifest


def read_table(path: str | os.PathLike[str]) -> tuple[Passport, ...]:
    """Read the passports of a ``manifest.csv``; nothing in it is executed.

    Raises
    ------
    CheckpointError
        When it is missing or damaged.
    """
    file = Path(path)
    file = file / TABLE_FILE if file.is_dir() else file
    types_of = typing.get_type_hints(Passport)
    try:
        fault = file_fault(file, _MOST_BYTES)
        if fault is not None:
            raise CheckpointError(f"{file}: expected a table of stimuli, got {fault}")
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        return tuple(
            read_fields(
                Passport, {k: _cell(types_of.get(k), k, v) for k, v in row.items()}, f"row {i}"
            )
            for i, row in enumerate(rows, 2)
        )
    except (OSError, ValueError, TypeError, csv.Error, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: expected a table of stimuli; {error}") from error


def _cell(kind: Any, name: str, text: str) -> Any:
    """Return a cell's value, as JSON would hold it."""
    if name == "flags":
        return text.split()
    if name == "predictions":
        return json.loads(text)
    if kind is str or not isinstance(text, str):
        return text
    if text == "":
        return None
    return int(text) if kind is int else float(text)


def _facts(manifest: Manifest) -> dict[str, Any]:
    return dict(plain(dataclasses.asdict(manifest)))


def _floating(value: Any) -> Any:
    """Return plain values with every number as a float: 1 and 1.0 are the same content."""
    if isinstance(value, dict):
        return {key: _floating(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_floating(entry) for entry in value]
    return float(value) if type(value) is int else value


def _check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{field}: expected letters, digits, . _ + and -, got {name[:60]!r}")


def _check_file(file: str, sha256: str) -> None:
    """Refuse a path that leads out of the folder, and what is no hash."""
    path = PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or "\\" in file or ":" in file:
        raise InputError(f"file: expected a path inside the folder, got {file[:80]!r}")
    if not _SHA256.fullmatch(sha256):
        raise InputError(f"file_sha256: expected 64 hexadecimal digits, got {sha256[:70]!r}")
