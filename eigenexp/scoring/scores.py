"""From a table of trials to thresholds, D beside what is predicted, and the models' posterior."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eigenexp.console import aligned
from eigenexp.errors import InputError
from eigenexp.scoring.counts import Prior
from eigenexp.scoring.design import Contrast, Design, Prediction, read_design
from eigenexp.scoring.psychometric import DEFAULT_PRIOR, fit_thresholds
from eigenexp.scoring.thresholds import Difference, Thresholds
from eigenexp.scoring.trials import Answers, Trial, count_answers, read_trials
from eigenexp.scoring.weighing import ModelScore, log_responses, weigh_models
from eigenexp.stimuli.manifest import Manifest

__all__ = ["ContrastScore", "ObserverScore", "Score", "predicted_difference", "score"]


@dataclass(frozen=True)
class ContrastScore:
    """D of two distortions, measured and predicted.

    Attributes
    ----------
    contrast
        Which two.
    measured
        With its interval; None where a threshold is not known.
    predicted
        ½ ln(λ(lower)/λ(upper)) of the model whose pair they are; infinite where it does not see
        the upper one, None where nobody said.
    """

    contrast: Contrast
    measured: Difference | None
    predicted: float | None


@dataclass(frozen=True)
class ObserverScore:
    """What one observer's answers came to.

    Attributes
    ----------
    observer
        Name.
    answers
        Counted.
    thresholds
        Of the distortions.
    contrasts
        Of the design.
    """

    observer: str
    answers: Answers
    thresholds: Thresholds
    contrasts: tuple[ContrastScore, ...]


@dataclass(frozen=True)
class Score:
    """What an experiment says of the models.

    Attributes
    ----------
    design
        What was shown.
    observers
        By name, in the order in which they come in the table.
    models
        The likeliest first; empty where they cannot be weighed.
    problems
        A line for whatever was left out, and why.
    """

    design: Design
    observers: tuple[ObserverScore, ...]
    models: tuple[ModelScore, ...]
    problems: tuple[str, ...]

    def standing(self, least: float = 0.05) -> tuple[str, ...]:
        """Return the models whose posterior is at least this."""
        return tuple(one.model for one in self.models if one.posterior >= least)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each observer and distortion: its threshold, and how sure it is."""
        found = []
        for one in self.observers:
            fit = one.thresholds
            for i, name in enumerate(fit.names):
                low, high = fit.intervals[i]
                found.append({
                    "observer": one.observer,
                    "distortion": name,
                    "trials": one.answers.counts[i].num_trials,
                    "correct": int(one.answers.counts[i].correct.sum()),
                    "state": fit.states[i],
                    "log_threshold": _finite(fit.log_thresholds[i]),
                    "deviation": _finite(fit.deviations[i]),
                    "low": _finite(low),
                    "high": _finite(high),
                    "deviance": _finite(fit.deviances[i]),
                })  # fmt: skip
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values; infinities and NaN as text."""
        return {
            "manifest": self.design.manifest,
            "task": self.design.task,
            "thresholds": self.rows(),
            "contrasts": [
                {
                    "observer": one.observer,
                    "contrast": c.contrast.label,
                    "D": c.measured and c.measured.value,
                    "deviation": c.measured and c.measured.deviation,
                    "low": c.measured and c.measured.low,
                    "high": c.measured and c.measured.high,
                    "predicted": None if c.predicted is None else _plain(c.predicted),
                }
                for one in self.observers
                for c in one.contrasts
            ],
            "models": [
                {
                    "model": one.model,
                    "posterior": one.posterior,
                    "log_evidence": _plain(one.log_evidence),
                    "r_squared": _plain(one.r_squared),
                    "chi_squared": _plain(one.chi_squared),
                    "freedom": one.freedom,
                    "p_value": one.p_value,
                    "gains": [_plain(math.exp(gain)) for gain in one.log_gains],
                    "unseen": list(one.unseen),
                }
                for one in self.models
            ],
            "problems": list(self.problems),
        }

    def lines(self) -> list[str]:
        """Return tables to read: thresholds, D, models, and what was left out."""
        table = [["observer", "distortion", "trials", "right", "threshold α", "95 %"]]
        table[0][-1] = f"{self.observers[0].thresholds.confidence:.0%}"
        for row in self.rows():
            known = row["state"] == "known"
            table.append([
                row["observer"], row["distortion"], str(row["trials"]), str(row["correct"]),
                f"{math.exp(row['log_threshold']):.4g}" if known else row["state"],
                f"{math.exp(row['low']):.3g} to {math.exp(row['high']):.3g}" if known else "",
            ])  # fmt: skip
        lines = aligned(table, {2, 3, 4})
        contrasts = [(o.observer, c) for o in self.observers for c in o.contrasts]
        if contrasts:
            table = [["observer", "D, nats", "measured", "interval", "predicted"]]
            for observer, c in contrasts:
                m = c.measured
                table.append([
                    observer, c.contrast.label,
                    f"{m.value:.2f} ± {m.deviation:.2f}" if m else "unknown",
                    f"{m.low:.2f} to {m.high:.2f}" if m else "",
                    "" if c.predicted is None else f"{c.predicted:.2f}",
                ])  # fmt: skip
            lines += ["", *aligned(table, {2, 4})]
        if self.models:
            table = [["model", "posterior", "ln evidence", "R²", "χ²", "p"]]
            for one in self.models:
                table.append([
                    one.model, f"{one.posterior:.4f}", f"{one.log_evidence:.1f}",
                    f"{one.r_squared:.3f}", f"{one.chi_squared:.1f} of {one.freedom}",
                    f"{one.p_value:.2g}",
                ])  # fmt: skip
            lines += ["", *aligned(table, {1, 2, 3, 4, 5})]
        return lines + [f"note: {problem}" for problem in self.problems]


def _plain(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def score(
    trials: str | os.PathLike[str] | Iterable[Trial],
    stimuli: str | os.PathLike[str] | Manifest | Design,
    *,
    predictions: Sequence[Prediction] | None = None,
    prior: Prior = DEFAULT_PRIOR,
    confidence: float = 0.95,
    engine: str = "grid",
) -> Score:
    r"""Score the models of an experiment by its trials.

    Parameters
    ----------
    trials
        A table (CSV) or its rows.
    stimuli
        The folder that was shown, its manifest, or a design.
    predictions
        Of the models weighed; by default those of the manifest.
    prior, confidence, engine
        As in :func:`~eigenexp.scoring.fit_thresholds`.

    Raises
    ------
    InputError
        When the table cannot be used at all; what can be left out is, with a line in ``problems``.

    Examples
    --------
    >>> result = ee.scoring.score("trials.csv", "stimuli")
    >>> len(result.lines()) > 0
    True
    """
    design = stimuli if isinstance(stimuli, Design) else read_design(stimuli)
    if predictions is not None:
        design = design.with_predictions(predictions)
    problems: list[str] = []
    if isinstance(trials, str | os.PathLike):
        rows, problems = read_trials(trials, design)
    else:
        rows = list(trials)
        _check(rows, design)
    found = []
    for answers in count_answers(rows, design):
        fit = fit_thresholds(
            answers.counts,
            design.task,
            design.alternatives,
            prior=prior,
            confidence=confidence,
            engine=engine,
        )
        problems += _unknown(answers, fit)
        contrasts = tuple(_contrast(contrast, fit, design) for contrast in design.contrasts)
        found.append(ObserverScore(answers.observer, answers, fit, contrasts))
    models: tuple[ModelScore, ...] = ()
    try:
        models = weigh_models([one.thresholds for one in found], design)
    except InputError as error:
        problems.append(str(error))
    left = [one.model for one in design.predictions if one.model not in {m.model for m in models}]
    if models and left:
        problems.append(
            f"models without a prediction for every distortion with a threshold are left out: "
            f"{', '.join(left)}"
        )
    problems += [
        f"model {one.model}: d′ = 0 at every level of {', '.join(one.unseen)}, which is seen; give "
        "it a floor under its noise (noise=pixel_floor)"
        for one in models
        if one.unseen
    ]
    return Score(design, tuple(found), models, tuple(problems))


def _check(rows: Sequence[Trial], design: Design) -> None:
    known = set(design.stimuli)
    unknown = next((one.stimulus for one in rows if one.stimulus not in known), None)
    if unknown is not None:
        raise InputError(f"trials: expected stimuli of the design, got {unknown!r}")
    if not rows:
        raise InputError("trials: expected at least one, got none")


def _unknown(answers: Answers, fit: Thresholds) -> list[str]:
    """Say which thresholds the answers do not tell, and which cells are empty."""
    lines = []
    for counts, state in zip(answers.counts, fit.states, strict=True):
        which = f"observer {answers.observer}, {counts.name}"
        low, high = counts.amplitudes.min(), counts.amplitudes.max()
        if state == "empty":
            lines.append(f"{which}: no trial; left out")
            continue
        empty = int((counts.trials == 0).sum())
        if empty:
            lines.append(f"{which}: {empty} of {len(counts.trials)} stimuli have no trial")
        right = f"{int(counts.correct.sum())} of {counts.num_trials} right"
        if state == "below":
            lines.append(f"{which}: {right}, the threshold is below the levels shown, which begin "
                         f"at α = {low:.3g}; left out")  # fmt: skip
        elif state == "above":
            lines.append(f"{which}: {right}, the threshold is above the levels shown, which end at "
                         f"α = {high:.3g}; left out")  # fmt: skip
        elif state == "unknown":
            lines.append(f"{which}: {right}, too few trials to tell a threshold; left out")
    return lines


def _contrast(contrast: Contrast, fit: Thresholds, design: Design) -> ContrastScore:
    measured = None
    if all(fit.states[fit.names.index(n)] == "known" for n in (contrast.upper, contrast.lower)):
        measured = fit.difference(contrast.upper, contrast.lower)
    own = next((one for one in design.predictions if one.model == contrast.model), None)
    predicted = None if own is None else _linear(own, contrast)
    return ContrastScore(contrast, measured, predicted)


def _linear(prediction: Prediction, contrast: Contrast) -> float | None:
    upper, lower = (prediction.eigenvalues.get(n) for n in (contrast.upper, contrast.lower))
    if upper is None or lower is None or not lower > 0:
        return None
    return 0.5 * math.log(lower / upper) if upper > 0 else math.inf


def predicted_difference(
    design: Design, prediction: Prediction, contrast: Contrast, log_gain: float
) -> float | None:
    """Return D of an observer made of a model, at finite amplitudes and after rounding.

    Parameters
    ----------
    design, prediction
        What is shown, and what the model says of it.
    contrast
        Which two distortions.
    log_gain
        ln g of the observer: where d′ is not proportional to α, D depends on it.

    Returns
    -------
    float or None
        Nats; None where the model does not see one of the two.
    """
    responses = log_responses(design, prediction)
    if contrast.upper not in responses or contrast.lower not in responses:
        return None
    upper, lower = (responses[n].threshold(log_gain) for n in (contrast.upper, contrast.lower))
    return upper - lower
