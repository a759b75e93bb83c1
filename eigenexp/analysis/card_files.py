"""A spectrum card in a folder of results: its numbers, its map, and both read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eigenexp.analysis.card import SpectrumCard
from eigenexp.console import aligned, known_digits
from eigenexp.errors import CheckpointError
from eigenexp.storage.atomic import write_atomic, write_json_atomic
from eigenexp.storage.json_files import read_json
from eigenexp.storage.regular import file_fault

__all__ = [
    "CARD_FILE",
    "MAP_FILE",
    "card_cells",
    "card_lines",
    "read_card",
    "read_map",
    "save_card",
]

CARD_FILE = "card.json"
"""Name of the file of numbers in a folder of results."""
MAP_FILE = "sensitivity_map.safetensors"
"""Name of the file of the diagonal of F: ``value``, ``low`` and ``high``."""

_ROWS = {
    "trace": "trace",
    "participation_ratio": "participation ratio",
    "effective_rank": "effective rank",
    "log_volume": "log-volume",
}


def save_card(card: SpectrumCard, folder: Path) -> dict[str, Path]:
    """Write the numbers, and the map where there is one; return the files by name.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    from safetensors.torch import save

    paths = {CARD_FILE: write_json_atomic(folder / CARD_FILE, card.as_record())}
    found = card.sensitivity_map
    if found is not None:
        tensors = {name: getattr(found, name).contiguous() for name in ("value", "low", "high")}
        # Of an exact map all three are one tensor, which safetensors does not share.
        content = save({name: tensor.clone() for name, tensor in tensors.items()})
        paths[MAP_FILE] = write_atomic(folder / MAP_FILE, content)
    return paths


def read_card(folder: Path) -> dict[str, Any] | None:
    """Return the numbers in a folder of results; None where there are none.

    Raises
    ------
    CheckpointError
        When the file is damaged.
    """
    path = folder / CARD_FILE
    return read_json(path, "a spectrum card") if path.is_file() else None


def read_map(folder: Path) -> Tensor | None:
    """Return the diagonal of F in a folder of results; None where there is none.

    Raises
    ------
    CheckpointError
        When the file is damaged or foreign.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / MAP_FILE
    if not path.exists():
        return None
    try:
        fault = file_fault(path)
        if fault is not None:
            raise CheckpointError(f"{path}: expected a sensitivity map, got {fault}")
        value: Tensor = load(path.read_bytes())["value"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a sensitivity map, got {error}") from error
    return value


def card_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """Return name, value and interval of each number, of a card's record; ``–`` for none."""
    rows = []
    for key, name in _ROWS.items():
        given = record.get(key)
        given = given if isinstance(given, Mapping) else {}
        value, low, high = (given.get(part) for part in ("value", "low", "high"))
        label = f"{name}, σ² = {_number(record.get('sigma2'))}" if key == "log_volume" else name
        if not all(_is_number(x) for x in (value, low, high)):
            rows.append([label, "–", ""])
            continue
        value, low, high = (float(x) for x in (value, low, high))  # type: ignore[arg-type]
        off = max(high - value, value - low, 0.0)
        text = f"{value:.6g}" if off == 0 else known_digits(value, off)
        rows.append([label, text, "exact" if off == 0 else f"{low:.5g} to {high:.5g}"])
    return rows


def card_lines(record: Mapping[str, Any]) -> list[str]:
    """Return a card's record as lines for a screen."""
    confidence: Any = record.get("confidence")
    share = f"{100 * float(confidence):g} % interval" if _is_number(confidence) else "interval"
    lines = aligned([["spectrum card", "value", share], *card_cells(record)], right=(1,))
    facts = ("n", "rank_bound", "num_products", "num_known")
    n, rank, products, known = (_number(record.get(key)) for key in facts)
    return [
        *lines,
        f"order {n}, rank at most {rank}; {products} products, {known} known pairs taken out",
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return f"{value:.6g}" if _is_number(value) else "–"
