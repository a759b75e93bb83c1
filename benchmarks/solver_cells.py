"""Counts of products: the cells of the table, judged and compared."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from peers import PEERS, Peers
from solver_problems import (
    SPECTRA,
    Cell,
    Problem,
    cells,
    count,
    fisher,
    prescribed,
    problem,
    wrong_pairs,
)
from yardstick import least_products

import eigenexp as ee

Row = dict[str, Any]


def bar(text: str, passed: bool) -> dict[str, Any]:
    """Return one bar and whether it was passed."""
    return {"bar": text, "passed": bool(passed)}


def stored_vectors(solver: ee.eigensolvers.Eigensolver) -> int:
    """Return how many vectors of n numbers a solver says it stores."""
    return solver.stored_vectors


def measure(truth: Problem, method: str, cell: Cell, seed: int, least: int | None = None) -> Row:
    """Solve once; count by the operator, judge by the dense truth.

    Stops unconverged at 20·n products, or at ten times the yardstick ``least`` and 500.
    """
    before = count(truth.operator)
    stored: list[int] = []

    def look(solver: ee.eigensolvers.Eigensolver) -> None:
        stored.append(stored_vectors(solver))

    spectrum = ee.solve(
        truth.operator,
        method,
        callback=look,
        k=cell.k,
        which=cell.which,
        tol=cell.tol,
        seed=seed,
        max_products=20 * truth.n if least is None else 10 * least + 500,
    )
    products = count(truth.operator) - before
    index = spectrum.eigenindex.tolist()
    return {
        "seed": seed,
        "products": products,
        "verify": spectrum.num_verification_products,
        "search": products - spectrum.num_verification_products,
        "miscounted": spectrum.num_products != products,
        "stored": max(stored),
        "wrong": wrong_pairs(truth, cell, index, spectrum.eigenvalues, spectrum.eigenvectors),
        "unconverged": int((~spectrum.converged).sum()),
        "stop_reason": spectrum.stop_reason.value,
        "notes": list(spectrum.notes),
    }


def summary(runs: list[Row], least: list[int] | None = None) -> Row:
    """Return medians over seeds, and sums of wrong and unconverged pairs."""
    row: Row = {
        key: statistics.median(run[key] for run in runs) for key in ("products", "verify", "search")
    }
    row["wrong"] = sum(len(run["wrong"]) for run in runs)
    row["unconverged"] = sum(run["unconverged"] for run in runs)
    row["runs"] = runs
    if any(run["miscounted"] for run in runs):
        row["note"] = "num_products differs from the operator's count"
    if least is not None:
        row["yardstick"] = statistics.median(least[: len(runs)])
        row["ratio"] = row["search"] / row["yardstick"]
    return row


def cell_bars(row: Row, cell: Cell, ends: list[float]) -> Iterator[dict[str, Any]]:
    """Yield the bars of one cell; ``ends`` are the products of either end alone."""
    yard, products, search = row["yardstick"], row["products"], row["search"]
    if cell.which == "top":
        stored = max(run["stored"] for run in row["runs"])
        yield bar(f"{search:g} ≤ 1.05·{yard:g}", search <= 1.05 * yard)
        yield bar(f"verify {row['verify']:g} ≤ 15", row["verify"] <= 15)
        yield bar(f"stores {stored} ≤ 40", stored <= 40)
    elif cell.which == "both":
        yield bar(f"{products:g} ≤ 1.1·{max(ends):g}", products <= 1.1 * max(ends))
    elif yard <= 150:
        yield bar(f"{products:g} ≤ {yard:g}+25", products <= yard + 25)
    else:
        yield bar(f"{products:g} ≤ 0.7·{yard:g}", products <= 0.7 * yard)
    yield bar("none wrong", row["wrong"] == 0)


def section_cells(options: argparse.Namespace) -> Iterator[Row]:
    """Every model, cell and method, then the other solvers on the same cell."""
    for name in options.models:
        truth = problem(name)
        wanted = cells(options.cells, options.tols)
        yards = [
            least_products(truth.fisher.__matmul__, truth.n, seed, wanted, truth.values)
            for seed in range(options.seeds)
        ]
        peers = Peers()
        alone: dict[tuple[str, Cell], float] = {}
        for cell in wanted:
            least = [yard[cell] for yard in yards]
            common = {"section": "cells", "problem": name, "cell": cell.name, "tol": cell.tol}
            theirs = [common | row for row in peer_rows(peers, truth, cell, least, options)]
            right = [row for row in theirs if not row["wrong"]]
            for place, method in enumerate(options.methods):
                seeds = options.seeds if place == 0 else options.other_seeds
                try:
                    runs = [
                        measure(truth, method, cell, seed, least[seed]) for seed in range(seeds)
                    ]
                except ee.EigenexpError as error:  # some methods serve one end alone
                    yield common | {"method": method, "note": str(error)}
                    continue
                row = summary(runs, least)
                alone[method, cell] = row["products"]
                ends = [
                    alone[method, Cell(end, cell.k, cell.tol)]
                    for end in ("top", "bottom")
                    if cell.which == "both"
                ]
                row["bars"] = list(cell_bars(row, cell, ends))
                if right:
                    row["bars"].append(fewest(row, min(right, key=lambda peer: peer["products"])))
                yield common | {"method": method} | row
            yield from theirs


def peer_rows(
    peers: Peers, truth: Problem, cell: Cell, least: list[int], options: argparse.Namespace
) -> Iterator[Row]:
    """Yield one row a solver; a pair that it did not converge to counts as wrong."""
    for name in PEERS if options.peers else ():
        runs = [peers.run(name, truth, cell, seed) for seed in range(options.other_seeds)]
        products = statistics.median(run.products for run in runs)
        yardstick = statistics.median(least[: len(runs)])
        yield {
            "method": name,
            "products": products,
            "yardstick": yardstick,
            "ratio": products / yardstick,
            "wrong": sum(max(run.wrong, run.unconverged) for run in runs),
            "unconverged": sum(run.unconverged for run in runs),
            "products_by_seed": [run.products for run in runs],
        }


def fewest(row: Row, peer: Row) -> dict[str, Any]:
    """Compare with the best solver that is right, over the seeds that both have run."""
    seeds = len(peer["products_by_seed"])
    ours = statistics.median(run["search"] for run in row["runs"][:seeds])
    theirs = peer["products"]
    return bar(f"fewest: {ours:g} ≤ {peer['method']} {theirs:g}", ours <= theirs)


def section_spectra(options: argparse.Namespace) -> Iterator[Row]:
    """Prescribed spectra: nothing may be missed, whatever is asked."""
    wanted = [
        Cell(end, k, tol)
        for end in ("top", "bottom", "both")
        for k in (1, 4)
        for tol in options.tols
    ]
    for kind in SPECTRA:
        problems = [prescribed(kind, seed) for seed in range(options.seeds)]
        for method in options.methods:
            runs = [
                measure(truth, method, cell, seed) | {"cell": cell.name, "tol": cell.tol}
                for cell in wanted
                for seed, truth in enumerate(problems)
            ]
            row = summary(runs)
            row |= {"section": "spectra", "problem": kind, "cell": "all", "method": method}
            row["bars"] = [bar(f"none wrong in {len(runs)} solves", row["wrong"] == 0)]
            yield row


def section_growth(options: argparse.Namespace) -> Iterator[Row]:
    """Products at growing sizes, matrix-free, beside the yardstick's."""
    goals = [Cell("top", 1, 1e-3), Cell("bottom", 1, 1e-3)]
    seeds = range(options.other_seeds)
    for name in (model for model in ("LGG", "OnOff", "Gaussian") if model in options.models):
        first: dict[tuple[str, Cell], Row] = {}
        for side in (32, 64) if options.quick else (32, 64, 128):
            operator = fisher(name, side)
            n = operator.shape[0]
            yards = [least_products(operator.__matmul__, n, seed, goals) for seed in seeds]
            for cell in goals:
                for method in options.methods:
                    runs = [_unjudged(operator, method, cell, seed) for seed in seeds]
                    row = summary(runs, [yard[cell] for yard in yards])
                    row |= {"section": "growth", "problem": f"{name} {side}²", "tol": cell.tol}
                    row |= {"cell": cell.name, "method": method, "wrong": None}
                    start = first.setdefault((method, cell), row)
                    if side > 32:
                        # To within one product: these counts are small.
                        growth = max(1.0, row["yardstick"] / start["yardstick"])
                        allowed = start["search"] * growth + 1
                        text = f"{row['search']:g} ≤ {start['search']:g}·{growth:.2f}+1"
                        row["bars"] = [bar(text, row["search"] <= allowed)]
                    yield row


def _unjudged(operator: ee.FisherOperator, method: str, cell: Cell, seed: int) -> Row:
    before = count(operator)
    spectrum = ee.solve(operator, method, k=cell.k, which=cell.which, tol=cell.tol, seed=seed)
    products = count(operator) - before
    return {
        "products": products,
        "verify": spectrum.num_verification_products,
        "search": products - spectrum.num_verification_products,
        "miscounted": spectrum.num_products != products,
        "wrong": [],
        "unconverged": int((~spectrum.converged).sum()),
    }


def section_float32(options: argparse.Namespace) -> Iterator[Row]:
    """Float32 to 1e-5 where float64 reaches 1e-6."""
    method, seeds = options.methods[0], range(options.other_seeds)
    for name in options.models:
        double = problem(name)
        single = double.single()
        for cell in cells([name for name in options.cells if name[:-1] != "both"], [1e-5]):
            harder = Cell(cell.which, cell.k, 1e-6)
            reached = [measure(double, method, harder, seed) for seed in seeds]
            runs = [measure(single, method, cell, seed) for seed in seeds]
            floors = sum(run["stop_reason"] == "floor" for run in runs)
            passed = all(
                mine["stop_reason"] in ("converged", "floor")
                for mine, theirs in zip(runs, reached, strict=True)
                if theirs["stop_reason"] == "converged"
            )
            row = summary(runs)
            lies = sum(len(run["wrong"]) for run in runs if run["stop_reason"] == "converged")
            row |= {"section": "float32", "problem": name, "cell": cell.name, "tol": cell.tol}
            row |= {"method": method, "note": f"{floors} of {len(runs)} at the floor"}
            row["bars"] = [bar("1e-5 or the floor", passed), bar("none wrong", lies == 0)]
            yield row
