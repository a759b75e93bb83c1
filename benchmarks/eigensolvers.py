"""Products F·v of our eigensolvers against the least possible, other solvers, and the bars.

    python benchmarks/eigensolvers.py [--json FILE] [--quick] [--full]
        [--sections cells growth spectra float32 arithmetic plenoptic memory]
        [--models OnOff LGG ...] [--cells top1 bottom5 ...] [--methods auto lanczos ...]
        [--seeds 20] [--other-seeds 3] [--no-peers]

One table. A *product* is one column of F·v, counted by the operator. The yardstick is Lanczos
without restarts and with full reorthogonalisation (see ``solver_problems.yardstick``), from the
same random vector for the seed. Counts are medians over seeds: ``--seeds`` for the first method and
for missed or wrong pairs, ``--other-seeds`` for further methods, other solvers (see ``peers``) and
the sections on growth and float32. ``products`` hold everything, ``verify`` those of them spent on
the proof alone; the ratio is (products - verify) / yardstick. A pair is missed or wrong when its
eigenvalue lies further than 2·tol·λmax from the true one of its index, its true residual exceeds
that, or its vector is returned twice. Ends with status 1 when a bar is missed.

cells       32×32 of einstein, float64, dense J. Bars: top (products - verify) ≤ 1.05 × yardstick and
            verify ≤ 15; bottom products ≤ yardstick + 25 where it needs up to 150, else ≤ 0.7 × it;
            both ends ≤ 1.1 × the dearer end alone; none wrong; fewest, verification apart, among
            the solvers that are right in every seed (one line each below ours).
spectra     repeated, clustered, zero and one-ulp-apart eigenvalues: none missed or wrong.
growth      32², 64², 128²: products grow no faster than the yardstick's.
float32     tol 1e-5 wherever float64 reached 1e-6, or a stop at the floor that is said.
arithmetic  OnOff 256², float32: at most 5 % of the wall time is spent outside products.
memory      a process solves at 3×224×224: its peak beyond products alone, in numbers of the dtype,
            at most (stored vectors + 10)·n; in all at most 4 GiB.
plenoptic   OnOff 64² (``--full``: 256² too), top 1 and bottom 1 to the residuals plenoptic reaches
            with its defaults: at least 20 times faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import solver_resources as resources
import torch
from peers import PEERS, Peers, primme
from solver_problems import (
    MODELS,
    NAMES,
    SPECTRA,
    TOLERANCES,
    Cell,
    Problem,
    cells,
    count,
    fisher,
    prescribed,
    problem,
    wrong_pairs,
    yardstick,
)

import eigenexp as ee

Row = dict[str, Any]
COLUMNS = (
    f"{'section':10} {'problem':13} {'cell':7} {'tol':>5} {'method':10} {'products':>8} "
    f"{'verify':>6} {'yardstick':>9} {'ratio':>6} {'wrong':>6} {'unconv':>6}  bars"
)


def show(row: Row) -> None:
    """Print one line of the table."""

    def number(key: str, form: str, width: int) -> str:
        value = row.get(key)
        return f"{'' if value is None else format(value, form):>{width}}"

    print(
        f"{row['section']:10} {row['problem']:13} {row.get('cell', ''):7} {number('tol', '.0e', 5)} "
        f"{row['method']:10} {number('products', 'g', 8)} {number('verify', 'g', 6)} "
        f"{number('yardstick', 'g', 9)} {number('ratio', '.2f', 6)} {number('wrong', 'd', 6)} "
        f"{number('unconverged', 'd', 6)}  " + "; ".join(said(row)),
        flush=True,
    )


def said(row: Row) -> Iterator[str]:
    """Yield the bars of a row in words, each with its verdict, and what was measured."""
    for bar in row.get("bars", []):
        yield f"{bar['bar']} {'ok' if bar['passed'] else 'MISSED'}"
    if row.get("note"):
        yield row["note"]


def bar(text: str, passed: bool) -> dict[str, Any]:
    """Return one bar and whether it was passed."""
    return {"bar": text, "passed": bool(passed)}


def measure(truth: Problem, method: str, cell: Cell, seed: int) -> Row:
    """Solve once; count by the operator, judge by the dense truth."""
    before = count(truth.operator)
    spectrum = ee.solve(
        truth.operator,
        method,
        k=cell.k,
        which=cell.which,
        tol=cell.tol,
        seed=seed,
        max_products=50 * truth.n,
    )
    products = count(truth.operator) - before
    wrong = wrong_pairs(
        truth, cell, spectrum.eigenindex.tolist(), spectrum.eigenvalues, spectrum.eigenvectors
    )
    return {
        "seed": seed,
        "products": products,
        "verify": spectrum.num_verification_products,
        "miscounted": spectrum.num_products != products,
        "wrong": wrong,
        "unconverged": int((~spectrum.converged).sum()),
        "stop_reason": spectrum.stop_reason.value,
        "notes": list(spectrum.notes),
    }


def median_row(runs: list[Row], yards: list[int] | None = None) -> Row:
    """Return medians over seeds, and sums of wrong and unconverged pairs."""
    row: Row = {
        "products": statistics.median(run["products"] for run in runs),
        "verify": statistics.median(run["verify"] for run in runs),
        "wrong": sum(len(run["wrong"]) for run in runs),
        "unconverged": sum(run["unconverged"] for run in runs),
        "runs": runs,
    }
    row["search"] = statistics.median(run["products"] - run["verify"] for run in runs)
    if any(run["miscounted"] for run in runs):
        row["note"] = "num_products differs from the operator's count"
    if yards:
        row["yardstick"] = statistics.median(yards[: len(runs)])
        row["ratio"] = row["search"] / row["yardstick"]
    return row


def cell_bars(row: Row, cell: Cell, ends: dict[str, float]) -> list[dict[str, Any]]:
    """Return the bars of one row of the section on cells."""
    yard, bars = row["yardstick"], []
    if cell.which == "top":
        bars.append(bar(f"{row['search']:g} ≤ 1.05·{yard:g}", row["search"] <= 1.05 * yard))
        bars.append(bar(f"verify {row['verify']:g} ≤ 15", row["verify"] <= 15))
    elif cell.which == "bottom" and yard <= 150:
        bars.append(bar(f"{row['products']:g} ≤ {yard:g}+25", row["products"] <= yard + 25))
    elif cell.which == "bottom":
        bars.append(bar(f"{row['products']:g} ≤ 0.7·{yard:g}", row["products"] <= 0.7 * yard))
    elif len(ends) == 2:
        dearer = max(ends.values())
        bars.append(bar(f"{row['products']:g} ≤ 1.1·{dearer:g}", row["products"] <= 1.1 * dearer))
    bars.append(bar("none wrong", row["wrong"] == 0))
    return bars


def section_cells(options: argparse.Namespace) -> Iterator[Row]:
    """Every model, cell and method, then the other solvers on the same cell."""
    wanted = cells(options.cells, options.tols)
    for name in options.models:
        truth = problem(name)
        yards = [
            yardstick(truth.fisher.__matmul__, truth.n, seed, wanted, truth.values)
            for seed in range(options.seeds)
        ]
        peers = Peers()
        alone: dict[tuple[str, int, float, str], float] = {}
        for cell in wanted:
            least = [yard[cell] for yard in yards]
            found = list(_peer_rows(peers, truth, cell, least, options))
            right = {row["method"]: row["products"] for row in found if not row["wrong"]}
            right = {peer: products for peer, products in right.items() if products}
            for place, method in enumerate(options.methods):
                seeds = options.seeds if place == 0 else options.other_seeds
                row = median_row([measure(truth, method, cell, s) for s in range(seeds)], least)
                row |= {"section": "cells", "problem": name, "cell": cell.name, "tol": cell.tol}
                row["method"] = method
                alone[method, cell.k, cell.tol, cell.which] = row["products"]
                ends = {
                    end: alone[method, cell.k, cell.tol, end]
                    for end in ("top", "bottom")
                    if (method, cell.k, cell.tol, end) in alone
                }
                row["bars"] = cell_bars(row, cell, ends)
                if right:
                    best = min(right, key=right.__getitem__)
                    passed = row["search"] <= right[best]
                    row["bars"].append(bar(f"fewest ({best} {right[best]:g})", passed))
                yield row
            yield from found


def _peer_rows(
    peers: Peers, truth: Problem, cell: Cell, least: list[int], options: argparse.Namespace
) -> Iterator[Row]:
    if not options.peers:
        return
    for name in PEERS:
        runs = [peers.run(name, truth, cell, seed) for seed in range(options.other_seeds)]
        products = statistics.median(run.products for run in runs)
        yard = statistics.median(least[: len(runs)])
        unconverged = sum(run.unconverged for run in runs)
        wrong = sum(run.wrong for run in runs)
        yield {
            "section": "cells",
            "problem": truth.name,
            "cell": cell.name,
            "tol": cell.tol,
            "method": name,
            "products": products,
            "yardstick": yard,
            "ratio": products / yard,
            "wrong": max(wrong, unconverged),
            "unconverged": unconverged,
            "products_by_seed": [run.products for run in runs],
        }


def section_spectra(options: argparse.Namespace) -> Iterator[Row]:
    """Prescribed spectra: nothing may be missed, whatever is asked."""
    for kind in SPECTRA:
        problems = [prescribed(kind, seed) for seed in range(options.seeds)]
        for method in options.methods:
            for which in ("top", "bottom", "both"):
                for k in (1, 4):
                    for tol in options.tols:
                        cell = Cell(which, k, tol)
                        runs = [measure(p, method, cell, s) for s, p in enumerate(problems)]
                        row = median_row(runs)
                        row |= {"section": "spectra", "problem": kind, "cell": cell.name}
                        row |= {"tol": tol, "method": method}
                        row["bars"] = [bar("none wrong", row["wrong"] == 0)]
                        yield row


def section_growth(options: argparse.Namespace) -> Iterator[Row]:
    """Products at growing sizes, matrix-free, beside the yardstick's."""
    sides = (32, 64) if options.quick else (32, 64, 128)
    for name in [model for model in ("LGG", "OnOff", "Gaussian") if model in options.models]:
        kept: dict[tuple[str, str], Row] = {}
        for side in sides:
            operator = fisher(name, side)
            n = operator.shape[0]
            goals = [Cell("top", 1, 1e-3), Cell("bottom", 1, 1e-3)]
            yards = [
                yardstick(operator.__matmul__, n, seed, goals)
                for seed in range(options.other_seeds)
            ]
            for cell in goals:
                for method in options.methods:
                    runs = []
                    for seed in range(options.other_seeds):
                        before = operator.num_products
                        spectrum = ee.solve(
                            operator, method, k=1, which=cell.which, tol=cell.tol, seed=seed
                        )
                        runs.append(
                            {
                                "products": operator.num_products - before,
                                "verify": spectrum.num_verification_products,
                                "miscounted": False,
                                "wrong": [],
                                "unconverged": int((~spectrum.converged).sum()),
                            }
                        )
                    row = median_row(runs, [yard[cell] for yard in yards])
                    row |= {"section": "growth", "problem": f"{name} {side}²", "tol": cell.tol}
                    row |= {"cell": cell.name, "method": method, "wrong": None}
                    first = kept.setdefault((method, cell.name), row)
                    if side > sides[0]:
                        ours = row["products"] / first["products"]
                        least = row["yardstick"] / first["yardstick"]
                        row["bars"] = [bar(f"grew {ours:.2f} ≤ {least:.2f}", ours <= least)]
                    yield row


def section_float32(options: argparse.Namespace) -> Iterator[Row]:
    """Float32 to 1e-5 where float64 reaches 1e-6."""
    names = [name for name in options.cells if not name.startswith("both")]
    method = options.methods[0]
    for name in options.models:
        double = problem(name)
        truth = double.single()
        for cell in cells(names, [1e-5]):
            hard = Cell(cell.which, cell.k, 1e-6)
            reached = [measure(double, method, hard, s) for s in range(options.other_seeds)]
            runs = [measure(truth, method, cell, s) for s in range(options.other_seeds)]
            row = median_row(runs)
            floors = sum(run["stop_reason"] == "floor" for run in runs)
            passed = all(
                mine["stop_reason"] in ("converged", "floor")
                for mine, theirs in zip(runs, reached, strict=True)
                if theirs["stop_reason"] == "converged"
            )
            row |= {"section": "float32", "problem": name, "cell": cell.name, "tol": cell.tol}
            row |= {"method": method, "note": f"{floors} of {len(runs)} at the floor"}
            row["bars"] = [
                bar("1e-5 or the floor", passed),
                bar("none wrong", row["wrong"] == 0 or floors > 0),
            ]
            yield row


def section_arithmetic(options: argparse.Namespace) -> Iterator[Row]:
    """Share of the wall time outside products."""
    side = 64 if options.quick else 256
    for method in options.methods:
        share, seconds, products = resources.arithmetic(method, side)
        limit = 0.05
        yield {
            "section": "arithmetic",
            "problem": f"OnOff {side}²",
            "cell": "both1",
            "tol": 1e-3,
            "method": method,
            "products": products,
            "share": share,
            "seconds": seconds,
            "bars": [] if options.quick else [bar(f"{share:.1%} ≤ 5%", share <= limit)],
            "note": f"{seconds:.2f} s" + (f", {share:.1%} outside products" * options.quick),
        }


def section_memory(options: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of a process that solves at 3×224×224."""
    for method in options.methods:
        for model in resources.COLOUR:
            facts = resources.memory(model, method, 64 if options.quick else 224)
            allowed = facts["stored"] + 10
            used = facts["beyond_bytes"] / facts["bytes_a_vector"]
            yield {
                "section": "memory",
                "problem": model,
                "cell": "both1",
                "tol": 1e-6,
                "method": method,
                "products": facts["products"],
                **facts,
                "bars": [
                    bar(f"{used:.0f}·n ≤ ({facts['stored']}+10)·n", used <= allowed),
                    bar(f"{facts['peak_bytes'] / 2**30:.2f} ≤ 4 GiB", facts["peak_bytes"] <= 2**32),
                ],
            }


def section_plenoptic(options: argparse.Namespace) -> Iterator[Row]:
    """A whole solve, in seconds."""
    sides = (32,) if options.quick else (64, 256) if options.full else (64,)
    for side in sides:
        theirs = resources.plenoptic_solve(side)
        for method in options.methods:
            for whose in ("plenoptic's", "ours"):
                ours = resources.our_solve(side, whose, method, theirs["tol"])
                speedup = theirs["seconds"] / ours["seconds"]
                yield {
                    "section": "plenoptic",
                    "problem": f"OnOff {side}²",
                    "cell": "both1",
                    "tol": theirs["tol"],
                    "method": method,
                    "products": ours["products"],
                    "theirs": theirs,
                    "ours": ours,
                    "bars": [bar(f"{speedup:.0f}× ≥ 20×", speedup >= 20)],
                    "note": (
                        f"module: {whose}; {ours['seconds']:.2f} s, residuals "
                        f"{ours['residuals'][0]:.0e} {ours['residuals'][1]:.0e}; plenoptic "
                        f"{theirs['seconds']:.1f} s, {theirs['products']} products, "
                        f"{theirs['residuals'][0]:.0e} {theirs['residuals'][1]:.0e}"
                    ),
                }


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "cells": section_cells,
    "spectra": section_spectra,
    "growth": section_growth,
    "float32": section_float32,
    "arithmetic": section_arithmetic,
    "memory": section_memory,
    "plenoptic": section_plenoptic,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ``--quick`` fills in what was not given."""
    methods = list(ee.eigensolvers.METHODS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--quick", action="store_true", help="few models, cells and seeds")
    parser.add_argument("--full", action="store_true", help="plenoptic at 256² too: 15 minutes")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--cells", nargs="+", choices=NAMES)
    parser.add_argument("--tols", nargs="+", type=float, default=list(TOLERANCES))
    parser.add_argument("--methods", nargs="+", choices=methods)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--other-seeds", type=int)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    quick = options.quick
    options.sections = options.sections or list(SECTIONS)
    options.models = options.models or (["OnOff", "LGG", "ReLU net"] if quick else list(MODELS))
    chosen = options.cells or (["top1", "bottom1", "both1"] if quick else NAMES)
    # A row for both ends is compared with either end alone.
    ends = {
        f"{end}{name[-1]}" for name in chosen if name[:-1] == "both" for end in ("top", "bottom")
    }
    options.cells = [name for name in NAMES if name in {*chosen, *ends}]
    options.methods = options.methods or [
        m for m in ("auto", "lanczos", "davidson") if m in methods
    ]
    options.seeds = options.seeds or (2 if quick else 20)
    options.other_seeds = min(options.seeds, options.other_seeds or (1 if quick else 3))
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 where a bar is missed."""
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.peers and primme is None:
        print("PRIMME is not installed (pip install primme, which links with BLAS and LAPACK)")
    print(COLUMNS)
    rows: list[Row] = []
    for name in options.sections:
        for row in SECTIONS[name](options):
            rows.append(row)
            show(row)
    bars = [entry for row in rows for entry in row.get("bars", [])]
    missed = sum(not entry["passed"] for entry in bars)
    print(f"{len(bars)} bars, {missed} missed")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        facts = {"settings": settings, "missed": missed, "bars": len(bars), "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        # plenoptic's notes on its pictures and filters, torch's on prototypes.
        warnings.simplefilter("ignore")
        sys.exit(main())
