"""What the command line says and takes: suggestions, JSON, own groups, quoting, deleting."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from eigenexp.cli import main
from eigenexp.runs.folder import list_runs
from eigenexp.sweeps import list_sweeps

SMALL = [
    *("model=identity", "image.crop=[120,220,8,8]", "threads=1", "logger=none", "trainer=cpu"),
    *("solver=exact",),
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fitt"], ["did you mean fit?"]),
        (["fit", "--kk"], ["usage: eigenexp fit", "--kk"]),
        (["show", "--limmit=3"], ["usage: eigenexp show"]),
    ],
)
def test_a_wrong_word_is_told_beside_the_right_usage(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("image.source=ünï.png", "quote it: \"image.source='ünï.png'\""),
        ("image.source=a=b(1).png", "quote it: \"image.source='a=b(1).png'\""),
        ("image.source=dol${X}lar.png", "if it is meant as it stands"),
    ],
)
def test_a_value_that_needs_quotes_is_shown_in_them(
    override: str, words: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "image=file", override]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


def test_json_quiet_models_and_delete(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["proven"], facts["exit_code"], facts["status"]) == (True, 0, "FINISHED")
    assert len(facts["pairs"]) == 2
    assert main(["fit", *SMALL, "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\r" not in captured.err
    assert main(["show", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert facts["run_id"] in {row["run"] for row in rows}
    assert main(["show", facts["run_id"], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == 2
    assert main(["show", "--limit", "1"]) == 0
    assert "… and 1 more" in capsys.readouterr().out
    assert main(["models"]) == 0
    assert "model=onoff" in capsys.readouterr().out
    assert main(["delete", facts["run_id"], "--yes"]) == 0
    (left,) = list_runs(in_tmp / "mlruns")
    assert left.run_id != facts["run_id"]
    assert not list(in_tmp.glob(f"mlruns/*/{facts['run_id']}"))


def test_own_groups_are_found_here_and_by_their_folder(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EIGENEXP_CONFIG_DIR", raising=False)
    folder = in_tmp / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nsolver:\n  k: 3\n")
    assert main(["fit", "experiment=mine", "--cfg", "job"]) == 0
    assert "k: 3" in capsys.readouterr().out
    (in_tmp / "conf").rename(in_tmp / "elsewhere")
    assert main(["fit", "experiment=mine", "--config"]) == 1
    assert "'mine'" in capsys.readouterr().err
    monkeypatch.setenv("EIGENEXP_CONFIG_DIR", "")
    assert main(["fit", "experiment=mine", "--config", "--config-dir", "elsewhere"]) == 0
    assert "k: 3" in capsys.readouterr().out


def test_a_pair_that_is_not_proven_has_an_exit_code(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = ["solver=power", "trainer.max_steps=2", "model=ln", "image.crop=[120,220,16,16]"]
    assert main(["fit", *SMALL[2:5], *weak]) == 3
    assert "trainer.max_steps=…" in capsys.readouterr().out


def test_a_signal_between_two_jobs_ends_the_sweep(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eigenexp.sweeps.manifest import FINISHED, SweepFolder

    write = SweepFolder.write_job

    def written(self: SweepFolder, index: int, state: str, **facts: object) -> None:
        write(self, index, state, **facts)
        if state == FINISHED:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(SweepFolder, "write_job", written)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["fit", "-m", *SMALL, "solver.seed=0,1"]) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    (sweep,) = list_sweeps(in_tmp / "mlruns")
    assert [job.state for job in sweep.jobs()] == ["finished", "pending"]
