"""From answers back to models: thresholds, the score of each model, observers made of models."""

from eigenexp.scoring.counts import Counts, Prior
from eigenexp.scoring.curves import TaskCurve, task_curve
from eigenexp.scoring.psychometric import ENGINES, fit_thresholds
from eigenexp.scoring.thresholds import Difference, Thresholds

__all__ = [
    "ENGINES",
    "Counts",
    "Difference",
    "Prior",
    "TaskCurve",
    "Thresholds",
    "fit_thresholds",
    "task_curve",
]
