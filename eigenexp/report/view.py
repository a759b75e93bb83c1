"""What the page shows of a run, as plain numbers and texts: no file, no HTML."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from eigenexp.analysis.amplitude_table import amplitude_view
from eigenexp.analysis.card_files import card_cells
from eigenexp.analysis.units import fraction_correct, thresholds
from eigenexp.console import at_least, known_digits
from eigenexp.errors import InputError
from eigenexp.plots.pixels import Array, Range, peak, picture_range, show_array, to_float
from eigenexp.spectrum import PairStatus, Spectrum
from eigenexp.storage.plain import leaves, plain

__all__ = [
    "DEFAULT_STRENGTH",
    "MOST_SHOWN",
    "ReportRun",
    "fact_groups",
    "pair_label",
    "run_view",
    "sensitivity_ratio",
]

DEFAULT_STRENGTH = 0.05
"""Root mean square of the added distortion over the picture's range, as in the figures."""
MOST_SHOWN = 8
"""Distortions drawn at each end; the table holds every pair."""
_SAMPLES = 32767  # a distortion is kept as 16-bit integers of its peak


@dataclass(frozen=True)
class ReportRun:
    """One run as the report sees it.

    Attributes
    ----------
    title
        Above everything.
    spectrum
        The pairs; ``eigenvectors`` in the picture's shape.
    image
        ``(1, C, H, W)``, or ``None`` where it is not at hand: distortions are then shown alone.
    history
        As of ``ConvergenceLogging.history``; ``None`` for no curves.
    status, run_id, created
        Of the tracked run, where there is one.
    picture_name
        Shown below the picture.
    facts
        More settings to list, nested as they are; ``spectrum.metadata`` is listed anyway.
    problem
        Why the run failed, if it did.
    amplitude
        Of :meth:`eigenexp.analysis.Amplitude.as_record`; ``None`` for no section of it.
    card, sensitivity_map
        Of :meth:`eigenexp.analysis.SpectrumCard.as_record`, and its map in the picture's shape.
    """

    title: str
    spectrum: Spectrum
    image: Tensor | None = None
    history: Mapping[str, Any] | None = None
    status: str = ""
    run_id: str = ""
    created: str = ""
    picture_name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    amplitude: Mapping[str, Any] | None = None
    card: Mapping[str, Any] | None = None
    sensitivity_map: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image is not None and self.image.numel() != self.spectrum.num_pixels:
            raise InputError(
                f"image: expected {self.spectrum.num_pixels} values, as each distortion has, got "
                f"{self.image.numel()}; give the picture solved for"
            )
        if not len(self.spectrum):
            raise InputError("spectrum: expected at least one pair, got none; run it further")


def pair_label(index: int, n: int) -> str:
    """Return ``largest``, ``2nd largest``, …, ``2nd smallest``, ``smallest``."""
    top = index < n / 2
    place = index + 1 if top else n - index
    word = "largest" if top else "smallest"
    if place == 1:
        return word
    teen = place % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} {word}"


def run_view(run: ReportRun, number: int) -> dict[str, Any]:
    """Return everything the page says of one run.

    Parameters
    ----------
    run
        The run.
    number
        Its place in the report, from 1: names its elements.
    """
    spectrum = run.spectrum
    shape = _picture_shape(run)
    picture = None if run.image is None else to_float(run.image).reshape(shape)
    shown = None if picture is None else show_array(picture, blank=0.0)
    limits = Range(0.0, 1.0) if shown is None else picture_range(shown)
    pairs = [_pair(spectrum, i, shape, shown, limits, run.image) for i in range(len(spectrum))]
    top = [pair for pair in pairs if pair["top"]]
    bottom = [pair for pair in pairs if not pair["top"]][::-1]  # the smallest first
    groups = [
        {"name": "Most noticeable", "kind": "top", "pairs": top[:MOST_SHOWN]},
        {"name": "Least noticeable", "kind": "bottom", "pairs": bottom[:MOST_SHOWN]},
    ]
    proven = sum(s is PairStatus.CONVERGED for s in spectrum.status)
    metadata = {key: value for key, value in spectrum.metadata.items() if value is not None}
    return {
        "id": f"run{number}",
        "number": number,
        "title": run.title,
        "run_id": run.run_id,
        "status": run.status,
        "created": run.created,
        "picture": None if shown is None else _still(limits.normalize(shown)),
        "picture_name": run.picture_name,
        "size": "×".join(str(side) for side in shape[-2:]) + (" colour" if shape[0] == 3 else ""),
        "groups": [group for group in groups if group["pairs"]],
        "pairs": pairs,
        "left_out": len(pairs) - sum(len(group["pairs"]) for group in groups),
        "proven": proven,
        "verdict": f"{proven} of {len(spectrum)} pairs proven",
        "all_proven": proven == len(spectrum),
        "stop": spectrum.stop_message,
        "method": spectrum.method,
        "num_products": spectrum.num_products,
        "num_verification": spectrum.num_verification_products,
        "null_space": spectrum.null_space_dimension,
        "tol": spectrum.tol,
        "notes": list(spectrum.notes),
        "ratio": sensitivity_ratio(spectrum),
        "facts": fact_groups(metadata, run.facts),
        "problem": run.problem,
        "amplitude": None if run.amplitude is None else amplitude_view(run.amplitude),
        "card": None if run.card is None else card_cells(run.card),
        "map": _map_still(run.sensitivity_map),
        "data": None if shown is None else _data(shown, limits, groups, spectrum, shape),
    }


def _picture_shape(run: ReportRun) -> tuple[int, ...]:
    """Return ``(C, H, W)``; what has no such shape becomes rows of one channel."""
    source = run.spectrum.eigenvectors[0] if run.image is None else run.image
    shape = [int(side) for side in source.shape]
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    while len(shape) < 3:
        shape = [1, *shape]
    if len(shape) > 3:
        shape = [1, math.prod(shape[:-1]), shape[-1]]
    return tuple(shape)


def _pair(
    spectrum: Spectrum,
    i: int,
    shape: tuple[int, ...],
    shown: Array | None,
    limits: Range,
    image: Tensor | None,
) -> dict[str, Any]:
    row = spectrum.rows()[i]
    n = spectrum.order
    values = to_float(spectrum.eigenvectors[i]).reshape(shape)
    distortion = show_array(values, blank=0.0)
    scale = DEFAULT_STRENGTH * limits.width * math.sqrt(spectrum.num_pixels)
    sum_still = None
    if shown is not None:
        sum_still = _still(limits.normalize(shown + scale * distortion))
    gain = 0.0 if spectrum.is_null[i] else math.sqrt(max(row["eigenvalue"], 0.0))
    return {
        **row,
        **thresholds(spectrum[i], image)[0],
        "place": i,
        "top": row["index"] < n / 2,
        "label": pair_label(row["index"], n),
        "gain": gain,
        "still": _still(0.5 + 0.5 * distortion / peak(distortion)),
        "sum_still": sum_still,
        "right": fraction_correct(scale * gain),
    }


def sensitivity_ratio(spectrum: Spectrum) -> dict[str, Any] | None:
    """Return how much more strongly the model responds along the first pair than the last.

    √(λ_first / λ_last), at equal strength: ``value``; ``text``, with the digits that both error
    bounds support; ``at_least`` where the last pair is not proven, or its error bound leaves it
    open towards zero. Infinite where the last pair lies in the null space. ``None`` for one end
    alone.
    """
    n = spectrum.order
    indices = spectrum.eigenindex.tolist()
    if indices[0] != 0 or indices[-1] != n - 1 or n < 2:
        return None
    high, low = (float(spectrum.eigenvalues[i]) for i in (0, -1))
    high_bound, low_bound = (float(spectrum.error_bounds[i]) for i in (0, -1))
    if not (high > high_bound and math.isfinite(low) and math.isfinite(low_bound)):
        return None
    if spectrum.is_null[-1]:
        return {"value": math.inf, "at_least": False, "text": "∞"}
    least = high - high_bound
    if spectrum.status[-1] is PairStatus.CONVERGED and low > 2 * low_bound:
        value = math.sqrt(high / low)
        most = math.sqrt((high + high_bound) / (low - low_bound))
        error = max(most - value, value - math.sqrt(least / (low + low_bound)))
        return {"value": value, "at_least": False, "text": known_digits(value, error)}
    ceiling = max(low, 0.0) + low_bound
    if ceiling <= 0:
        return None
    value = math.sqrt(least / ceiling)
    return {"value": value, "at_least": True, "text": at_least(value)}


# -- pictures --------------------------------------------------------------------------------------


def _still(levels: Array) -> str:
    """Return values in [0, 1] as a PNG data address: what shows before, or without, scripts."""
    shades = np.rint(255 * np.clip(np.nan_to_num(np.atleast_2d(levels)), 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _map_still(diagonal: Tensor | None) -> str | None:
    """Return √diag F, its channels together, as a picture from black (0) to white."""
    if diagonal is None or diagonal.ndim < 2 or not diagonal.numel():
        return None
    values = to_float(diagonal)
    values = np.clip(np.nan_to_num(values), 0, None).reshape(-1, *values.shape[-2:]).sum(axis=0)
    return _still(np.sqrt(values / peak(values)))


def _data(
    shown: Array,
    limits: Range,
    groups: Sequence[Mapping[str, Any]],
    spectrum: Spectrum,
    shape: tuple[int, ...],
) -> dict[str, Any]:
    """Return picture and distortions as 16-bit integers for the browser's canvas.

    The picture's values are ``low + (high - low) * u / 65535``, a distortion's
    ``peak * s / 32767``: rounding stays below a hundredth of a gray level.
    """
    sheet = np.atleast_2d(shown)
    distortions = {}
    for pair in (pair for group in groups for pair in group["pairs"]):
        values = to_float(spectrum.eigenvectors[pair["place"]]).reshape(shape)
        values = np.atleast_2d(show_array(values, blank=0.0))
        top = peak(values)
        samples = np.rint(_SAMPLES * np.nan_to_num(values / top)).astype("<i2")
        distortions[str(pair["place"])] = {"peak": top, "samples": _encode(samples)}
    unit = np.clip(np.nan_to_num((sheet - limits.low) / limits.width), 0.0, 1.0)
    return {
        "width": int(sheet.shape[1]),
        "height": int(sheet.shape[0]),
        "channels": 3 if sheet.ndim == 3 else 1,
        "low": limits.low,
        "high": limits.high,
        "pixels": spectrum.num_pixels,
        "picture": _encode(np.rint(65535 * unit).astype("<u2")),
        "distortions": distortions,
    }


def _encode(samples: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(samples).tobytes()).decode()


# -- settings --------------------------------------------------------------------------------------

_GROUPS = (
    ("Model", ("model",)),
    ("Picture", ("picture",)),
    ("Settings", ("config", "solver", "tags")),
    ("Versions", ("versions", "git", "platform", "dtype", "device", "threads", "created")),
)


def fact_groups(
    metadata: Mapping[str, Any], extra: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return ``(heading, [(name, value), …])``: fingerprint, picture, settings, versions, rest."""
    known = {key for _, keys in _GROUPS for key in keys}
    merged = {**plain(metadata), **plain(extra)}
    config = merged.get("config")
    if isinstance(config, Mapping) and "solver" in config:
        merged.pop("solver", None)  # the same settings, told once
    groups = []
    for heading, keys in (*_GROUPS, ("More", tuple(sorted(merged.keys() - known)))):
        rows = [
            (path or key, _shown(value))
            for key in keys
            if key in merged
            for path, value in leaves(merged[key], key if heading in ("More", "Versions") else "")
            if value is not None
        ]
        if rows:
            groups.append((heading, rows))
    return groups


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(entry) for entry in value)
    return _text(value)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
