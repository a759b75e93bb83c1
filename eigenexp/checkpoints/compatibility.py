"""Whether a checkpoint may be continued here: every difference told one by one.

Harmless differences (versions, git commit, processor) warn; harmful ones (another model, another
picture, another precision) stop, with what to do.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eigenexp.checkpoints.provenance import SCHEMA_VERSION
from eigenexp.errors import CheckpointError, one_line
from eigenexp.operators.noise import Gaussian
from eigenexp.operators.perturbations import Everything
from eigenexp.storage.plain import leaves, plain

__all__ = [
    "Difference",
    "IntendedChange",
    "ProvenanceWarning",
    "Severity",
    "check_metadata",
    "compare_metadata",
    "migrate_metadata",
]

_SKETCH_TOLERANCE = 1e-4
_MISSING = "(absent)"

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""``MIGRATIONS[v]`` turns metadata of schema ``v`` into schema ``v + 1``."""


class ProvenanceWarning(UserWarning):
    """A harmless difference between a checkpoint and what continues it."""


class IntendedChange(ProvenanceWarning):
    """A difference that a person asked for: told, and never in the way."""


class Severity(enum.StrEnum):
    """What a difference means for continuing a run."""

    HARMLESS = "harmless"
    """The run may go on; perhaps not bit for bit."""
    HARMFUL = "harmful"
    """Going on would mix two problems in one result."""


@dataclass(frozen=True)
class Difference:
    """One field that differs between a checkpoint and the present.

    Attributes
    ----------
    field
        Dotted name in the metadata, ``"versions.torch"``.
    saved, current
        The two values.
    severity
        Whether to warn or to stop.
    advice
        What it means or what to do.
    on_purpose
        Whether a person asked for it.
    """

    field: str
    saved: Any
    current: Any
    severity: Severity
    advice: str = ""
    on_purpose: bool = False

    @property
    def message(self) -> str:
        """One line: field, both values, what it means."""
        line = f"{self.field}: the checkpoint has {_short(self.saved)}, here {_short(self.current)}"
        return f"{line}; {self.advice}" if self.advice else line


def migrate_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Bring metadata of an older schema to the present one.

    Raises
    ------
    CheckpointError
        When the schema is newer than this version of eigenexp, or not a number.
    """
    current = dict(metadata)
    version = current.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(
            f"metadata: expected a schema_version from 1 to {SCHEMA_VERSION}, got {version!r}; "
            "use a checkpoint written by eigenexp"
        )
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"metadata: expected schema up to {SCHEMA_VERSION}, got {version}; update eigenexp "
            f"(the checkpoint was written by {_written_by(current)})"
        )
    while version < SCHEMA_VERSION:
        current = MIGRATIONS[version](current)
        version += 1
        current["schema_version"] = version
    return current


def _written_by(metadata: Mapping[str, Any]) -> str:
    versions = metadata.get("versions")
    return f"eigenexp {versions.get('eigenexp', '?')}" if isinstance(versions, Mapping) else "?"


def compare_metadata(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, intended: Collection[str] = ()
) -> list[Difference]:
    """Return every difference that matters for continuing ``saved`` under ``current``.

    Fields that only tell how far the run was are left out. A field absent on either side is
    compared only where its absence is a difference of its own (``git``).

    Parameters
    ----------
    saved, current
        From :func:`checkpoint_metadata`.
    intended
        Fields (or groups: ``"config"``) the user changed on purpose: never harmful.
    """
    found = list(_differences(saved, current))
    on_purpose = tuple(f"{name}." for name in intended)
    return [
        Difference(d.field, d.saved, d.current, Severity.HARMLESS, "changed on purpose", True)
        if d.field in intended or d.field.startswith(on_purpose)
        else d
        for d in found
    ]


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterable[Difference]:
    schema = saved.get("schema_version")
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        yield Difference(
            "schema_version", schema, SCHEMA_VERSION, Severity.HARMFUL, "update eigenexp"
        )
    for group in ("versions", "git"):
        yield from _group(group, saved, current, "the rest may not be bit-identical")
    for name in ("platform", "device", "threads"):
        yield from _field(
            name, saved, current, Severity.HARMLESS, "the rest may not be bit-identical"
        )
    yield from _field(
        "dtype", saved, current, Severity.HARMFUL, "ask for the saved precision, or --force"
    )
    yield from _model(_mapping(saved.get("model")), _mapping(current.get("model")))
    yield from _picture(_mapping(saved.get("picture")), _mapping(current.get("picture")))
    yield from _measured(saved, current)
    yield from _group("config", saved, current, "the present setting is used")


def _model(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterable[Difference]:
    if not saved or not current:
        return
    same = (
        "resume with the model of the saved run, or start a new one; --force (in Python "
        "module.force_resume = True) goes on regardless"
    )
    for name in ("class", "weights_sha256"):
        yield from _field(name, saved, current, Severity.HARMFUL, same, prefix="model.")
    outputs = saved.get("output_sha256"), current.get("output_sha256")
    if None not in outputs and outputs[0] == outputs[1]:
        return
    if "output_sketch" not in saved or "output_sketch" not in current:
        if None not in outputs:
            yield Difference("model.output", *outputs, Severity.HARMFUL, same)
        return
    distance = _sketch_distance(saved.get("output_sketch"), current.get("output_sketch"))
    if distance <= _SKETCH_TOLERANCE:
        advice = (
            f"equal to {distance:.0e} relative: the rounding of another processor, library or "
            "precision; the rest will not be bit-identical"
        )
        norms = (float(saved["output_sketch"][0]), float(current["output_sketch"][0]))
        yield Difference("model.output", *norms, Severity.HARMLESS, advice)
    else:
        yield Difference("model.output", *outputs, Severity.HARMFUL, same)


def _sketch_distance(saved: Any, current: Any) -> float:
    """Largest difference of two sketches, over the output's norm; infinite if not comparable."""
    try:
        a, b = [float(x) for x in saved], [float(x) for x in current]
        if len(a) != len(b):
            return math.inf
        scale = max(abs(a[0]), abs(b[0]), math.ulp(0.0))
        # A sum over n values of norm s is at most s·√n: the sums are compared with the norm alone,
        # which is stricter.
        distance = max(abs(x - y) for x, y in zip(a, b, strict=True)) / scale
    except (TypeError, ValueError, IndexError):
        return math.inf
    return distance if math.isfinite(distance) else math.inf


def _picture(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterable[Difference]:
    if not saved or not current:
        return
    advice = "resume with the picture of the saved run, or start a new one"
    yield from _field("sha256", saved, current, Severity.HARMFUL, advice, prefix="picture.")
    if "sha256" not in saved or "sha256" not in current:
        yield from _field("shape", saved, current, Severity.HARMFUL, advice, prefix="picture.")
    elif saved["sha256"] == current["sha256"]:
        for name in sorted((saved.keys() & current.keys()) - {"sha256"}):
            yield from _field(
                name, saved, current, Severity.HARMLESS, "the values are equal", prefix="picture."
            )


def _field(
    name: str,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    severity: Severity,
    advice: str,
    prefix: str = "",
) -> Iterable[Difference]:
    a, b = saved.get(name), current.get(name)
    if a is not None and b is not None and plain(a) != plain(b):
        yield Difference(f"{prefix}{name}", a, b, severity, advice)


def _measured(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterable[Difference]:
    """Compare noise and perturbations; where none are told, F is JᵀJ of every change."""
    usual = {"noise": str(Gaussian()), "perturbations": str(Everything())}
    for name, default in usual.items():
        before, now = str(saved.get(name, default)), str(current.get(name, default))
        if before != now:
            advice = f"that is another F: resume with the {name} of the saved run, or start anew"
            yield Difference(name, before, now, Severity.HARMFUL, advice)


def _group(
    name: str, saved: Mapping[str, Any], current: Mapping[str, Any], advice: str
) -> Iterable[Difference]:
    """Compare a nested mapping leaf by leaf."""
    a = dict(leaves(plain(saved.get(name)) or {}, name))
    b = dict(leaves(plain(current.get(name)) or {}, name))
    if name != "git" and not (a and b):
        return
    for leaf in sorted(a.keys() | b.keys()):
        left, right = a.get(leaf, _MISSING), b.get(leaf, _MISSING)
        if left != right and not (_is_nan(left) and _is_nan(right)):
            yield Difference(leaf, left, right, Severity.HARMLESS, advice)


def check_metadata(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    force: bool = False,
    intended: Collection[str] = (),
) -> list[Difference]:
    """Warn of each harmless difference; stop at the harmful ones unless ``force``.

    Returns
    -------
    list of Difference
        All of them, told or not, for tags and reports.

    Raises
    ------
    CheckpointError
        At harmful differences, all in one line. A newer schema stops even with ``force``.
    """
    differences = compare_metadata(migrate_metadata(saved), current, intended=intended)
    harmful = [d for d in differences if d.severity is Severity.HARMFUL]
    if harmful and not force:
        raise CheckpointError("checkpoint does not fit: " + " | ".join(d.message for d in harmful))
    for difference in differences:
        kind = IntendedChange if difference.on_purpose else ProvenanceWarning
        warnings.warn(difference.message, kind, stacklevel=2)
    return differences


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _short(value: Any) -> str:
    text = one_line(value)
    return text if len(text) <= 64 else f"{text[:40]}…({len(text)} characters)"
