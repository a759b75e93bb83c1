"""A sample of the kill loop: fits and a sweep, killed at random instants, end identical."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sample_of_the_kill_loop_loses_and_doubles_nothing(tmp_path: Path) -> None:
    told = tmp_path / "kills.jsonl"
    done = subprocess.run(
        [sys.executable, str(LOOP), "--sample", "--json", str(told), "--here", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    chains = [json.loads(line) for line in told.read_text().splitlines()]
    assert done.returncode == 0, [chain["problems"] for chain in chains]
    assert {chain["kind"] for chain in chains} == {"fits", "sweeps"}
    assert sum(len(chain["kills"]) for chain in chains) == 6
