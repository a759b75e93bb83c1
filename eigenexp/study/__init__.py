"""From one picture to a study: many pictures, each its own problem; what a study keeps on disk."""

from eigenexp.study.cohort import Cohort, cohorts
from eigenexp.study.folder import StudyFolder

__all__ = ["Cohort", "StudyFolder", "cohorts"]
