"""Files about the project agree with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import eigenexp

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))


def commands(workflow: dict[str, Any]) -> list[str]:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == eigenexp.__version__


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.stem)
def test_files_of_the_code_host_are_well_formed(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_hosted_ci_runs_what_a_person_types() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    made = [word for run in commands(workflow) for word in re.findall(r"make (\w+)", run)]
    assert {"test", "slow", "lowest", "docs", "coverage", "release"} <= set(made) <= TARGETS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_make_targets_named_in_prose_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = {a or b for a, b in re.findall(r"`make (\w+)`|^make (\w+)", text, flags=re.MULTILINE)}
    assert named <= TARGETS


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_paths_named_in_prose_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for path in re.findall(r"`((?:eigenexp|tests|docs|conf|benchmarks)/[\w./]*\w)/?`", text):
        assert (ROOT / path).exists(), path
