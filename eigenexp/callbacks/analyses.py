"""What is measured once the pairs are found, as files and figures; nothing of it ends a run."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenexp.analysis import spectrum_card
from eigenexp.analysis.amplitude_table import AMPLITUDE_FILE
from eigenexp.analysis.card_files import save_card
from eigenexp.errors import EigenexpError
from eigenexp.modules.eigendistortion import EigendistortionModule
from eigenexp.operators import FisherOperator
from eigenexp.operators.base import Fisher
from eigenexp.spectrum import Spectrum
from eigenexp.storage.atomic import write_atomic, write_json_atomic

__all__ = ["as_csv", "write_amplitude", "write_card"]

log = logging.getLogger(__name__)
Written = tuple[dict[str, Path], dict[str, Any]]
"""Files by name, and figures by name."""


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return plain rows as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["index"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_amplitude(module: EigendistortionModule, spectrum: Spectrum, folder: Path) -> Written:
    """Write the radii of every pair; nothing for the mean of many pictures.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    from eigenexp.plots import amplitude_figure

    if not isinstance(module.operator, FisherOperator):
        return {}, {}
    try:
        found = module.amplitude(spectrum)
    except EigenexpError as error:
        log.warning("amplitudes: expected true d′ at finite ones, got none: %s", error)
        return {}, {}
    record = found.as_record()
    table = folder / "amplitude.csv"
    paths = {
        AMPLITUDE_FILE: write_json_atomic(folder / AMPLITUDE_FILE, record),
        table.name: write_atomic(table, as_csv(found.rows()).encode()),
    }
    return paths, {"amplitude": amplitude_figure(record)}


def write_card(operator: Fisher, spectrum: Spectrum, folder: Path) -> Written:
    """Write the spectrum card.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    from eigenexp.plots import card_figure

    try:
        card = spectrum_card(operator, spectrum)
    except EigenexpError as error:
        log.warning("card: expected numbers of the whole spectrum, got none: %s", error)
        return {}, {}
    return save_card(card, folder), {"card": card_figure(card)}
