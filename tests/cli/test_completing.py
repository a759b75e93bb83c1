"""Shell completion: what a word may become, and bash asking for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eigenexp.cli import main
from eigenexp.runs.folder import RunFolder
from tests.processes import environment

RUN = "5b8d" + "0" * 28


@pytest.fixture
def found(in_tmp: Path, capsys: pytest.CaptureFixture[str]):
    RunFolder(in_tmp / "mlruns", RUN).write_record(status="FINISHED", title="LN at camera")
    (in_tmp / "mymodel.py").touch()

    def ask(line: str) -> list[str]:
        assert main(["completion", "--line", line]) == 0
        return capsys.readouterr().out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eigenexp re", ["report", "resume"]),
        ("eigenexp --v", ["--version"]),
        ("eigenexp fit --conf", ["--config", "--config-dir"]),
        ("eigenexp fit mod", ["model.", "model="]),
        ("eigenexp fit model=lg", ["model=lg", "model=lgg"]),
        ("eigenexp fit model=./", ["model=./mymodel.py:"]),
        ("eigenexp fit -m solver.to", ["solver.tol="]),
        ("eigenexp fit solver=lanczos solver.b", ["solver.basis_size="]),
        ("eigenexp fit solver.b", []),
        ("eigenexp fit solver.which=b", ["solver.which=both", "solver.which=bottom"]),
        (
            "eigenexp fit trainer.enable_progress_bar=",
            ["trainer.enable_progress_bar=false", "trainer.enable_progress_bar=true"],
        ),
        ("eigenexp fit +call", ["+callbacks.", "+callbacks="]),
        ("eigenexp resume ", [RUN, "last"]),
        ("eigenexp report 5b", [RUN]),
        ("eigenexp resume last solver.tol=1e-6 trainer.max_s", ["trainer.max_steps="]),
        ("eigenexp show --l", ["--limit"]),
        ("eigenexp completion z", ["zsh"]),
        ("eigenexp fit solver.nothing.at.all.", []),
    ],
)
def test_what_a_word_may_become(found, line: str, words: list[str]) -> None:
    assert sorted(found(line)) == sorted(words)


def test_own_groups_are_among_them(found, in_tmp: Path) -> None:
    (in_tmp / "conf" / "experiment").mkdir(parents=True)
    (in_tmp / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\n")
    assert "experiment=mine" in found("eigenexp fit experiment=")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_read_what_it_is_given(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "eigenexp completion --line" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "words", "reply"),
    [
        ("eigenexp fit solver.which=bo", ["eigenexp", "fit", "solver.which", "=", "bo"],
         ["both", "bottom"]),
        ("eigenexp fit model=", ["eigenexp", "fit", "model", "="], ["lgg"]),
        ("eigenexp fit solver.to", ["eigenexp", "fit", "solver.to"], ["solver.tol="]),
        ("eigenexp mode", ["eigenexp", "mode"], ["models "]),
    ],
)  # fmt: skip
def test_bash_completes_the_part_of_a_word_that_it_sees(
    line: str, words: list[str], reply: list[str], tmp_path: Path
) -> None:
    program = tmp_path / "eigenexp"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m eigenexp.cli "$@"\n')
    program.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
eval "$(eigenexp completion bash)"
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
_eigenexp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    paths = environment(PATH=f"{tmp_path}:/usr/bin:/bin")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=paths, capture_output=True, text=True, check=True
    )
    assert set(reply) <= set(done.stdout.split("\n")), (done.stdout, done.stderr)
