"""The eigensolver benchmark measures what it says: its yardstick, its judge, its table."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import eigenexp as ee

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def small(problems: ModuleType, values: Tensor) -> tuple[object, Tensor]:
    """Return a problem with those eigenvalues in a random basis, and its eigenvectors as rows."""
    n = len(values)
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    jacobian = values.sqrt()[:, None] * basis.T
    operator = ee.DenseOperator.from_jacobian(jacobian)
    return problems.Problem("small", operator, jacobian.T @ jacobian, values), basis.T


def first_step(truth, goal, seed: int) -> int:
    """Count by brute force: Rayleigh-Ritz in orthonormalised Krylov spaces, true residuals."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(truth.n, generator=generator, dtype=torch.float64)
    basis = torch.zeros(truth.n, 0, dtype=torch.float64)
    wanted = goal.wanted(truth.n)
    vector = start
    for step in range(1, truth.n + 1):
        for _ in range(3):
            vector = vector - basis @ (basis.T @ vector)
            vector = vector / vector.norm()
        basis = torch.cat([basis, vector[:, None]], dim=1)
        vector = truth.fisher @ vector
        if step < len(wanted):
            continue
        ritz, small = torch.linalg.eigh(basis.T @ truth.fisher @ basis)
        ritz, vectors = ritz.flip(0), basis @ small.flip(1)
        places = [i if i < truth.n // 2 else i - truth.n for i in wanted]
        limit = goal.tol * truth.scale
        residuals = (truth.fisher @ vectors - vectors * ritz).norm(dim=0)[places]
        off = (ritz[places] - truth.values[wanted]).abs()
        if bool((residuals <= limit).all()) and bool((off <= 2 * limit).all()):
            return step
    raise AssertionError("a Krylov space of the whole order holds everything")


@pytest.mark.parametrize("which", ["top", "bottom", "both"])
def test_the_yardstick_counts_as_brute_force_does(module, which: str) -> None:
    problems, n = module("solver_problems"), 90
    truth, _ = small(problems, torch.linspace(1, 0.05, n, dtype=torch.float64) ** 3)
    goals = [problems.Cell(which, k, tol) for k in (1, 5) for tol in (1e-3, 1e-6)]
    for seed in (0, 1):
        counts = module("yardstick").least_products(
            truth.fisher.__matmul__, n, seed, goals, truth.values
        )
        assert counts == {goal: first_step(truth, goal, seed) for goal in goals}


def test_the_yardstick_finds_every_copy_of_a_repeated_eigenvalue(module) -> None:
    problems = module("solver_problems")
    values = torch.tensor([1.0] * 3 + [0.5] * 3 + [0.0] * 34, dtype=torch.float64)
    truth, _ = small(problems, values)
    goals = [problems.Cell("top", 5, 1e-6), problems.Cell("top", 1, 1e-6)]
    counts = module("yardstick").least_products(truth.fisher.__matmul__, 40, 0, goals, truth.values)
    assert counts[goals[1]] == 3  # three different eigenvalues: one Krylov space of order 3
    assert 6 < counts[goals[0]] <= 40


def test_the_judge_passes_the_truth_and_flags_each_kind_of_error(module) -> None:
    problems = module("solver_problems")
    values = torch.linspace(1, 0, 30, dtype=torch.float64)
    truth, vectors = small(problems, values)
    cell = problems.Cell("both", 2, 1e-3)
    index = [0, 1, 28, 29]

    def wrong(index=index, values=values[index], vectors=vectors[index]) -> list[str]:
        return problems.wrong_pairs(truth, cell, index, values, vectors)

    assert wrong() == []
    # A converged pair that is not the one of its index.
    assert wrong(values=truth.values[[0, 2, 28, 29]], vectors=vectors[[0, 2, 28, 29]]) == [
        "pair 1: eigenvalue off by 3.4e-02 λmax"
    ]
    tilted = vectors[index].clone()
    tilted[0] += 0.05 * vectors[15]
    (said,) = wrong(vectors=tilted)
    assert said.startswith("pair 0: residual")
    (said,) = wrong(values=truth.values[index] + torch.tensor([0, 0, 0, 2.1e-3]))
    assert said.startswith("pair 29: eigenvalue off")
    assert wrong(values=truth.values[index] + torch.tensor([0, 0, 0, 1.9e-3])) == []
    assert wrong(index[:3], values[index[:3]], vectors[index[:3]]) == ["pair 29 is missing"]
    repeated, basis = small(problems, torch.tensor([1.0, 1.0] + [0.0] * 28).double())
    same = problems.wrong_pairs(
        repeated, problems.Cell("top", 2, 1e-3), [0, 1], torch.ones(2), basis[[0, 0]]
    )
    assert same == ["pair 1: returned twice"]


def test_products_are_counted_whoever_makes_them(module) -> None:
    problems = module("solver_problems")
    truth, _ = small(problems, torch.linspace(1, 0, 30, dtype=torch.float64))
    block = torch.eye(30, 4, dtype=torch.float64)
    truth.operator.apply(block)
    truth.operator.jacobian.rmatmat(truth.operator.jacobian.matmat(block))
    assert problems.count(truth.operator) == 8


def test_the_smallest_table_holds_ours_theirs_and_the_bars(module, tmp_path: Path, capsys) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "rows.json"
    settings = ["--models", "ReLU net", "--tols", "1e-3", "--seeds", "1", "--json", str(file)]
    try:
        status = module("eigensolvers").main(
            ["--sections", "cells", "--cells", "top1", "--methods", "lanczos", *settings]
        )
    finally:
        torch.set_num_threads(threads)
    facts = json.loads(file.read_text())
    ours, *theirs = facts["rows"]
    assert status == (1 if facts["missed"] else 0)
    assert {"eigsh", "LOBPCG", "plenoptic"} <= {row["method"] for row in theirs}
    assert ours["products"] == ours["search"] + ours["verify"]
    assert ours["wrong"] == ours["unconverged"] == 0
    assert not ours["runs"][0]["miscounted"]
    # No method without a preconditioner needs fewer from the same start.
    assert ours["search"] >= ours["yardstick"] > 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("section")
    assert f"{facts['bars']} bars, {facts['missed']} missed" in printed


def test_a_solver_that_returns_wrong_pairs_misses_the_bar(
    module, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = module("solver_cells")
    problems = module("solver_problems")
    truth, _ = small(problems, torch.linspace(1, 0, 30, dtype=torch.float64))
    cell = problems.Cell("top", 1, 1e-3)
    honest = ee.solve

    def second_pair(operator: object, method: str, **settings: object) -> ee.Spectrum:
        from dataclasses import replace

        found = honest(operator, method, **{**settings, "k": 2})
        return replace(
            found,
            eigenvalues=found.eigenvalues[1:],
            eigenvectors=found.eigenvectors[1:],
            eigenindex=found.eigenindex[:1],
            residuals=found.residuals[1:],
            error_bounds=found.error_bounds[1:],
            status=found.status[1:],
        )

    def bars() -> list[dict[str, object]]:
        row = cells.summary([cells.measure(truth, "lanczos", cell, 0)], [10])
        return [entry for entry in cells.cell_bars(row, cell, []) if "wrong" in entry["bar"]]

    assert bars() == [{"bar": "none wrong", "passed": True}]
    monkeypatch.setattr(ee, "solve", second_pair)
    assert bars() == [{"bar": "none wrong", "passed": False}]


def test_a_number_of_seeds_below_one_is_refused(module, capsys) -> None:
    with pytest.raises(SystemExit):
        module("eigensolvers").parse(["--seeds", "0"])
    assert "expected at least 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_table_has_every_section(module, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "eigensolvers.py"), "--quick", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode in (0, 1), done.stderr
    facts = json.loads(file.read_text())
    assert {row["section"] for row in facts["rows"]} == set(module("eigensolvers").SECTIONS)
    assert all(row["wrong"] == 0 for row in facts["rows"] if row["section"] == "spectra")
    memory = [row for row in facts["rows"] if row["section"] == "memory"]
    assert all(row["beyond"] > row["vector"] for row in memory)
