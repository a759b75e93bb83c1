"""What tables and dashboards show of a run's settings."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from typing import Any

import yaml

from eigenexp.experiments.config import CONFIG_MODULE, options_of
from eigenexp.experiments.noise_schema import GaussianConfig
from eigenexp.experiments.perturbations_schema import EverythingConfig
from eigenexp.experiments.schema import (
    SOLVERS,
    FitConfig,
    ImageConfig,
    OperatorConfig,
    SolverConfig,
    StudyConfig,
    TrainerConfig,
    plain_config,
)
from eigenexp.runs.overview import model_name

__all__ = ["problem_row", "shown_settings"]

_NOT_SHOWN = ("trainer.enable_progress_bar", "image.path")


def problem_row(settings: FitConfig) -> dict[str, Any]:
    """Return ``model``, ``picture`` and ``k``: what is known of a run before a result."""
    return {
        "model": model_name(settings.model),
        "picture": str(settings.image.source or settings.image.path or ""),
        "k": settings.solver.k,
    }


def shown_settings(settings: FitConfig, picture: str) -> dict[str, Any]:
    """Return the settings that dashboards show as parameters, flat, under dotted names.

    ``model``, ``picture``, ``solver.k``, and of the others those that differ from their defaults:
    MLflow prints every parameter above every picture. All of them are in the checkpoint and the
    report.

    Parameters
    ----------
    settings
        Of the run.
    picture
        The picture's name.
    """
    shown: dict[str, Any] = {
        "model": model_name(settings.model),
        "picture": picture,
        "solver.k": settings.solver.k,
    }
    usual, plain = _usual_settings(settings), plain_config(settings)
    for group in (
        "model",
        "image",
        "noise",
        "perturbations",
        "solver",
        "operator",
        "trainer",
        "study",
    ):
        there = usual.get(group, {})
        for key, value in plain[group].items():
            if value is None or (key in there and there[key] == value) or key == "_target_":
                continue
            if f"{group}.{key}" not in _NOT_SHOWN and value != picture:
                shown[f"{group}.{key}"] = value
    if settings.parallel is not None:
        shown["parallel"] = settings.parallel
    return shown


def _usual_settings(settings: FitConfig) -> dict[str, dict[str, Any]]:
    """Return the defaults of each group, as the chosen model and solver have them."""
    kind = SOLVERS.get(settings.solver.method, SolverConfig)
    usual: dict[str, dict[str, Any]] = {
        "image": asdict(ImageConfig()),
        "noise": asdict(GaussianConfig()),
        "perturbations": asdict(EverythingConfig()),
        "solver": asdict(kind()),
        "operator": asdict(OperatorConfig()),
        "trainer": asdict(TrainerConfig()),
        "study": asdict(StudyConfig()),
    }
    target = settings.model.get("_target_")
    folder = files(CONFIG_MODULE).joinpath("model")
    for name in options_of(folder):
        given = yaml.safe_load(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")) or {}
        if given.get("_target_") == target:
            usual["model"] = given
            break
    return usual
