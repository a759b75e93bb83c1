"""``eigenexp simulate`` and ``eigenexp score``, end to end on a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eigenexp.cli import main
from tests.scoring.experiments import principal_design
from tests.scoring.folders import write_folder


@pytest.fixture
def stimuli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_folder(principal_design(), tmp_path / "stimuli")
    return tmp_path / "stimuli"


def test_people_made_of_a_model_are_scored_and_the_model_is_found(
    stimuli: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "stimuli", "model=LG", "trials=200", "seed=3"]) == 0
    out = capsys.readouterr().out
    assert "LG: gain" in out
    assert "400 trials" in out
    assert main(["score", "trials.csv", "stimuli"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("LG ", "LN ", "LGG ", "OnOff "))]
    best = next(line for line in lines if "of 1" in line)
    assert best.startswith("LG ")
    page = stimuli.parent / "score.html"
    assert str(page) in out
    text = page.read_text()
    assert "speak for <b>LG</b>" in text
    assert "http" not in text.replace("http-equiv", "")


def test_number_of_trials_that_tell_models_apart_is_said(
    stimuli: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "stimuli", "trials=60", "--output", "four.csv"]) == 0
    out = capsys.readouterr().out
    assert out.count("95 of 100 experiments after") == 4
    assert main(["simulate", "stimuli", "model=LN,LG", "--output", "two.csv", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in facts["separation"]] == ["LN", "LG"]
    assert facts["separation"][0]["rival"] == "LG"
    assert main(["score", "four.csv", "stimuli", "model=LN,LG", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {one["model"] for one in facts["models"]} == {"LN", "LG"}
    assert len(facts["thresholds"]) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "nowhere"], "manifest"),
        (["simulate", "stimuli", "model=magic"], "expected one that the stimuli know, got 'magic'"),
        (["simulate", "stimuli", "trials=many"], "trials: expected a whole number"),
        (["simulate", "stimuli", "trials=0"], "at least 1"),
        (["simulate", "stimuli", "gain=-1"], "gain: expected a number above 0"),
        (["simulate", "stimuli", "magic=1"], "expected settings among model="),
        (["simulate", "stimuli", "--output", "stimuli/manifest.json"], "expected a new file"),
        (["score", "none.csv", "stimuli"], "table of trials"),
        (["score", "stimuli/manifest.csv", "stimuli"], "no observer"),
        (["score", "none.csv", "stimuli", "magic"], "expected settings"),
    ],
)
def test_mistakes_are_one_line(
    stimuli: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_help_tells_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for command, word in (("simulate", "gain=auto"), ("score", "engine=grid")):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert word in capsys.readouterr().out
