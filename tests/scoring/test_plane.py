"""Ellipses of a plane: the model's, a measured one, their distance; psyphy's tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import eigenexp as ee
from eigenexp.errors import InputError

scoring = ee.scoring
TRUTH = np.array([[4.0, 1.5], [1.5, 1.0]])


def answered(matrix: np.ndarray, trials: int, seed: int = 0) -> ee.scoring.PlaneAnswers:
    """2AFC answers to eight directions at three distances of an observer with d′² = zᵀMz."""
    angles = np.arange(8) * np.pi / 4
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    unit = 1 / np.sqrt(np.einsum("ci,ij,cj->c", directions, matrix, directions))
    offsets = np.concatenate([r * unit[:, None] * directions for r in (0.7, 1.4, 2.8)])
    share = [ee.units.fraction_correct(d) for d in (0.7, 1.4, 2.8) for _ in angles]
    shown = np.full(len(offsets), trials)
    rng = np.random.default_rng(seed)
    return scoring.PlaneAnswers(offsets, shown, rng.binomial(shown, share))


def test_matrix_of_a_model_is_that_of_its_dense_fisher_information() -> None:
    picture = ee.load_picture("camera", crop=[120, 220, 16, 16], dtype=torch.float64).tensor
    operator = ee.FisherOperator(ee.models.OnOff().double(), picture)
    dense = operator @ torch.eye(256, dtype=torch.float64)
    axes = torch.randn(
        2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    flat = axes.reshape(2, -1)
    expected = (flat @ dense @ flat.T).numpy()
    assert np.allclose(scoring.plane_matrix(operator, axes), expected, rtol=1e-10)
    with pytest.raises(InputError, match="two axes"):
        scoring.plane_matrix(operator, axes[:1])
    with pytest.raises(InputError, match="one direction"):
        scoring.plane_matrix(operator, torch.stack([axes[0], -2 * axes[0]]))


def test_log_kappa_is_hilberts_distance() -> None:
    # The pencil has λ = 1/3, 4, 4.5, 1/4: ¼ ln²κ = 2.088562.
    a, b = np.diag([1.0, 4, 9, 2]), np.diag([3.0, 1, 2, 8])
    assert 0.25 * scoring.log_kappa(a, b) ** 2 == pytest.approx(2.088562, abs=1e-6)
    assert scoring.log_kappa(a, 7 * a) == pytest.approx(0, abs=1e-12)
    assert scoring.log_kappa(a, b) == pytest.approx(scoring.log_kappa(b, 5 * a))
    assert scoring.log_kappa(np.diag([1.0, 0.0]), np.eye(2)) == math.inf
    with pytest.raises(InputError, match="square"):
        scoring.log_kappa(a, np.eye(2))
    with pytest.raises(InputError, match="symmetric"):
        scoring.log_kappa([[1.0, 2.0], [0.0, 9.0]], np.eye(2))


def test_many_answers_find_the_ellipse() -> None:
    fit = scoring.fit_plane(answered(TRUTH, trials=5000))
    assert np.allclose(fit.matrix, TRUTH, rtol=0.06)
    assert scoring.log_kappa(fit.matrix, TRUTH) < 0.1
    contour = fit.ellipse()
    assert np.allclose(np.einsum("pi,ij,pj->p", contour, fit.matrix, contour), 1)


def test_true_model_is_not_far_and_a_wrong_one_is() -> None:
    fit = scoring.fit_plane(answered(TRUTH, trials=30, seed=4))
    true = scoring.compare_plane(fit, 0.01 * TRUTH, simulations=40)
    assert true.chance > 0.05
    assert true.gain == pytest.approx(10, rel=0.15)
    assert true.log_kappa < 3 * true.expected
    wrong = scoring.compare_plane(fit, np.diag([1.0, 4.0]), simulations=40)
    assert wrong.chance < 0.05
    assert wrong.log_kappa > true.log_kappa
    assert wrong.log_likelihood_ratio > 10 > true.log_likelihood_ratio > -0.5


@pytest.mark.slow
def test_chance_of_the_true_model_is_uniform() -> None:
    chances = [
        scoring.compare_plane(
            scoring.fit_plane(answered(TRUTH, 30, seed)), TRUTH, simulations=19
        ).chance
        for seed in range(60)
    ]
    assert 0.4 < np.mean(chances) < 0.65  # 0.525 ± 0.037
    assert np.mean(np.array(chances) <= 0.1) < 0.25


def test_answers_that_tell_no_ellipse_are_refused() -> None:
    line = np.outer([1.0, 2.0, -1.0], [1.0, 1.0])
    with pytest.raises(InputError, match="3 directions"):
        scoring.fit_plane(scoring.PlaneAnswers(line, [9] * 3, [7] * 3))
    told = answered(TRUTH, 30)
    with pytest.raises(InputError, match="all right"):
        scoring.fit_plane(scoring.PlaneAnswers(told.offsets, told.trials, told.trials))
    with pytest.raises(InputError, match="all right"):
        scoring.fit_plane(scoring.PlaneAnswers(told.offsets, told.trials, told.trials // 2))
    with pytest.raises(InputError, match="shape"):
        scoring.PlaneAnswers(np.zeros(3), [1] * 3, [1] * 3)
    with pytest.raises(InputError, match="as many"):
        scoring.PlaneAnswers(told.offsets, told.trials, told.trials + 1)
    fit = scoring.fit_plane(told)
    with pytest.raises(InputError, match="pixel_floor"):
        scoring.compare_plane(fit, np.diag([1.0, 0.0]))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("ref,probe,response", '"[0.0, 0.5]","[{x}, {y}]",{r}'),
        ("ref,probe,response", '"(0.0, 0.5)","({x}, {y})",{r}'),
        ("stimulus 0,stimulus 1,response", '"[0.0, 0.5]","[{x}, {y}]",[{r}]'),
    ],
)
def test_tables_of_psyphy_are_read(tmp_path: Path, header: str, row: str) -> None:
    rng = np.random.default_rng(0)
    made = answered(TRUTH, trials=4)
    lines, expected = [], []
    for offset, n, right in zip(made.offsets, made.trials, made.correct, strict=True):
        for i in range(n):
            point = dict(x=float(offset[0]), y=float(offset[1]) + 0.5, r=int(i < right))
            lines.append(row.format(**point))
        expected.append((*offset.round(9), n, right))
    path = tmp_path / "responses.csv"
    path.write_text("\n".join([header, *rng.permutation(lines)]) + "\n")
    answers = scoring.read_psyphy(path).answers(task="2afc", alternatives=2)
    found = {(*o.round(9), int(n), int(r)) for o, n, r in
             zip(answers.offsets, answers.trials, answers.correct, strict=True)}  # fmt: skip
    assert found == {(a, b, int(n), int(r)) for a, b, n, r in expected}


def test_arrays_of_psyphy_are_taken_as_they_are() -> None:
    stimuli = np.array([[[0, 0], [1, 0]], [[0, 0], [1, 0]], [[1, 1], [2, 1]]])
    trials = scoring.PsyphyTrials(stimuli[:, 0], stimuli[:, 1], np.array([[1], [0], [1]]))
    assert len(trials) == 3
    answers = trials.answers(reference=[0, 0])
    assert answers.offsets.tolist() == [[1, 0]]
    assert (answers.trials.tolist(), answers.correct.tolist()) == ([2], [1])
    with pytest.raises(InputError, match="one of 2"):
        trials.answers()
    with pytest.raises(InputError, match="that was shown"):
        trials.answers(reference=[5, 5])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ref,response\n", "columns ref, probe, response"),
        ("ref,probe,response\n", "at least one trial"),
        ('ref,probe,response\n"[0,0]","[1,x]",1\n', "line 2, probe"),
        ('ref,probe,response\n"[0,0]","[1,0]",7\n', "0 or 1"),
        ('ref,probe,response\n"[0,0]","[1,0,0]",1\n', "as many coordinates"),
        ('ref,probe,response\n"[0,0]","__import__(1)",1\n', "expected numbers"),
    ],
)
def test_tables_that_are_not_psyphys_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        scoring.read_psyphy(path)
    with pytest.raises(InputError, match="as CSV"):
        scoring.read_psyphy(tmp_path / "none.csv")
