"""Packages that run an experiment, or hand its stimuli to another program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eigenexp.stimuli.manifest import Manifest
from eigenexp.stimuli.packages.arrays import write_matlab, write_raw
from eigenexp.stimuli.packages.jspsych_page import write_jspsych
from eigenexp.stimuli.packages.psychopy_folder import write_psychopy
from eigenexp.stimuli.settings import Settings

__all__ = ["write_packages"]

Writer = Callable[[Manifest, Path, Settings], Path]

_WRITERS: dict[str, Writer] = {
    "psychopy": write_psychopy,
    "jspsych": write_jspsych,
    "matlab": write_matlab,
    "raw": write_raw,
}


def write_packages(manifest: Manifest, folder: Path, settings: Settings) -> dict[str, Path]:
    """Write the packages of the formats asked for, from the files that are there.

    Returns
    -------
    dict
        By format, the file to start with.
    """
    return {name: _WRITERS[name](manifest, folder, settings) for name in settings.format}
