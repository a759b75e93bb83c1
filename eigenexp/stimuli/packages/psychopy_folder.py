"""The folder as an experiment of PsychoPy: conditions, facts, and the script that runs them."""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from eigenexp.stimuli.manifest import Manifest
from eigenexp.stimuli.packages.arrays import raw_file, write_raw
from eigenexp.stimuli.settings import Settings
from eigenexp.storage.atomic import write_atomic

__all__ = ["SCRIPT", "experiment_facts", "write_psychopy"]

SCRIPT = "run_psychopy.py"
_SHOWN = 384  # screen pixels of a picture's longer side, where nobody chose


def experiment_facts(manifest: Manifest, settings: Settings, side: int) -> dict[str, Any]:
    """Return what a program that runs the experiment has to know.

    Parameters
    ----------
    manifest, settings
        Of the stimuli.
    side
        Longer side of the pictures, in pixels.
    """
    return {
        "manifest": manifest.id,
        "task": manifest.task,
        "intervals": manifest.alternatives,
        "duration": settings.duration,
        "zoom": settings.zoom or max(1, _SHOWN // side),
    }


def write_psychopy(manifest: Manifest, folder: Path, settings: Settings) -> Path:
    """Write ``conditions.csv``, ``experiment.json`` and the script, which needs PsychoPy alone.

    Pictures of 16 bits are read from ``raw/``, as PsychoPy's own reader takes 8.

    Returns
    -------
    Path
        Of the script.
    """
    deep = manifest.display.bits == 16
    if deep:
        write_raw(manifest, folder, settings)
    shown = {one.id: raw_file(one.id) if deep else one.file for one in manifest.references}
    text = io.StringIO()
    names = ("stimulus", "file", "reference", "distortion", "sign", "alpha", "d_prime")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for one in manifest.stimuli:
        writer.writerow({
            "stimulus": one.id,
            "file": raw_file(one.id) if deep else one.file,
            "reference": shown[one.reference],
            "distortion": one.distortion,
            "sign": one.sign,
            "alpha": repr(one.alpha),
            "d_prime": repr(one.d_prime_rounded),
        })  # fmt: skip
    write_atomic(folder / "conditions.csv", text.getvalue().encode())
    facts = experiment_facts(manifest, settings, longest_side(manifest, folder))
    write_atomic(folder / "experiment.json", json.dumps(facts, indent=2).encode() + b"\n")
    script = files("eigenexp.stimuli.packages").joinpath("psychopy_script.py").read_bytes()
    return write_atomic(folder / SCRIPT, script)


def longest_side(manifest: Manifest, folder: Path) -> int:
    """Return the longer side of the largest picture, in pixels."""
    from eigenexp.stimuli.levels import read_levels

    return max(
        int(side)
        for one in manifest.references
        for side in read_levels(folder / one.file).shape[1:]
    )
