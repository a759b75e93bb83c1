"""Models weighed by thresholds: closed forms, the true one found, what cannot be weighed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import eigenexp as ee
from eigenexp.errors import InputError
from tests.scoring.experiments import LEVELS, MODELS, differences, principal_design

scoring = ee.scoring


def observers(design: ee.scoring.Design) -> list[ee.scoring.Observer]:
    return [scoring.Observer(one, scoring.fitting_gain(design, one)) for one in design.predictions]


def times_found(design: ee.scoring.Design, trials: int, experiments: int) -> int:
    """How often the true model has the highest posterior, each model being true in turn."""
    found = 0
    for i in range(experiments):
        true = observers(design)[i % len(MODELS)]
        rows = scoring.simulate(design, [true], trials, seed=i)
        models = scoring.score(rows, design).models
        found += bool(models) and models[0].model == true.prediction.model
    return found


def test_true_model_is_found_among_four_on_their_principal_pair() -> None:
    assert times_found(principal_design(), trials=200, experiments=20) >= 19


@pytest.mark.slow
def test_true_model_is_found_in_95_of_100() -> None:
    assert times_found(principal_design(), trials=200, experiments=100) >= 95


def test_posterior_of_linear_models_is_the_closed_form() -> None:
    design = principal_design()
    rows = scoring.simulate(design, observers(design)[2:3], 200, seed=1)
    result = scoring.score(rows, design)
    fit = result.observers[0].thresholds
    # The gain integrated over, two thresholds are as good as their difference.
    weights = np.array([-1.0, 1.0])
    value, variance = weights @ fit.log_thresholds, weights @ fit.covariance @ weights
    by_name = {}
    for one in design.predictions:
        predicted = 0.5 * math.log(one.eigenvalues["first"] / one.eigenvalues["second"])
        by_name[one.model] = -0.5 * (value - predicted) ** 2 / variance
    total = np.logaddexp.reduce(list(by_name.values()))
    assert sum(one.posterior for one in result.models) == pytest.approx(1)
    for one in result.models:
        assert one.chi_squared == pytest.approx(-2 * by_name[one.model], rel=1e-3, abs=1e-3)
        assert one.posterior == pytest.approx(math.exp(by_name[one.model] - total), abs=2e-3)
    best = result.models[0]
    mean = 1 - best.chi_squared / (value**2 / variance)
    assert best.r_squared == pytest.approx(mean, abs=1e-6)
    assert result.standing(0.05) == (best.model,)


def test_response_follows_the_levels_and_is_linear_beyond_them() -> None:
    design = replace(principal_design(levels=3), predictions=())
    d_primes = np.array([0.5, 1.0, 1.2] * 2)
    response = scoring.log_responses(design, scoring.Prediction("bent", d_primes, {}))["first"]
    levels = np.log(design.amplitudes[:3])
    assert response.threshold(0.0) == pytest.approx(levels[1])
    assert response.threshold(-math.log(1.2)) == pytest.approx(levels[2])
    assert response.threshold(math.log(4)) == pytest.approx(levels[0] - math.log(2))
    assert response.threshold(-math.log(2.4)) == pytest.approx(levels[2] + math.log(2), abs=1e-6)
    for at in (levels[0] - 1, levels[1], levels[2] + 1):
        assert response.threshold(-response(at)) == pytest.approx(at, abs=1e-6)


def test_number_of_trials_that_is_said_is_enough_and_not_far_too_many() -> None:
    design = principal_design()
    told = {one.model: one for one in scoring.separate(design, observers(design))}
    assert set(told) == set(MODELS)
    most = max(one.trials or 10**6 for one in told.values())
    assert 30 < most < 200
    assert times_found(design, trials=most, experiments=16) >= 14
    assert times_found(design, trials=most // 8, experiments=12) < 12


def test_expected_deviation_is_that_of_simulated_experiments() -> None:
    amplitudes = np.concatenate([LEVELS, LEVELS])
    design = scoring.Design(
        "", "2afc", 2, tuple("abcdefghijkl"), ("top",) * 6 + ("bottom",) * 6, amplitudes
    )
    observer = scoring.Observer(scoring.Prediction("linear", amplitudes, {}), gain=1.0)
    covariance = scoring.expected_covariance(design, observer, ["top", "bottom"], 100)
    weights = np.array([1.0, -1.0])
    found = [one.value for one in differences(trials=100, experiments=60)]
    expected = np.sqrt(weights @ covariance @ weights)
    assert np.std(found) == pytest.approx(expected, rel=0.25)  # of 60, known to 9 %
    assert 0.28 <= expected <= 0.33


def test_model_that_sees_nothing_is_told_apart_and_the_rest_is_kept() -> None:
    design = principal_design()
    second = design.places("second")
    blind = design.predictions[0].d_primes.copy()
    blind[second] = 0.0
    others = (*design.predictions, scoring.Prediction("blind", blind, {}))
    rows = scoring.simulate(design, observers(design)[:1], 200, seed=3)
    result = scoring.score(rows, design, predictions=others)
    assert result.models[0].model == "LN"
    assert result.models[-1].model == "blind"
    assert result.models[-1].posterior == 0
    assert result.models[-1].unseen == ("second",)
    assert any("blind" in line and "pixel_floor" in line for line in result.problems)
    nothing = [scoring.Prediction(name, np.zeros(12), {}) for name in ("a", "b")]
    result = scoring.score(rows, design, predictions=nothing)
    assert result.models == ()
    assert any("pixel_floor" in line for line in result.problems)
    with pytest.raises(InputError, match="pixel_floor"):
        scoring.fitting_gain(design, nothing[0])


def test_observer_of_a_blind_model_answers_by_chance() -> None:
    design = principal_design()
    blind = scoring.Observer(scoring.Prediction("blind", np.zeros(12), {}), gain=1.0)
    rows = scoring.simulate(design, [blind], 2000, seed=0)
    assert np.mean([one.correct for one in rows]) == pytest.approx(0.5, abs=0.03)


def test_simulation_is_of_its_seed_spread_evenly_and_consistent() -> None:
    design = principal_design()
    two = observers(design)[:2]
    rows = scoring.simulate(design, two, 100, seed=5)
    assert rows == scoring.simulate(design, two, 100, seed=5)
    assert rows != scoring.simulate(design, two, 100, seed=6)
    assert {one.observer for one in rows} == {"LN", "LG"}
    first, _ = scoring.count_answers(rows, design)
    for counts in first.counts:
        assert counts.num_trials == 100
        assert counts.trials.max() - counts.trials.min() <= 1
    assert all((one.response == str(one.interval)) == one.correct for one in rows)
    assert {one.interval for one in rows} == {1, 2}
    alike = scoring.simulate(design, [two[0], two[0]], 10)
    assert {one.observer for one in alike} == {"LN-1", "LN-2"}


def test_what_cannot_be_asked_is_refused() -> None:
    design = principal_design()
    one = observers(design)[0]
    with pytest.raises(InputError, match="trials"):
        scoring.simulate(design, [one], 0)
    with pytest.raises(InputError, match="gain"):
        scoring.Observer(one.prediction, gain=0.0)
    with pytest.raises(InputError, match="lapses"):
        scoring.Observer(one.prediction, gain=1.0, lapses=1.0)
    with pytest.raises(InputError, match="two"):
        scoring.separate(design, [one])
    with pytest.raises(InputError, match="they know LN"):
        design.of_models(["magic"])
    answers = scoring.count_answers(scoring.simulate(design, [one], 200), design)[0]
    fit = scoring.fit_thresholds(answers.counts)
    with pytest.raises(InputError, match="at least two"):
        scoring.weigh_models([fit], design, design.predictions[:1])
