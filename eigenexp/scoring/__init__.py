"""From answers back to models: thresholds, the score of each model, observers made of models."""

from eigenexp.scoring.counts import Counts, Prior
from eigenexp.scoring.curves import TaskCurve, task_curve
from eigenexp.scoring.design import Contrast, Design, Prediction, read_design
from eigenexp.scoring.looking import predict
from eigenexp.scoring.observers import (
    Observer,
    Separation,
    expected_covariance,
    fitting_gain,
    separate,
    simulate,
)
from eigenexp.scoring.plane import (
    PlaneAnswers,
    PlaneComparison,
    PlaneFit,
    compare_plane,
    fit_plane,
    log_kappa,
    plane_matrix,
)
from eigenexp.scoring.psychometric import ENGINES, fit_thresholds
from eigenexp.scoring.psyphy import PsyphyTrials, read_psyphy
from eigenexp.scoring.scores import (
    ContrastScore,
    ObserverScore,
    Score,
    predicted_difference,
    score,
)
from eigenexp.scoring.thresholds import Difference, Thresholds
from eigenexp.scoring.trials import Answers, Trial, count_answers, read_trials, write_trials
from eigenexp.scoring.weighing import ModelScore, Response, log_responses, weigh_models

__all__ = [
    "ENGINES",
    "Answers",
    "Contrast",
    "ContrastScore",
    "Counts",
    "Design",
    "Difference",
    "ModelScore",
    "Observer",
    "ObserverScore",
    "PlaneAnswers",
    "PlaneComparison",
    "PlaneFit",
    "Prediction",
    "Prior",
    "PsyphyTrials",
    "Response",
    "Score",
    "Separation",
    "TaskCurve",
    "Thresholds",
    "Trial",
    "compare_plane",
    "count_answers",
    "expected_covariance",
    "fit_plane",
    "fit_thresholds",
    "fitting_gain",
    "log_kappa",
    "log_responses",
    "plane_matrix",
    "predict",
    "predicted_difference",
    "read_design",
    "read_psyphy",
    "read_trials",
    "score",
    "separate",
    "simulate",
    "task_curve",
    "weigh_models",
    "write_trials",
]
