"""Observers made of a model: its d′ of the stimuli, a gain, lapses; and what they answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from eigenexp.errors import InputError
from eigenexp.scoring.counts import Prior
from eigenexp.scoring.curves import TaskCurve, task_curve
from eigenexp.scoring.design import Design, Prediction
from eigenexp.scoring.psychometric import DEFAULT_PRIOR
from eigenexp.scoring.trials import Trial
from eigenexp.scoring.weighing import Response, gain_misfit, log_responses

__all__ = ["Observer", "Separation", "expected_covariance", "fitting_gain", "separate", "simulate"]

Array = NDArray[np.float64]

LAPSES = 0.01
_MOST_DEVIATION = 0.75
"""Nats: what is known less well is a threshold that the answers do not tell."""


@dataclass(frozen=True)
class Observer:
    """A model that answers.

    Parameters
    ----------
    prediction
        What the model says of each stimulus.
    gain
        g: the observer's d′ is g times the model's.
    lapses
        Share of the trials answered without looking.

    Raises
    ------
    InputError
        When the gain is not above 0, or the lapses are no share.
    """

    prediction: Prediction
    gain: float
    lapses: float = LAPSES

    def __post_init__(self) -> None:
        if not (self.gain > 0 and math.isfinite(self.gain)):
            raise InputError(f"gain: expected a number above 0, got {self.gain}")
        if not 0 <= self.lapses < 1:
            raise InputError(f"lapses: expected a share from 0 up to 1, got {self.lapses}")

    def shares(self, curve: TaskCurve) -> Array:
        """Return the chance ``(S,)`` of a right answer to each stimulus."""
        seen = curve(_log(self.gain * self.prediction.d_primes))
        return np.asarray(self.lapses * curve.chance + (1 - self.lapses) * seen)


def _log(values: Array) -> Array:
    return np.log(np.maximum(values, 1e-300))


def fitting_gain(design: Design, prediction: Prediction) -> float:
    """Return the gain of an observer for whom the levels were chosen well.

    The one at which the answers tell most about the thresholds, each counted by the logarithm of
    its information: what no gain brings into the levels shown does not decide.

    Raises
    ------
    InputError
        When the model does not see any stimulus.
    """
    curve = task_curve(design.task, design.alternatives)
    names = tuple(log_responses(design, prediction))
    if not names:
        raise InputError(
            f"model {prediction.model}: expected one that sees a stimulus, got d′ = 0 for all; "
            "give it a floor under its noise (noise=pixel_floor)"
        )
    log_d = _log(prediction.d_primes)
    finite = log_d[np.isfinite(log_d) & (log_d > -600)]
    gains = np.arange(-finite.max() - 2, -finite.min() + 3, 0.05)
    told = np.zeros(len(gains))
    for name in names:
        places = design.places(name)
        information = _information(curve, log_d[places][None, :] + gains[:, None], LAPSES)
        told += np.log(information.mean(axis=1) + 1e-3)
    return float(np.exp(gains[int(told.argmax())]))


def _information(curve: TaskCurve, log_d: Array, lapses: float) -> Array:
    """Return the Fisher information of one answer about ln T."""
    share = lapses * curve.chance + (1 - lapses) * curve(log_d)
    slope = (1 - lapses) * curve.slope(log_d)
    return np.asarray(slope**2 / np.maximum(share * (1 - share), 1e-12))


def simulate(
    design: Design,
    observers: Sequence[Observer],
    trials: int,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
) -> list[Trial]:
    """Return what observers answer, in a random order of their own, as trials of an experiment.

    Parameters
    ----------
    design
        What is shown.
    observers
        Who answers.
    trials
        A distortion, spread evenly over its stimuli.
    seed
        Of the answers and orders; the same gives the same trials.
    names
        Of the observers; by default their models' names, numbered where one comes twice.

    Raises
    ------
    InputError
        When ``trials`` is below 1, or there are not as many names as observers.
    """
    if trials < 1:
        raise InputError(f"trials: expected at least 1 a distortion, got {trials}")
    called = list(names) if names is not None else _names(observers)
    if len(set(called)) != len(observers):
        raise InputError(f"names: expected {len(observers)} different ones, got {called}")
    curve = task_curve(design.task, design.alternatives)
    rows = []
    for number, (name, observer) in enumerate(zip(called, observers, strict=True)):
        rng = np.random.default_rng([seed, number])
        order = []
        for distortion in design.names:
            places = design.places(distortion)
            repeats, rest = divmod(trials, len(places))
            order += [*np.repeat(places, repeats), *rng.choice(places, rest, replace=False)]
        shown = rng.permutation(np.array(order, dtype=np.int64))
        right = rng.random(len(shown)) < observer.shares(curve)[shown]
        count = round(1 / curve.chance)
        intervals = rng.integers(1, count + 1, len(shown))
        others = 1 + (intervals - 1 + rng.integers(1, count, len(shown))) % count
        for i, place in enumerate(shown):
            answer = intervals[i] if right[i] else others[i]
            rows.append(
                Trial(observer=name, trial=i + 1, stimulus=design.stimuli[place],
                      correct=bool(right[i]), response=str(answer), interval=int(intervals[i]),
                      manifest=design.manifest)
            )  # fmt: skip
    return rows


def _names(observers: Sequence[Observer]) -> list[str]:
    models = [one.prediction.model for one in observers]
    seen: dict[str, int] = {}
    names = []
    for model in models:
        seen[model] = seen.get(model, 0) + 1
        names.append(model if models.count(model) == 1 else f"{model}-{seen[model]}")
    return names


@dataclass(frozen=True)
class Separation:
    """How many trials tell one model from the others.

    Attributes
    ----------
    model
        The one that is true.
    trials
        A distortion, after which it has the highest posterior with the chance asked for; None
        where no number of trials is enough.
    rival
        The model that is hardest to tell from it.
    distance
        Between the two, in standard deviations of the log thresholds, after 100 trials.
    deviation
        Of D of the first contrast after 100 trials, nats; None without a contrast.
    """

    model: str
    trials: int | None
    rival: str
    distance: float
    deviation: float | None


def expected_covariance(
    design: Design,
    observer: Observer,
    names: Sequence[str],
    trials: float,
    prior: Prior = DEFAULT_PRIOR,
) -> Array:
    """Return the covariance that log thresholds will have, by Fisher information and prior.

    Parameters
    ----------
    design, observer
        What is shown to whom.
    names
        ``K`` distortions.
    trials
        A distortion.
    prior
        Of :func:`~eigenexp.scoring.fit_thresholds`.
    """
    curve = task_curve(design.task, design.alternatives)
    count = len(names)
    # Unknown: ln T and the exponent's own part of each distortion, the common part, lapses.
    information = np.diag(
        [1e-9] * count
        + [prior.distortion_spread**-2] * count
        + [prior.exponent_spread**-2, (prior.most_lapses / 3) ** -2]
    )
    for i, name in enumerate(names):
        places = design.places(name)
        log_d = _log(observer.gain * observer.prediction.d_primes[places])
        share = observer.lapses * curve.chance + (1 - observer.lapses) * curve(log_d)
        slope = (1 - observer.lapses) * curve.slope(log_d)
        rows = np.zeros((len(places), 2 * count + 2))
        rows[:, i] = -slope
        rows[:, count + i] = rows[:, -2] = slope * np.maximum(log_d, -30)
        rows[:, -1] = curve.chance - curve(log_d)
        weights = trials / len(places) / np.maximum(share * (1 - share), 1e-12)
        information += (rows * weights[:, None]).T @ rows
    return np.asarray(np.linalg.inv(information)[:count, :count])


def separate(
    design: Design,
    observers: Sequence[Observer],
    chance: float = 0.95,
    most_trials: int = 100_000,
) -> tuple[Separation, ...]:
    """Say how many trials tell each of several models from the others.

    A model i is true and answers with its gain; the log thresholds that it leads to are Gaussian
    with the covariance expected. The others then have the highest posterior with a chance of at
    most Σ Φ(−δ/2), δ the distance to each at its best gain.

    Parameters
    ----------
    design
        What is shown.
    observers
        One a model, at least two.
    chance
        Wanted of the highest posterior being the true model's.
    most_trials
        A distortion, considered.

    Raises
    ------
    InputError
        When there are fewer than two, or ``chance`` is no share.
    """
    if len(observers) < 2:
        raise InputError(f"models: expected at least two to tell apart, got {len(observers)}")
    if not 0 < chance < 1:
        raise InputError(f"chance: expected a share between 0 and 1, got {chance}")
    return tuple(_separate(design, one, observers, chance, most_trials) for one in observers)


def _separate(
    design: Design, true: Observer, observers: Sequence[Observer], chance: float, most: int
) -> Separation:
    own = log_responses(design, true.prediction)
    names = tuple(own)
    thresholds = np.array([own[name].threshold(math.log(true.gain)) for name in names])
    rivals = [one for one in observers if one is not true]
    responses = [log_responses(design, one.prediction) for one in rivals]

    def distances(trials: float) -> Array:
        covariance = expected_covariance(design, true, names, trials)
        told = np.flatnonzero(np.diag(covariance) < _MOST_DEVIATION**2)
        if len(told) < 2:
            return np.zeros(len(rivals))
        precision = np.asarray(np.linalg.inv(covariance[np.ix_(told, told)]))
        some = [names[i] for i in told]
        return np.array([_distance(thresholds[told], precision, some, r) for r in responses])

    def missed(trials: float) -> float:
        return float(ndtr(-distances(trials) / 2).sum())

    at_100 = distances(100.0)
    hardest = int(at_100.argmin())
    found: int | None = None
    if missed(most) <= 1 - chance:
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if missed(middle) <= 1 - chance else (middle + 1, high)
        found = low
    deviation = None
    if design.contrasts and {design.contrasts[0].upper, design.contrasts[0].lower} <= set(names):
        first = design.contrasts[0]
        weights = np.array([float(n == first.upper) - float(n == first.lower) for n in names])
        covariance = expected_covariance(design, true, names, 100.0)
        deviation = float(np.sqrt(weights @ covariance @ weights))
    rival = rivals[hardest].prediction.model
    return Separation(true.prediction.model, found, rival, float(at_100[hardest]), deviation)


def _distance(
    thresholds: Array, precision: Array, names: Sequence[str], responses: Mapping[str, Response]
) -> float:
    if any(name not in responses for name in names):
        return math.inf
    return math.sqrt(gain_misfit(thresholds, precision, [responses[name] for name in names]))
