"""Products F·v of our eigensolvers against the least possible, other solvers, and the bars.

    python benchmarks/eigensolvers.py [--json FILE] [--quick] [--full]
        [--sections cells spectra growth float32 arithmetic memory plenoptic]
        [--models OnOff LGG ...] [--cells top1 bottom5 ...] [--methods auto lanczos ...]
        [--seeds 20] [--other-seeds 5] [--no-peers]

One table. A *product* is one column of F·v, counted by the operator. The yardstick is Lanczos
without restarts and with full reorthogonalisation (see ``yardstick.py``), from the same random
vector for the seed. Counts are medians over seeds: ``--seeds`` for the first method and for missed
or wrong pairs, ``--other-seeds`` for further methods, other solvers (see ``peers.py``), growth and
float32. ``products`` are all products, ``verify`` those of them that served the proof alone, the
ratio is (products - verify) / yardstick. A pair is missed or wrong when its eigenvalue lies further
than 2·tol·λmax from the true one of its index, its true residual exceeds that, or its vector is
returned twice. Ends with status 1 when a bar is missed.

cells       32×32 of einstein, float64, dense J. Bars: top (products - verify) ≤ 1.05 × yardstick,
            verify ≤ 15 and at most 40 vectors stored; bottom products ≤ yardstick + 25 where it
            needs up to 150, else ≤ 0.7 × it; both ends ≤ 1.1 × the dearer end alone; none wrong;
            fewest, verification apart, of all that are right in every seed.
spectra     Repeated, clustered, zero and one-ulp-apart eigenvalues: none missed or wrong.
growth      32², 64², 128²: products, verification apart, grow no faster than the yardstick's,
            to within one product.
float32     tol 1e-5 wherever float64 reaches 1e-6, or a stop at the floor that is said.
arithmetic  OnOff 256², float32: at most 5 % of the time is spent outside products.
memory      A process solves at 3×224×224: its peak beyond products alone is at most
            (stored vectors + 10)·n numbers, and 4 GiB in all. Linux only.
plenoptic   OnOff 64² (``--full``: 256² too), top 1 and bottom 1 to the residuals plenoptic reaches
            with its defaults: at least 20 times faster.

Times are CPU seconds of one thread, so that a busy machine blurs them less. What one product and a
dense Jacobian cost is measured by ``products.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peers import PEERS
from solver_cells import Row, section_cells, section_float32, section_growth, section_spectra
from solver_problems import MODELS, NAMES, TOLERANCES
from solver_resources import section_arithmetic, section_memory, section_plenoptic

from eigenexp.eigensolvers import METHODS

# key in a row, title, width, format of a number
COLUMNS = (
    ("section", "section", -10, "s"),
    ("problem", "problem", -13, "s"),
    ("cell", "cell", -7, "s"),
    ("tol", "tol", 5, ".0e"),
    ("method", "method", -10, "s"),
    ("products", "products", 8, "g"),
    ("verify", "verify", 6, "g"),
    ("yardstick", "yardstick", 9, "g"),
    ("ratio", "ratio", 6, ".2f"),
    ("wrong", "wrong", 5, "d"),
    ("unconverged", "unconv", 6, "d"),
)


def line(row: Row) -> str:
    """Return one line of the table: the columns, then each bar with its verdict."""
    entries = []
    for key, _, width, form in COLUMNS:
        value = row.get(key)
        text = "" if value is None else format(value, form)
        entries.append(text.ljust(-width) if width < 0 else text.rjust(width))
    said = [f"{bar['bar']} {'ok' if bar['passed'] else 'MISSED'}" for bar in row.get("bars", [])]
    said += [row["note"]] if row.get("note") else []
    return " ".join(entries) + "  " + "; ".join(said)


def head() -> str:
    """Return the titles of the columns."""
    titles = (t.ljust(-width) if width < 0 else t.rjust(width) for _, t, width, _ in COLUMNS)
    return " ".join(titles) + "  bars"


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "cells": section_cells,
    "spectra": section_spectra,
    "growth": section_growth,
    "float32": section_float32,
    "arithmetic": section_arithmetic,
    "memory": section_memory,
    "plenoptic": section_plenoptic,
}


def positive(text: str) -> int:
    """Return a number of seeds."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ``--quick`` changes what was not given."""
    quick = "--quick" in (sys.argv[1:] if arguments is None else arguments)
    ours = [method for method in ("auto", "lanczos", "davidson") if method in METHODS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, help="also write the rows, seed by seed, here")
    add("--quick", action="store_true", help="few models, cells and seeds: under a minute")
    add("--full", action="store_true", help="plenoptic at 256² too: 15 minutes")
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    models = ["OnOff", "ReLU net"] if quick else list(MODELS)
    add("--models", nargs="+", choices=MODELS, default=models)
    names = ["top1", "bottom1", "both1"] if quick else list(NAMES)
    add("--cells", nargs="+", choices=NAMES, default=names)
    add("--tols", nargs="+", type=float, default=list(TOLERANCES))
    add("--methods", nargs="+", choices=METHODS, default=ours[:1] if quick else ours)
    add("--seeds", type=positive, default=2 if quick else 20, help="of the first method")
    add("--other-seeds", type=positive, default=1 if quick else 5, help="of everything else")
    add("--peers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    # A row for both ends is compared with either end alone.
    both = [name for name in options.cells if name[:-1] == "both"]
    ends = {f"{end}{name[-1]}" for name in both for end in ("top", "bottom")}
    options.cells = [name for name in NAMES if name in {*options.cells, *ends}]
    options.other_seeds = min(options.seeds, options.other_seeds)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 where a bar is missed."""
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.peers and "PRIMME" not in PEERS:
        absent = "PRIMME is not installed (pip install primme, which links with BLAS and LAPACK)"
        print(absent, file=sys.stderr)  # beside the table, not in it
    print(head())
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for name in options.sections:
        began = time.process_time()
        for row in SECTIONS[name](options):
            rows.append(row)
            print(line(row), flush=True)
        seconds[name] = time.process_time() - began
    bars = [entry for row in rows for entry in row.get("bars", [])]
    missed = sum(not entry["passed"] for entry in bars)
    print(f"{len(bars)} bars, {missed} missed; {sum(seconds.values()):.0f} s of CPU")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        facts = {
            "settings": settings,
            "versions": {name: version(name) for name in ("eigenexp", "torch", "scipy")},
            "seconds": seconds,
            "bars": len(bars),
            "missed": missed,
            "rows": rows,
        }
        options.json.write_text(json.dumps(facts, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        # plenoptic's notes on its pictures and filters, torch's on prototypes.
        warnings.simplefilter("ignore")
        sys.exit(main())
