"""The benchmark of the proof finds what is false, and only that."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eigenexp as ee
from eigenexp.spectrum import PairStatus

FOLDER = Path(__file__).parents[1] / "benchmarks"
TOL = 1e-3


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def truth(module):
    """Return F of order 20 with eigenvalues 1, 0.95, …, 0.05 in a random basis."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(1, 0.05, 20, dtype=torch.float64)
    return module("proof_problems").of_jacobian(values.sqrt()[:, None] * basis.T, (20,))


@pytest.fixture
def found(truth) -> ee.Spectrum:
    return ee.solve(truth.operator, "exact", which="both", k=2, tol=TOL)


def test_the_truth_passes(module, truth, found: ee.Spectrum) -> None:
    verdict = module("proof_judge").judge(truth, found, TOL, 2)
    assert not verdict.failed
    assert verdict.status == "converged"
    assert verdict.skew < 1e-12


def test_a_pair_that_is_not_the_one_of_its_index_is_wrong(module, truth, found) -> None:
    judge = module("proof_judge").judge
    index = found.eigenindex + torch.tensor([1, 1, 0, 0])
    missed = judge(truth, replace(found, eigenindex=index), TOL, 2)
    assert len(missed.wrong) == 2
    assert "off by 5.0e-02 λmax" in missed.wrong[0]
    assert not missed.false_bounds  # an eigenvalue is there, though another one
    doubtful = replace(found, eigenindex=index, status=(PairStatus.UNVERIFIED,) * 4)
    assert not judge(truth, doubtful, TOL, 2).wrong  # nobody said it was


def test_a_bound_that_holds_no_eigenvalue_is_false_whatever_the_status(module, truth, found):
    off = found.eigenvalues + torch.tensor([0, 0, 0, 1e-4])
    narrow = replace(found, eigenvalues=off, error_bounds=torch.full((4,), 1e-9))
    verdict = module("proof_judge").judge(truth, narrow, TOL, 2)
    assert len(verdict.false_bounds) == 1
    assert verdict.wrong
    assert "beyond its bound" in verdict.wrong[0]
    doubtful = replace(narrow, status=(PairStatus.UNCONVERGED,) * 4)
    assert len(module("proof_judge").judge(truth, doubtful, TOL, 2).false_bounds) == 1


def test_a_vector_that_is_no_eigenvector_is_wrong(module, truth, found) -> None:
    turned = found.eigenvectors.clone()
    turned[0] = (turned[0] + turned[2]) / 2**0.5
    verdict = module("proof_judge").judge(truth, replace(found, eigenvectors=turned), TOL, 2)
    assert len(verdict.wrong) == 1
    assert "residual" in verdict.wrong[0]
    assert verdict.skew > 0.5


def test_too_many_products_and_exceptions_are_told(module, truth, found, monkeypatch) -> None:
    judge, proof = module("proof_judge"), module("proof")
    dear = replace(found, num_products=60 * 20 + 2001)
    assert judge.judge(truth, dear, TOL, 2).over
    assert not judge.judge(truth, replace(found, num_products=60 * 20 + 2000), TOL, 2).over

    def fails(*_: object, **__: object) -> ee.Spectrum:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(ee, "solve", fails)
    verdict = judge.run(truth, {"tol": TOL})
    assert verdict.error == "RuntimeError: no such luck"
    rows = list(proof.section_problems(proof.parse(["--count", "3", "--no-named"])))
    missed = [bar["bar"] for bar in proof.bars(rows, [], None) if not bar["passed"]]
    assert missed == ["exceptions, problems"]
    assert "no such luck" in proof.failures(rows)[0]


def test_problems_are_drawn_alike_by_everybody_and_cover_what_is_asked(module) -> None:
    draw = module("proof_problems").draw
    cases = [draw(i) for i in range(600)]
    assert cases[77] == draw(77) != draw(77, seed=1)
    assert {case.method for case in cases} == set(ee.eigensolvers.METHODS)
    assert {case.dtype for case in cases} == {"float32", "float64"}
    assert {case.family for case in cases} == set(module("proof_problems").FAMILIES)
    kinds = {case.kind for case in cases if case.family != "model"}
    assert kinds == set(module("proof_problems").SPECTRA)
    assert min(case.n for case in cases) <= 9
    assert max(case.n for case in cases) == 576


def test_every_drawn_problem_has_the_spectrum_it_names(module) -> None:
    problems = module("proof_problems")
    for index in range(60):
        case = problems.draw(index, families=["spectrum", "picture"])
        truth = problems.build(case)
        if case.form == "wide":
            continue
        named = problems.SPECTRA[case.kind](case.n).clamp(min=0).sort(descending=True).values
        eps = torch.finfo(getattr(torch, case.dtype)).eps
        assert torch.allclose(
            truth.values, named, rtol=0, atol=100 * eps * float(named[0]) + 1e-300
        )


def test_the_claimed_chance_allows_what_a_binomial_does(module) -> None:
    allowed = module("proof").allowed_wrong
    assert allowed(10_000, None) == 0
    assert allowed(100, 0.5) == 70
    assert allowed(10_000, 1e-3) == 22


def test_one_command_prints_the_table_and_writes_json(module, tmp_path: Path, capsys) -> None:
    file = tmp_path / "rows.json"
    threads = torch.get_num_threads()
    try:
        status = module("proof").main(["--count", "24", "--no-named", "--json", str(file)])
    finally:
        torch.set_num_threads(threads)
    facts = json.loads(file.read_text())
    assert len(facts["problems"]) == 24
    missed = [bar for bar in facts["bars"] if not bar["passed"]]
    assert status == (1 if missed else 0)
    printed = capsys.readouterr().out
    assert "all problems" in printed
    assert f"{len(facts['bars'])} bars, {len(missed)} missed" in printed


TRUTH = ("wrong converged", "false bounds", "exceptions", "over 60n", "unverified")
"""Bars of what is said; those of cost are the full benchmark's."""


def missed(bars: list[dict[str, object]]) -> list[object]:
    """Return the bars of truth that are missed."""
    return [b["bar"] for b in bars if str(b["bar"]).startswith(TRUTH) and not b["passed"]]


def test_nothing_false_is_said_of_drawn_problems(module) -> None:
    proof = module("proof")
    options = ["--start", "20000", "--count", "40", "--no-named", "--families"]
    rows = list(proof.section_problems(proof.parse([*options, "spectrum", "picture"])))
    assert not missed(proof.bars(rows, [], None)), "\n".join(proof.failures(rows))


@pytest.mark.parametrize(
    "name",
    [
        "0.3^i thrice, n = 100, top 8",
        "bottom pair, 6×6, bottom 2",
        "bottom pair, 4×4, bottom 8",
        "diag(1e6, 0 … 1), bottom 1",
    ],
)
def test_nothing_false_is_said_of_inputs_that_proofs_were_wrong_about(module, name: str) -> None:
    judge, named = module("proof_judge"), module("proof_named").NAMED[name]
    for seed in range(4):
        verdict = judge.run(named.make(seed), {"method": "auto", **named.settings, "seed": seed})
        assert not verdict.failed, verdict


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_false_is_said_of_the_sample(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "proof.py"), "--sample", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode in (0, 1), done.stderr
    facts = json.loads(file.read_text())
    assert len(facts["problems"]) == 700
    assert not missed(facts["bars"]), "\n".join(facts["failures"])


def test_a_run_that_is_broken_off_goes_on_from_its_rows(module, tmp_path, capsys) -> None:
    proof, rows = module("proof"), tmp_path / "rows"
    ask = ["--no-named", "--families", "spectrum", "--rows", str(rows)]
    proof.main([*ask, "--count", "3"])
    whole = rows.read_text()
    assert whole.count('"key"') == 3
    rows.write_text(whole[:-20])  # ended while a line was written
    proof.main([*ask, "--count", "4"])
    assert "all problems" in capsys.readouterr().out
    assert rows.read_text().startswith(whole[:-20])
    assert rows.read_text().count('"key"') == 5  # two of before, the part of one, two anew
