"""The folder as a page of jsPsych 8, which needs a browser alone: no network, no installation."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import jinja2

from eigenexp.stimuli.levels import read_levels
from eigenexp.stimuli.manifest import Manifest
from eigenexp.stimuli.packages.psychopy_folder import experiment_facts, longest_side
from eigenexp.stimuli.settings import Settings
from eigenexp.storage.atomic import write_atomic

__all__ = ["PAGE", "write_jspsych"]

PAGE = "experiment.html"
LIBRARY = (
    "jspsych.js",
    "plugin-preload.js",
    "plugin-image-keyboard-response.js",
    "plugin-html-button-response.js",
    "LICENSE.txt",
    "VERSIONS.txt",
)
"""jsPsych's own files, with their licence."""
REPEATS = 10
"""Of every stimulus, where the page's address does not say ``?repeats=…``."""


def write_jspsych(manifest: Manifest, folder: Path, settings: Settings) -> Path:
    """Write ``experiment.html`` and ``jspsych/`` beside the pictures, which it preloads by name.

    Returns
    -------
    Path
        Of the page.
    """
    room = files("eigenexp.stimuli.packages")
    for name in LIBRARY:
        target = folder / "jspsych" / name
        target.parent.mkdir(exist_ok=True)
        write_atomic(target, room.joinpath("jspsych", name).read_bytes(), sync=False)
    references = {one.id: one.file for one in manifest.references}
    sizes = {one.id: read_levels(folder / one.file).shape[1:] for one in manifest.references}
    stimuli = [
        {
            "id": one.id,
            "file": one.file,
            "reference": references[one.reference],
            "height": sizes[one.reference][0],
            "width": sizes[one.reference][1],
        }
        for one in manifest.stimuli
    ]
    facts = {
        **experiment_facts(manifest, settings, longest_side(manifest, folder)),
        "repeats": REPEATS,
        "files": [*references.values(), *(one.file for one in manifest.stimuli)],
        "stimuli": stimuli,
    }
    template = room.joinpath("experiment.html.jinja").read_text(encoding="utf-8")
    page = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            manifest=manifest.id,
            style=room.joinpath("experiment.css").read_text(encoding="utf-8"),
            script=room.joinpath("experiment.js").read_text(encoding="utf-8"),
            # Inside a script element only "<" could end it.
            facts=json.dumps(facts, ensure_ascii=True).replace("<", "\\u003c"),
        )
    )
    return write_atomic(folder / PAGE, page.encode())
