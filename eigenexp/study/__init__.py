"""From one picture to a study: many pictures, each its own problem; what a study keeps on disk."""

from eigenexp.study.cohort import Cohort
from eigenexp.study.folder import StudyFolder
from eigenexp.study.planning import cohorts

__all__ = ["Cohort", "StudyFolder", "cohorts"]
