"""Which model the thresholds speak for: a Gaussian likelihood with one free gain a model.

A model says d′ of every stimulus up to the observer's gain g: the predicted threshold of a
distortion is the amplitude at which g·d′ = 1. Measured log thresholds are Gaussian about those
predicted, with the covariance of their posterior; ln g is flat, and is integrated over for each
observer. Models are equally likely before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import chi2

from eigenexp.errors import InputError
from eigenexp.scoring.design import Design, Prediction
from eigenexp.scoring.thresholds import Thresholds

__all__ = ["ModelScore", "Response", "gain_misfit", "log_responses", "weigh_models"]

Array = NDArray[np.float64]

_BLIND = 1e-9
"""Of a model's largest d′: a distortion it answers less to is one that it does not see."""


@dataclass(frozen=True)
class Response:
    """ln d′ of one distortion over ln α, at gain 1.

    Between the levels straight, beyond them of slope 1, as for small changes.
    """

    log_amplitudes: Array
    log_d_primes: Array

    def threshold(self, log_gain: float) -> float:
        """Return ln α at which g·d′ = 1."""
        x, y = self.log_amplitudes, self.log_d_primes + log_gain
        if y[0] >= 0:
            return float(x[0] - y[0])
        if y[-1] <= 0:
            return float(x[-1] - y[-1])
        return float(np.interp(0.0, y, x))

    def __call__(self, log_amplitude: float) -> float:
        """Return ln d′ at an amplitude, at gain 1."""
        x, y = self.log_amplitudes, self.log_d_primes
        inside = float(np.interp(log_amplitude, x, y))
        return float(inside + min(log_amplitude - x[0], 0.0) + max(log_amplitude - x[-1], 0.0))


@dataclass(frozen=True)
class ModelScore:
    """How well one model accounts for the thresholds.

    Attributes
    ----------
    model
        Its name.
    posterior
        Of the models weighed, all equally likely before.
    log_evidence
        ln of the likelihood of all thresholds, gains integrated over; −∞ where the model does not
        see a distortion that an observer does.
    r_squared
        Share of the variance of the log thresholds, weighted by their precision, about their mean,
        that the prediction at the best gains accounts for; below 0 where it does worse than that
        mean.
    chi_squared, freedom, p_value
        Misfit at the best gains, its degrees of freedom, and the chance of a larger one were the
        model right: a model may have the highest posterior and be wrong.
    log_gains
        Best ln g of each observer.
    predicted
        For each observer, ln T of the known distortions at that gain.
    unseen
        Distortions with a known threshold that the model does not see.
    """

    model: str
    posterior: float
    log_evidence: float
    r_squared: float
    chi_squared: float
    freedom: int
    p_value: float
    log_gains: tuple[float, ...]
    predicted: tuple[Array, ...]
    unseen: tuple[str, ...]


def log_responses(design: Design, prediction: Prediction) -> dict[str, Response]:
    """Return the response of a model to each distortion that it sees and that was predicted.

    Signs of one amplitude are averaged in ln d′; where d′ falls with the amplitude, it is held.
    """
    finite = prediction.d_primes[np.isfinite(prediction.d_primes)]
    least = _BLIND * float(finite.max(initial=0.0))
    found = {}
    for name in design.names:
        places = design.places(name)
        d = prediction.d_primes[places]
        used = np.isfinite(d) & (d > least)
        if not used.any():
            continue
        levels = np.log(design.amplitudes[places][used])
        x, which = np.unique(levels.round(12), return_inverse=True)
        y = np.bincount(which, np.log(d[used])) / np.bincount(which)
        found[name] = Response(x, np.maximum.accumulate(y + 1e-9 * np.arange(len(y))))
    return found


def weigh_models(
    observers: Sequence[Thresholds],
    design: Design,
    predictions: Sequence[Prediction] | None = None,
) -> tuple[ModelScore, ...]:
    """Return the models' scores, the likeliest first.

    Parameters
    ----------
    observers
        Thresholds of each, of the design's distortions.
    design
        What was shown.
    predictions
        Of the models; by default those of the design.

    Raises
    ------
    InputError
        When fewer than two models predict every distortion with a known threshold, no observer has
        two known thresholds, or no model sees what the observers see.
    """
    usable = [one for one in observers if len(one.known) >= 2]
    if not usable:
        raise InputError(
            "models: expected an observer with two known thresholds, got none; a free gain fits one"
        )
    needed = {one.names[i] for one in usable for i in one.known}
    given = design.predictions if predictions is None else tuple(predictions)
    complete = [one for one in given if not _unsaid(design, one, needed)]
    if len(complete) < 2:
        raise InputError(
            "models: expected at least two that predict every distortion with a threshold, got "
            f"{len(complete)} of {len(given)}; name them: model=a,b"
        )
    found = [_score(usable, design, one) for one in complete]
    evidences = np.array([one.log_evidence for one in found])
    if np.isneginf(evidences).all():
        raise InputError(
            "models: expected one that sees what the observers see, got none; give each a floor "
            "under its noise (noise=pixel_floor)"
        )
    posteriors = np.exp(evidences - logsumexp(evidences))
    weighed = [
        ModelScore(**{**vars(one), "posterior": float(p)})
        for one, p in zip(found, posteriors, strict=True)
    ]
    return tuple(sorted(weighed, key=lambda one: -one.log_evidence))


def _unsaid(design: Design, prediction: Prediction, needed: set[str]) -> bool:
    return any(np.isnan(prediction.d_primes[design.places(name)]).all() for name in needed)


def _score(observers: Sequence[Thresholds], design: Design, prediction: Prediction) -> ModelScore:
    responses = log_responses(design, prediction)
    seen = [[one.names[i] for i in one.known] for one in observers]
    unseen = tuple(dict.fromkeys(n for names in seen for n in names if n not in responses))
    freedom = sum(len(names) - 1 for names in seen)
    if unseen:
        nothing = tuple(np.full(len(names), np.inf) for names in seen)
        gains = (float("nan"),) * len(seen)
        return ModelScore(prediction.model, 0.0, -np.inf, -np.inf, np.inf, freedom, 0.0, gains,
                          nothing, unseen)  # fmt: skip
    evidence, misfit, spread, log_gains, predicted = 0.0, 0.0, 0.0, [], []
    for one, names in zip(observers, seen, strict=True):
        places = list(one.known)
        measured = one.log_thresholds[places]
        covariance = one.covariance[np.ix_(places, places)]
        fit = _Fit(
            measured, np.asarray(np.linalg.inv(covariance)), [responses[name] for name in names]
        )
        evidence += fit.log_evidence()
        misfit += fit.misfit(fit.best)
        log_gains.append(fit.best)
        predicted.append(fit.predicted(fit.best))
        spread += fit.about_mean()
    return ModelScore(
        model=prediction.model,
        posterior=0.0,
        log_evidence=evidence,
        r_squared=1 - misfit / spread if spread > 0 else float("nan"),
        chi_squared=misfit,
        freedom=freedom,
        p_value=float(chi2.sf(misfit, freedom)),
        log_gains=tuple(log_gains),
        predicted=tuple(predicted),
        unseen=(),
    )


def gain_misfit(measured: Array, precision: Array, responses: Sequence[Response]) -> float:
    """Return rᵀPr at the best gain, r the log thresholds measured less those predicted."""
    fit = _Fit(measured, precision, responses)
    return fit.misfit(fit.best)


class _Fit:
    """One observer's thresholds against one model, over the gain."""

    def __init__(self, measured: Array, precision: Array, responses: Sequence[Response]) -> None:
        self._measured, self._precision, self._responses = measured, precision, responses
        # Each distortion alone asks for this gain; the best one lies among them.
        asked = [-r(float(t)) for r, t in zip(responses, measured, strict=True)]
        self._deviation = float(precision.sum() ** -0.5)
        low, high = min(asked) - self._deviation, max(asked) + self._deviation
        grid = np.linspace(low, high, 64)
        start = grid[int(np.argmin([self.misfit(g) for g in grid]))]
        step = (high - low) / 63
        self.best = float(
            minimize_scalar(
                self.misfit, bounds=(start - step, start + step), method="bounded",
                options={"xatol": 1e-9},
            ).x
        )  # fmt: skip

    def predicted(self, log_gain: float) -> Array:
        return np.array([response.threshold(log_gain) for response in self._responses])

    def misfit(self, log_gain: float) -> float:
        off = self._measured - self.predicted(log_gain)
        return float(off @ self._precision @ off)

    def about_mean(self) -> float:
        """Return the misfit of a single threshold for all, the best one."""
        weights = self._precision.sum(axis=0)
        off = self._measured - (weights @ self._measured) / weights.sum()
        return float(off @ self._precision @ off)

    def log_evidence(self) -> float:
        grid = self.best + self._deviation * np.linspace(-8, 8, 161)
        logs = np.array([-0.5 * self.misfit(g) for g in grid])
        _, log_det = np.linalg.slogdet(self._precision / (2 * np.pi))
        return float(logsumexp(logs) + np.log(grid[1] - grid[0]) + 0.5 * log_det)
