"""Thresholds from counts of correct answers: one observer, several distortions, one posterior.

An observer is right in a share p = (1 − l) P(d′) + l γ of the trials, where P is the task's curve
over d′, γ its chance, l the lapses, and d′ = (α / T)^b on the amplitude α: T, the threshold, is the
amplitude at d′ = 1. A linear observer has b = 1, whatever the task.

**Why the exponents of an observer's distortions are tied.** A threshold and its own exponent are
estimated from the same few trials, so that a fit of each distortion alone pays for its exponent
twice: once a threshold. Their common part leaves D = ln T(bottom) − ln T(top) unchanged. Therefore
ln b = s + ε, s of the observer, ε of the distortion and small, and the lapses are the observer's.

**Why psignifit is not the default.** It is GPL-3, so never a dependency, and fits one function at
a time. In 200 simulated experiments (2AFC, 200 trials a distortion at 6 levels, D = 4.417, 1 %
lapses; ``benchmarks/scoring.py``) its 95 % intervals of D, the differences of its two marginal
posteriors, were 1.76 times as wide as the ideal ones, 3.92 Cramér–Rao deviations with b and l
known, and contained the truth in 199; these were 1.13 times as wide and contained it in 191. It
took 1.98 s of one core an experiment, this 0.02 s. ``engine="psignifit"`` asks it.

The posterior is summed over a grid, no sampling: the same counts give the same digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eigenexp.errors import InputError
from eigenexp.scoring.counts import Counts, Prior
from eigenexp.scoring.curves import task_curve
from eigenexp.scoring.grid import GridPosterior, central_interval, wide_axes
from eigenexp.scoring.thresholds import Thresholds

__all__ = ["ENGINES", "fit_thresholds"]

ENGINES = ("grid", "psignifit")
"""Ways to a posterior: this package's, and psignifit's where it is installed."""

DEFAULT_PRIOR = Prior()


def fit_thresholds(
    counts: Sequence[Counts],
    task: str = "2afc",
    alternatives: int = 3,
    *,
    prior: Prior = DEFAULT_PRIOR,
    confidence: float = 0.95,
    engine: str = "grid",
) -> Thresholds:
    """Return the log thresholds of one observer's distortions.

    Parameters
    ----------
    counts
        One a distortion.
    task, alternatives
        As in :func:`eigenexp.analysis.units.fraction_correct`.
    prior
        Of exponents and lapses; that of ln T is flat from two nats below the lowest level of a
        distortion to two above its highest.
    confidence
        Of the intervals.
    engine
        One of :data:`ENGINES`. psignifit has priors of its own, and fits each distortion alone.

    Raises
    ------
    InputError
        When there are no counts, a name comes twice, ``confidence`` is not between 0 and 1, or the
        engine is not known or not installed.

    Examples
    --------
    >>> seen = Counts("top", [0.5, 1, 2, 4], [50, 50, 50, 50], [32, 38, 46, 49])
    >>> fit = fit_thresholds([seen])
    >>> f"{fit.log_thresholds[0]:.2f} ± {fit.deviations[0]:.2f}"
    '-0.08 ± 0.22'
    """
    if not counts:
        raise InputError("counts: expected at least one distortion, got none")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a share between 0 and 1, got {confidence}")
    names = tuple(one.name for one in counts)
    if len(set(names)) < len(names):
        raise InputError(f"counts: expected each distortion once, got {', '.join(names)}")
    if engine not in ENGINES:
        raise InputError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    curve = task_curve(task, alternatives)
    # The first look finds where the posterior is, the second sums it there finely.
    first = GridPosterior(counts, curve, prior, wide_axes(counts, prior))
    states, intervals = first.states(confidence)
    if engine == "psignifit":
        from eigenexp.scoring.psignifit_engine import fit_each

        return fit_each(counts, curve, states, confidence)
    found = GridPosterior(counts, curve, prior, first.narrowed(states))
    means, covariance = found.moments()
    for i, state in enumerate(states):
        if state == "known":
            intervals[i] = central_interval(found.axes.thresholds[i], found.marginal(i), confidence)
        else:
            means[i] = np.nan
            covariance[i, :] = covariance[:, i] = np.nan
    return Thresholds(
        names=names,
        log_thresholds=means,
        covariance=covariance,
        intervals=intervals,
        states=states,
        exponent=float(np.exp(found.shared_mean(0))),
        lapses=found.shared_mean(1),
        deviances=found.deviances(),
        confidence=confidence,
        task=task,
        posterior=found,
    )
