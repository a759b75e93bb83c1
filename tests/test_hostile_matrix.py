"""Hundreds of hostile files, configurations: nothing executed or left outside, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = pytest.importorskip("resource", reason="the limits are those of Unix") and (
    Path(__file__).parent / "hostile_matrix.py"
)


def judge(home: Path, *options: str) -> list[dict[str, object]]:
    """Open the files in a process of their own; return what became of each."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{MATRIX.stem}", str(home), *options],
        cwd=MATRIX.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    last = rows[-1] if rows else None
    assert done.returncode == 0, f"the file behind {last} ended it: {done.stderr[-2000:]}"
    assert [row for row in rows if row["fault"]] == []
    assert [row for row in rows if row["noted"]] == []  # executed, connected, or touched outside
    assert max(row["memory"] for row in rows) <= 500
    return rows


@pytest.mark.timeout(300)
def test_a_part_of_all_hostile_files_does_nothing(tmp_path: Path) -> None:
    assert len(judge(tmp_path, "--every", "8")) >= 75


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_hostile_file_or_configuration_does_anything(tmp_path: Path) -> None:
    rows = judge(tmp_path)
    assert len(rows) >= 700
    assert len({row["reader"] for row in rows}) >= 25
    # Most of it is refused in words; what is harmless (a byte more) is read.
    assert sum(row["told"] is not None for row in rows) > 400
