"""Tables of trials: written and read, wrong rows said and left out, what a score says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eigenexp as ee
from eigenexp.errors import InputError
from tests.scoring.experiments import principal_design

scoring = ee.scoring
DESIGN = principal_design()


def rows(trials: int = 200) -> list[ee.scoring.Trial]:
    true = DESIGN.predictions[0]
    observer = scoring.Observer(true, scoring.fitting_gain(DESIGN, true))
    return scoring.simulate(DESIGN, [observer], trials, seed=2)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return scoring.write_trials(rows(), tmp_path / "trials.csv")


def test_table_is_read_as_it_was_written(table: Path) -> None:
    read, problems = scoring.read_trials(table, DESIGN)
    assert read == rows()
    assert problems == []
    assert table.read_text().startswith("observer,trial,stimulus,correct,")


def test_required_columns_alone_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "correct,stimulus,trial,observer,mood\nTrue,first-0,1,ann,good\n0,first-1,2,ann,\n"
    )
    read, problems = scoring.read_trials(path, DESIGN)
    assert [(t.observer, t.trial, t.stimulus, t.correct) for t in read] == [
        ("ann", 1, "first-0", True),
        ("ann", 2, "first-1", False),
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ann,1,elsewhere,1,,,,", "unknown stimuli (elsewhere)"),
        ("ann,1,first-0,maybe,,,,", "not 0 or 1 (maybe)"),
        (",1,first-0,1,,,,", "without an observer"),
        ("ann,1,first-0,1,,,,fedcba9876543210", "another manifest than 0123456789abcdef"),
    ],
)
def test_rows_that_cannot_be_used_are_said_and_the_rest_is_kept(
    table: Path, line: str, said: str
) -> None:
    with table.open("a") as file:
        file.write(f"{line}\n{line}\n")
    read, problems = scoring.read_trials(table, DESIGN)
    assert len(read) == len(rows())
    (problem,) = problems
    assert said in problem
    assert problem.startswith("2 of 402 trials")
    result = scoring.score(table, DESIGN)
    assert problem in result.problems
    assert result.models[0].model == "LN"


def test_table_that_cannot_be_used_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(InputError, match="table of trials"):
        scoring.read_trials(path, DESIGN)
    path.write_text("observer,trial\nann,1\n")
    with pytest.raises(InputError, match="no stimulus and no correct among observer, trial"):
        scoring.read_trials(path, DESIGN)
    path.write_text("")
    with pytest.raises(InputError, match="no observer"):
        scoring.read_trials(path, DESIGN)
    path.write_text("observer,trial,stimulus,correct\n")
    with pytest.raises(InputError, match="none that can be used"):
        scoring.read_trials(path, DESIGN)
    path.write_text("observer,trial,stimulus,correct,manifest\nann,1,first-0,1,other\n")
    with pytest.raises(InputError, match="another manifest"):
        scoring.read_trials(path, DESIGN)
    path.write_bytes(b"observer,trial,stimulus,correct\n\xff\xfe,1,first-0,1\n")
    with pytest.raises(InputError, match="as CSV"):
        scoring.read_trials(path, DESIGN)


def test_all_right_all_wrong_and_empty_cells_are_said(tmp_path: Path) -> None:
    made = [one for one in rows() if one.stimulus != "first-5"]
    ann = [one for one in made if one.stimulus.startswith("first")]
    sure = [
        scoring.Trial("sure", i, name, correct=True)
        for i, name in enumerate(DESIGN.stimuli * 20)
        if name.startswith("first")
    ]
    blind = [
        scoring.Trial("blind", i, name, correct=i % 24 < 12)
        for i, name in enumerate(DESIGN.stimuli * 20)
    ]
    path = scoring.write_trials([*ann, *sure, *blind], tmp_path / "t.csv")
    result = scoring.score(path, DESIGN)
    said = "\n".join(result.problems)
    assert "observer LN, first: 1 of 6 stimuli have no trial" in said
    assert "observer LN, second: no trial; left out" in said
    assert "observer sure, first: 120 of 120 right, the threshold is below" in said
    assert "observer blind, first: 60 of 120 right, the threshold is above" in said
    assert "two known thresholds" in said
    assert result.models == ()
    assert len(result.observers) == 3
    assert len(result.problems) == len(set(result.problems))
    text = "\n".join(result.lines())
    assert "below" in text
    assert "unknown" in text


def test_score_tells_what_was_measured_beside_what_was_predicted(table: Path) -> None:
    result = scoring.score(table, DESIGN)
    (contrast,) = result.observers[0].contrasts
    expected = 0.5 * np.log(
        DESIGN.predictions[0].eigenvalues["first"] / DESIGN.predictions[0].eigenvalues["second"]
    )
    assert contrast.predicted == pytest.approx(expected)
    assert contrast.measured is not None
    assert contrast.measured.low < expected < contrast.measured.high
    at_gain = scoring.predicted_difference(
        DESIGN, DESIGN.predictions[0], contrast.contrast, result.models[0].log_gains[0]
    )
    assert at_gain == pytest.approx(expected, abs=1e-6)
    facts = result.as_json()
    assert facts["models"][0]["model"] == "LN"
    assert facts["thresholds"][0]["state"] == "known"
    assert facts["contrasts"][0]["predicted"] == pytest.approx(expected)
    lines = "\n".join(result.lines())
    assert f"{expected:.2f}" in lines
    assert "posterior" in lines


def test_rows_in_memory_are_checked_too() -> None:
    with pytest.raises(InputError, match="magic"):
        scoring.score([scoring.Trial("ann", 1, "magic", correct=True)], DESIGN)
    with pytest.raises(InputError, match="at least one"):
        scoring.score([], DESIGN)
