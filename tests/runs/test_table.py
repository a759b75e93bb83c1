"""``eigenexp show``: every run in one table, sorted by any column, whatever the names hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenexp.cli import main
from eigenexp.runs.folder import RunFolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four runs: three with results, one that failed."""
    for run_id, model, k, worst in (("aa", "Net", 10, 1e-3), ("bb", "Ape", 9, 2e-6)):
        row = {"model": model, "picture": "p/cat.png", "k": k, "worst_residual": worst,
               "lambda_max": 1.5, "status": "converged", "products": 7}  # fmt: skip
        RunFolder(tmp_path, run_id).write_record(title="x", status="FINISHED", row=row)
    row = {"model": "Net", "picture": "\x1b]0;owned\x07", "k": 2, "worst_residual": float("nan")}
    RunFolder(tmp_path, "cc").write_record(title="x", status="FAILED", row=row, error="a\x1b[31mb")
    RunFolder(tmp_path, "dd").write_record(title="Old at moon", status="FINISHED")
    return tmp_path


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("worst_residual", "bb aa"),
        ("-worst_residual", "aa bb"),
        ("k", "cc bb aa dd"),  # as numbers: 9 before 10
        ("-k", "aa bb cc dd"),
        ("model", "bb"),
        ("status", "cc"),
    ],
)
def test_it_sorts_by_any_column(root: Path, capsys, sort: str, order: str) -> None:
    assert main(["show", "--root", str(root), f"--sort={sort}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ids = " ".join(line.split()[0] for line in lines[1:])
    assert ids.startswith(order)
    assert len(lines) == 5


def test_it_names_the_columns_and_the_picture_without_its_folder(root: Path, capsys) -> None:
    main(["show", "--root", str(root)])
    shown = capsys.readouterr().out
    for heading in ("model", "picture", "k", "λmax", "λmin", "residual", "status", "pairs"):
        assert heading in shown.splitlines()[0]
    assert "cat.png" in shown
    assert "p/cat" not in shown
    assert "Old" in shown
    assert "moon" in shown


def test_names_do_not_reach_the_terminal_as_orders(root: Path, capsys) -> None:
    main(["show", "--root", str(root)])
    main(["show", "cc", "--root", str(root)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "error: a?[31mb" in shown


def test_an_unknown_column_and_an_empty_root_are_told(root: Path, capsys, tmp_path: Path) -> None:
    assert main(["show", "--root", str(root), "--sort", "size"]) == 1
    assert "worst_residual" in capsys.readouterr().err
    assert main(["show", "--root", str(tmp_path / "none")]) == 0
    assert "eigenexp fit" in capsys.readouterr().out
