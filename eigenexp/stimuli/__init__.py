"""Stimuli of an experiment: calibrated pictures, a passport for each, packages that run."""

from eigenexp.stimuli.making import LeftOut, Made, make
from eigenexp.stimuli.manifest import (
    TRIAL_COLUMNS,
    Display,
    Manifest,
    Passport,
    Prediction,
    Reference,
    read_manifest,
    read_table,
    write_manifest,
)
from eigenexp.stimuli.settings import FLAGS, FORMATS, Settings, parse_settings
from eigenexp.stimuli.sources import Observer, Source

__all__ = [
    "FLAGS",
    "FORMATS",
    "TRIAL_COLUMNS",
    "Display",
    "LeftOut",
    "Made",
    "Manifest",
    "Observer",
    "Passport",
    "Prediction",
    "Reference",
    "Settings",
    "Source",
    "make",
    "parse_settings",
    "read_manifest",
    "read_table",
    "write_manifest",
]
