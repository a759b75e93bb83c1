"""The notebooks run, assert what they show, and are kept without outputs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_outputs_are_kept_and_something_is_asserted(path):
    cells = code_cells(path)
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
    assert sum("assert" in "".join(c["source"]) for c in cells) >= 3


def test_both_notebooks_are_there():
    assert {p.stem for p in NOTEBOOKS} >= {"front_end_study", "coming_from_plenoptic"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path):
    command = [sys.executable, "-m", "pytest", "--nbmake", "-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
