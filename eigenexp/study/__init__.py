"""From one picture to a study: many pictures, each its own problem, on any number of processes."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eigenexp.study.average import AverageModule
    from eigenexp.study.cohort import Cohort, cohorts
    from eigenexp.study.folder import StudyFolder
    from eigenexp.study.module import StudyModule
    from eigenexp.study.sources import PictureSource, find_pictures, picture_sources

_HOMES = {
    "AverageModule": "average",
    "Cohort": "cohort",
    "PictureSource": "sources",
    "StudyFolder": "folder",
    "StudyModule": "module",
    "cohorts": "cohort",
    "find_pictures": "sources",
    "picture_sources": "sources",
}

__all__ = [
    "AverageModule",
    "Cohort",
    "PictureSource",
    "StudyFolder",
    "StudyModule",
    "cohorts",
    "find_pictures",
    "picture_sources",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eigenexp.study' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"eigenexp.study.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
