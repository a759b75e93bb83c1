"""Stimuli of an experiment: calibrated pictures, a passport for each, packages that run."""

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

__all__ = [
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
