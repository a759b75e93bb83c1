"""What a command imports: a person waits for it before anything is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = ("torch", "lightning", "mlflow", "matplotlib", "pandas", "scipy")
_CODE = f"""
import sys
from eigenexp.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("\\nIMPORTED", *[name for name in {_HEAVY!r} if name in sys.modules])
sys.exit(code)
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    """Return the heavy packages that a command imported, in a process of its own."""
    command = [sys.executable, "-c", _CODE, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED")]
    return set(line.split()[1:])


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["fit", "--help"],
        ["models"],
        ["show"],
        ["show", "--json"],
        ["show", "nothing"],
        ["delete", "nothing", "--yes"],
        ["fit", "--cfg", "job"],
        ["completion", "--line", "eigenexp fit solver.t"],
    ],
    ids=" ".join,
)
def test_what_needs_no_tensor_imports_no_torch(command: list[str], tmp_path: Path) -> None:
    assert imported(tmp_path, *command) == set()


def test_a_table_of_runs_is_read_without_torch(tmp_path: Path) -> None:
    from eigenexp.runs.folder import RunFolder

    run = RunFolder(tmp_path / "mlruns", "a" * 32)
    row = {"model": "LN", "picture": "camera", "k": 1, "lambda_max": 1.0}
    run.write_record(status="FINISHED", title="LN at camera", row=row)
    assert imported(tmp_path, "show") == set()


def test_a_report_imports_no_lightning(tmp_path: Path) -> None:
    assert not imported(tmp_path, "report", "nothing") & {"lightning", "mlflow"}
