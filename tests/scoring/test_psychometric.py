"""Thresholds from answers: calibrated intervals, what answers cannot tell, wrong input."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.special import ndtr

import eigenexp as ee
from eigenexp.errors import InputError
from tests.scoring.experiments import D, answers, differences, ideal_deviation

scoring = ee.scoring
SIX = [50] * 6


def covered(found: list[ee.scoring.Difference]) -> int:
    return sum(one.low <= D <= one.high for one in found)


def width(found: list[ee.scoring.Difference]) -> float:
    return float(np.mean([one.high - one.low for one in found]))


def test_intervals_of_d_contain_the_truth_and_are_nearly_the_ideal_ones() -> None:
    found = differences(trials=200, experiments=60)
    assert covered(found) >= 54  # 57 expected; fewer in 1 of 20 suites, were it 54 of 60
    assert width(found) <= 1.3 * 3.92 * ideal_deviation(200)


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "deviation"), [(100, 0.28), (200, 0.19), (400, 0.14)])
def test_200_experiments_are_calibrated_and_as_precise_as_stated(
    trials: int, deviation: float
) -> None:
    found = differences(trials, experiments=200, seed=1)
    assert covered(found) >= 185
    assert width(found) <= 1.3 * 3.92 * ideal_deviation(trials)
    # With exponents and lapses known .273, .193 and .136; of 200 experiments known to 5 %.
    spread = float(np.std([one.value for one in found]))
    assert spread <= 1.17 * deviation
    assert abs(np.mean([one.value for one in found]) - D) <= 3 * deviation / np.sqrt(200)


def test_posterior_is_that_of_a_plain_sum_over_every_parameter() -> None:
    counts = answers("top", 1.3, 120, np.random.default_rng(5))
    prior = scoring.Prior(distortion_spread=0.1)
    fit = scoring.fit_thresholds([counts], prior=prior)

    # Written anew: p(T | counts), every other parameter integrated, on axes of its own.
    t = np.linspace(np.log(counts.amplitudes[0]) - 2, np.log(counts.amplitudes[-1]) + 2, 200)
    lapses = np.linspace(0, prior.most_lapses, 21)
    # One distortion: its exponent varies by both spreads together.
    spread = np.hypot(prior.exponent_spread, prior.distortion_spread)
    b = np.linspace(-3, 3, 61) * spread
    p = np.stack([
        (1 - lapses) * ndtr(np.exp(np.exp(b)[:, None] * (x - t)[:, None, None]) / np.sqrt(2))
        + lapses / 2
        for x in np.log(counts.amplitudes)
    ])  # fmt: skip
    right, wrong = counts.correct, counts.trials - counts.correct
    log = np.tensordot(right, np.log(p), 1) + np.tensordot(
        wrong, np.log(np.maximum(1 - p, 1e-300)), 1
    )
    log = log - 0.5 * (b[:, None] / spread) ** 2 + 19 * np.log(1 - lapses)
    density = trapezoid(np.exp(log - log.max()), lapses, axis=2).sum(axis=1)
    density /= density.sum()
    mean = density @ t
    deviation = np.sqrt(density @ (t - mean) ** 2)
    assert fit.log_thresholds[0] == pytest.approx(mean, abs=0.02 * deviation)
    assert fit.deviations[0] == pytest.approx(deviation, rel=0.02)


def test_many_trials_find_the_truth_whatever_the_exponent() -> None:
    rng = np.random.default_rng(3)
    counts = [answers("top", 2.0, 60_000, rng, 1.6), answers("bottom", 9.0, 60_000, rng, 1.6)]
    fit = scoring.fit_thresholds(counts)
    assert fit.exponent == pytest.approx(1.6, rel=0.05)
    assert fit.lapses == pytest.approx(0.01, abs=0.005)
    assert np.abs(np.exp(fit.log_thresholds) / [2, 9] - 1).max() < 0.05
    found = fit.difference("bottom", "top")
    assert found.low < np.log(4.5) < found.high
    assert found.deviation < 0.02


def test_difference_agrees_with_the_covariance() -> None:
    rng = np.random.default_rng(4)
    counts = [answers(name, 1.0, 200, rng) for name in ("a", "b", "c")]
    fit = scoring.fit_thresholds(counts)
    found = fit.difference("c", "a")
    weights = np.array([-1.0, 0.0, 1.0])
    assert found.value == pytest.approx(weights @ fit.log_thresholds, abs=1e-3)
    assert found.deviation == pytest.approx(np.sqrt(weights @ fit.covariance @ weights), rel=0.02)


@pytest.mark.parametrize(
    ("task", "alternatives", "chance"), [("2afc", 2, 0.5), ("mafc", 4, 0.25), ("oddity", 3, 1 / 3)]
)
def test_curve_of_a_task_is_that_of_the_units(task: str, alternatives: int, chance: float) -> None:
    curve = scoring.task_curve(task, alternatives)
    assert curve(-np.inf) == pytest.approx(chance, abs=2e-3)
    for d_prime in (0.3, 1.0, 2.5):
        expected = ee.units.fraction_correct(d_prime, task, alternatives)
        assert curve(np.log(d_prime)) == pytest.approx(expected, abs=2e-5)
    step = 1e-4
    rise = (curve(np.log(1.5) + step) - curve(np.log(1.5) - step)) / (2 * step)
    assert curve.slope(np.log(1.5)) == pytest.approx(rise, rel=1e-3)


def test_what_answers_do_not_tell_is_said() -> None:
    seen = scoring.Counts("seen", np.arange(1, 7), SIX, SIX)
    blind = scoring.Counts("blind", np.arange(1, 7), SIX, [25] * 6)
    empty = scoring.Counts("empty", np.arange(1, 7), [0] * 6, [0] * 6)
    told = answers("told", 1.0, 200, np.random.default_rng(0))
    fit = scoring.fit_thresholds([seen, blind, empty, told])
    assert fit.states == ("below", "above", "empty", "known")
    assert fit.known == (3,)
    assert np.isneginf(fit.intervals[0, 0])
    assert fit.intervals[0, 1] < 0
    assert np.isposinf(fit.intervals[1, 1])
    assert np.isfinite(fit.intervals[3]).all()
    assert np.isnan(fit.log_thresholds[[0, 1, 2]]).all()
    with pytest.raises(InputError, match="below"):
        fit.difference("told", "seen")


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="as many"):
        scoring.Counts("a", [1.0, 2.0], [3], [1])
    with pytest.raises(InputError, match="above 0"):
        scoring.Counts("a", [0.0], [3], [1])
    with pytest.raises(InputError, match="as many correct"):
        scoring.Counts("a", [1.0], [3], [4])
    with pytest.raises(InputError, match="at least one"):
        scoring.fit_thresholds([])
    one = scoring.Counts("a", [1.0, 2.0], [9, 9], [5, 8])
    with pytest.raises(InputError, match="once"):
        scoring.fit_thresholds([one, one])
    with pytest.raises(InputError, match="engine"):
        scoring.fit_thresholds([one], engine="magic")
    with pytest.raises(InputError, match="confidence"):
        scoring.fit_thresholds([one], confidence=95)


def test_without_psignifit_its_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psignifit", None)
    counts = answers("told", 1.0, 200, np.random.default_rng(0))
    with pytest.raises(InputError, match="experiment"):
        scoring.fit_thresholds([counts], engine="psignifit")


def test_psignifit_agrees_where_it_is_installed() -> None:
    pytest.importorskip("psignifit")
    rng = np.random.default_rng(7)
    pair = [answers("top", 1.0, 400, rng), answers("bottom", np.exp(D), 400, rng)]
    ours = scoring.fit_thresholds(pair).difference("bottom", "top")
    other = scoring.fit_thresholds(pair, engine="psignifit").difference("bottom", "top")
    assert other.value == pytest.approx(ours.value, abs=2 * ours.deviation)
    assert 0.8 * ours.deviation < other.deviation < 3 * ours.deviation
