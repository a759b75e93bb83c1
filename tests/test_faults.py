"""A sample of the twelve server faults: nothing lost, nothing doubled, honest words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sample_of_the_server_faults_loses_and_doubles_nothing(tmp_path: Path) -> None:
    told = tmp_path / "faults.jsonl"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--sample", "--json", str(told)],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert told.exists(), done.stderr[-2000:]
    cases = [json.loads(line) for line in told.read_text().splitlines()]
    assert done.returncode == 0, [case["problems"] for case in cases]
    assert len(cases) == 3
    assert all(case["met"] for case in cases)
