"""What tables of runs sort by, what descriptions tell, and that names in them stay names."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eigenexp.experiments.config import FitConfig, compose_config
from eigenexp.experiments.shown import shown_settings
from eigenexp.pictures.picture import load_picture
from eigenexp.pictures.saving import PICTURE_FILE, save_picture
from eigenexp.runs.folder import RunFolder
from eigenexp.runs.overview import (
    description,
    escape_markdown,
    failed_description,
    known_end,
    problem_lines,
    result_row,
)
from tests.report.conftest import make_spectrum

ATTACK = "<script>x</script> [a](javascript:x) ![b](http://e.org/p.png) | `c` **d** \x1b[31m\n# e"


def test_a_row_has_both_ends_the_worst_residual_and_the_worst_status() -> None:
    spectrum = make_spectrum(residuals=torch.tensor([1e-5, 4e-4, 2e-5, 1e-5]))
    row = result_row(spectrum)
    assert (row["lambda_max"], row["lambda_min"]) == (4.0, pytest.approx(4e-3))
    assert row["worst_residual"] == pytest.approx(1e-4)  # over λmax = 4
    assert (row["status"], row["pairs"], row["pairs_proven"]) == ("unverified", 4, 3)


def test_an_end_that_was_not_asked_for_has_no_value() -> None:
    whole = make_spectrum()
    fields = ("eigenvalues", "eigenvectors", "eigenindex", "residuals", "error_bounds", "status")
    top = replace(whole, **{name: getattr(whole, name)[:2] for name in fields})
    assert result_row(top)["lambda_max"] == 4.0
    assert result_row(top)["lambda_min"] is None


def test_a_description_has_the_verdict_and_a_line_a_pair() -> None:
    text = description("Net at camera", make_spectrum(notes=("a note",)))
    assert "3 of 4 pairs proven" in text
    assert "| 190 | 0.04000000 | 5.000000 | 5.0e-06 | 1.0e-09 | converged |" in text
    assert text.endswith("*a note*")


def test_a_row_prints_its_ends_with_the_digits_that_are_known() -> None:
    bounds = torch.tensor([3e-3, 1e-9, 1e-9, 9e-3], dtype=torch.float64)
    row = result_row(make_spectrum(error_bounds=bounds))
    assert (known_end(row, "lambda_max"), known_end(row, "lambda_min")) == ("4.000(3)", "≤ 0.013")
    null = result_row(make_spectrum(null_space_dimension=5))
    assert known_end(null, "lambda_min") == "0 (null space)"
    old = {"lambda_max": 4.03214, "lambda_min": 4e-3, "lambda_min_bound": "nan"}
    assert (known_end(old, "lambda_max"), known_end(old, "lambda_min")) == ("≈ 4", "≤ 0.004")
    assert known_end({}, "lambda_min") == ""


def test_many_pairs_are_shown_by_their_ends() -> None:
    text = description("Net", make_spectrum(k=20))
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 12
    assert "| … | 28 more | | | |" in text


@pytest.mark.parametrize(
    "text",
    [
        escape_markdown(ATTACK),
        description(ATTACK, make_spectrum(notes=(ATTACK,), method=ATTACK)),
        failed_description(ATTACK, ValueError(ATTACK)),
    ],
    ids=["text", "description", "failure"],
)
def test_names_neither_format_nor_run(text: str) -> None:
    assert "<script" not in text
    assert "\x1b" not in text
    assert "](" not in text
    assert "http://" not in text
    assert not re.search(r"(?m)^# e|(?<!\\)`|\*\*d", text)
    assert "<script>x</script>" in html.unescape(text.replace("\\", ""))


def settings(*overrides: str) -> FitConfig:
    return compose_config(overrides)


def test_parameters_are_what_identifies_a_run_and_what_is_unusual() -> None:
    assert shown_settings(settings("model=lgg", "image.crop=20", "solver.k=3"), "camera") == {
        "model": "LuminanceContrastGainControl",
        "picture": "camera",
        "solver.k": 3,
        "image.crop": [142, 242, 20, 20],  # at the place of the usual crop
    }
    shown = shown_settings(settings("model.kernel_size=21", "trainer.max_steps=9"), "camera")
    assert shown["model.kernel_size"] == 21
    assert shown["trainer.max_steps"] == 9
    assert not [key for key in shown if key.startswith("operator.")]


def test_a_run_tells_its_name_picture_size_crop_and_tolerance(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "abc")
    image = {"source": "camera", "crop": 48, "resize": None}
    solver = {"method": "auto", "k": 2, "which": "both", "tol": 1e-3, "seed": 0}
    record = {"config": {"run_name": "first try", "image": image, "solver": solver}}
    terms = "solver method auto, k 2, which both, tol 0.001"
    assert problem_lines(run, record) == ["name first try", "picture camera, crop 48", terms]
    run.results.mkdir(parents=True)
    save_picture(load_picture("camera", crop=48, resize=[24, 32]), run.results / PICTURE_FILE)
    told = "picture camera, 24x32, crop [232, 232, 48, 48], resize [24, 32]"
    assert problem_lines(run, record)[1] == told
    for damaged in ({}, {"config": [1]}, {"config": {"image": 3, "solver": None}}):
        assert not [line for line in problem_lines(RunFolder(tmp_path, "x"), damaged) if line]
