"""Hold what solves say of themselves against dense float64 truth, over thousands of problems.

    python benchmarks/proof.py                          10 000 problems and the named inputs
    python benchmarks/proof.py --sample                 a few minutes, for CI
    python benchmarks/proof.py --case 1234              one problem again, in words
    python benchmarks/proof.py --miss-chance 0.1        is the stated chance a bound?
    python benchmarks/proof.py --rows FILE              each row kept at once: the same line goes on

A pair said to be converged is wrong when its eigenvalue is further than (1 + √k) · tol · λmax, or
further than its own bound, from the true one of its index. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from proof_judge import most_products, run
from proof_named import NAMED, Named
from proof_problems import FAMILIES, Case, build, draw

from eigenexp.eigensolvers import METHODS

COUNT, SAMPLE = 10_000, 700
MOST_UNVERIFIED = 0.02
MOST_TOLD = 400

Row = dict[str, Any]


class Kept:
    """Rows already solved, a JSON line each, and where new ones go; nowhere without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                # The last line of a run that was ended is part of one.
                with contextlib.suppress(json.JSONDecodeError):
                    saved = json.loads(line)
                    self._rows[saved["key"]] = saved["row"]

    def row(self, key: str, solve: Callable[[], Row]) -> Row:
        """Return the row of that key: kept, or solved now."""
        if key not in self._rows:
            self._rows[key] = solve()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(f"\n{json.dumps({'key': key, 'row': self._rows[key]})}")
        return self._rows[key]


def section_problems(options: argparse.Namespace) -> Iterator[Row]:
    """Yield one row a drawn problem."""
    kept = Kept(None if options.case else options.rows)
    chance = {} if options.miss_chance is None else {"miss_chance": options.miss_chance}
    indices = options.case or range(options.start, options.start + options.count)
    for index in indices:
        case = draw(index, options.seed, options.families)
        if options.case is not None and options.method:
            case = replace(case, method=options.method)
        key = f"problem {options.seed}/{index} {sorted(options.families)} {case.method} {chance}"
        yield kept.row(key, functools.partial(_solved, case, chance))


def _solved(case: Case, chance: Row) -> Row:
    row = {**asdict(case), "n": case.n}
    return {"name": case.family, **row, **asdict(run(build(case), {**case.settings, **chance}))}


def section_named(options: argparse.Namespace) -> Iterator[Row]:
    """Yield one row a seed of each named input."""
    chance = {} if options.miss_chance is None else {"miss_chance": options.miss_chance}
    kept = Kept(options.rows)
    for name, named in NAMED.items():
        for seed in range(min(named.seeds, options.named_seeds)):
            settings = {"method": "auto", **named.settings, "seed": seed, **chance}
            key = f"named {name} {seed} {chance}"
            yield kept.row(key, functools.partial(_solved_named, name, named, seed, settings))


def _solved_named(name: str, named: Named, seed: int, settings: Row) -> Row:
    truth = named.make(seed)
    row = {"n": truth.n, "seed": seed, **settings, **asdict(run(truth, settings))}
    return {"name": name, **row, "most": named.most}


# -- the table -----------------------------------------------------------------------------------


def failed(row: Mapping[str, Any]) -> bool:
    """Return whether anything said in a row is false."""
    return bool(row["wrong"] or row["false_bounds"] or row["error"] or row["over"])


def summary(rows: Sequence[Row]) -> Row:
    """Return the counts of some rows."""
    return {
        "problems": len(rows),
        "wrong": sum(bool(row["wrong"]) for row in rows),
        "false_bounds": sum(bool(row["false_bounds"]) for row in rows),
        "exceptions": sum(bool(row["error"]) for row in rows),
        "over": sum(row["over"] for row in rows),
        "unverified": sum(row["status"] == "unverified" for row in rows),
        "unconverged": sum(row["status"] == "unconverged" for row in rows),
        "products": statistics.median(row["products"] for row in rows),
        "skewest": max(row["skew"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
    }


_WIDTHS = {
    "problems": 8, "wrong": 6, "false_bounds": 12, "exceptions": 10, "over": 5, "unverified": 10,
    "unconverged": 11, "products": 8, "skewest": 8, "seconds": 8,
}  # fmt: skip


def line(name: str, counts: Mapping[str, Any]) -> str:
    """Return one line of the table."""
    cells = []
    for key, width in _WIDTHS.items():
        value = counts[key]
        text = f"{value:.0e}" if key == "skewest" else f"{value:g}"
        cells.append((f"{value:.1f}" if key == "seconds" else text).rjust(width))
    return name.ljust(38) + " ".join(cells)


def head() -> str:
    """Return the titles of the columns."""
    titles = [key.replace("_", " ").rjust(width) for key, width in _WIDTHS.items()]
    return " " * 38 + " ".join(titles)


def grouped(rows: Iterable[Row], *keys: str) -> dict[str, list[Row]]:
    """Return rows by the values of some keys."""
    groups = defaultdict(list)
    for row in rows:
        groups[", ".join(str(row[key]) for key in keys)].append(row)
    return dict(sorted(groups.items()))


# -- the bars ------------------------------------------------------------------------------------


def allowed_wrong(count: int, chance: float | None) -> int:
    """Return how many of ``count`` may be wrong: none at the default, else what the claim allows.

    Four standard deviations above the mean of a binomial.
    """
    if chance is None:
        return 0
    return math.floor(count * chance + 4 * math.sqrt(count * chance * (1 - chance)))


def bars(problems: Sequence[Row], named: Sequence[Row], chance: float | None) -> list[Row]:
    """Return each bar with what was measured and whether it is passed."""
    found = []

    def bar(name: str, value: float, most: float) -> None:
        found.append({"bar": name, "value": value, "most": most, "passed": value <= most})

    for title, rows in (("problems", problems), ("named inputs", named)):
        if not rows:
            continue
        counts = summary(rows)
        bar(f"wrong converged, {title}", counts["wrong"], allowed_wrong(len(rows), chance))
        bar(f"false bounds, {title}", counts["false_bounds"], 0)
        bar(f"exceptions, {title}", counts["exceptions"], 0)
        bar(f"over 60n + 2000 products, {title}", counts["over"], 0)
    if problems:
        share = summary(problems)["unverified"] / len(problems)
        bar("unverified, share of problems", share, MOST_UNVERIFIED)
    for name, rows in grouped(named, "name").items():
        most = rows[0]["most"]
        if most is not None and chance is None:
            bar(f"products, {name}", statistics.median(row["products"] for row in rows), most)
    return found


def tell(row: Mapping[str, Any]) -> str:
    """Return a failing row in words, with what repeats it."""
    case = f"--case {row['index']}" if "index" in row else ""
    question = ", ".join(f"{key}={row[key]}" for key in ("method", "which", "k", "tol", "seed"))
    where = f"{row['kind']}, {row['form']}, {row['dtype']}" if "kind" in row else ""
    said = [*row["wrong"][:2], *row["false_bounds"][:2], row["error"]]
    said += [f"{row['products']} products of at most {most_products(row['n'])}"] * row["over"]
    text = "; ".join(sentence for sentence in said if sentence)
    return f"{case} {row['name']} {where} n={row['n']}, {question}: {text}".strip()


def failures(rows: Iterable[Row]) -> list[str]:
    """Return the failing rows in words, the smallest problems first."""
    bad = sorted((row for row in rows if failed(row)), key=lambda row: row["n"])
    return [tell(row) for row in bad]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--count", type=int, default=None, help=f"problems drawn ({COUNT}; {SAMPLE} of a sample)")
    add("--start", type=int, default=0, help="number of the first problem: to share the work out")
    add("--sample", action="store_true", help="a few minutes: fewer problems and seeds")
    add("--seed", type=int, default=0, help="draws other problems")
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--named", action=argparse.BooleanOptionalAction, default=True)
    add("--miss-chance", type=float, help="of each solve; the bar of wrong ones follows")
    add("--case", type=int, nargs="+", help="solve these problems alone, and tell of each")
    add("--method", choices=METHODS, help="with --case: by this method instead")
    add("--rows", type=Path, help="a file of rows, to go on from and to add to")
    add("--json", type=Path, help="also write every row here")
    options = parser.parse_args(arguments)
    if options.count is None:
        options.count = SAMPLE if options.sample else COUNT
    options.named_seeds = 3 if options.sample else 10**9
    options.named = options.named and options.case is None
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run, print the table and the bars, and return 1 when one is missed."""
    options = parse(arguments)
    torch.set_num_threads(1)
    begun = time.perf_counter()
    named = list(section_named(options)) if options.named else []
    problems = list(section_problems(options))
    if options.case is not None:
        for row in problems:
            print(tell(row), f"[{row['status']}, {row['products']} products]", *row["notes"][:4])
        return int(any(failed(row) for row in problems))
    print(head())
    for keys in (("family",), ("method",), ("dtype",), ("which",)):
        for name, rows in grouped(problems, *keys).items():
            print(line(name, summary(rows)))
    for name, rows in grouped(named, "name").items():
        print(line(name, summary(rows)))
    if problems:
        print(line("all problems", summary(problems)))
    checked = bars(problems, named, options.miss_chance)
    for bar in checked:
        verdict = "ok" if bar["passed"] else "MISSED"
        print(f"{bar['bar']}: {bar['value']:.4g}, at most {bar['most']:g}: {verdict}")
    told = failures([*problems, *named])
    print(*told[:MOST_TOLD], sep="\n")
    missed = sum(not bar["passed"] for bar in checked)
    print(f"{len(checked)} bars, {missed} missed, {time.perf_counter() - begun:.0f} s")
    if options.json is not None:
        facts = {"bars": checked, "problems": problems, "named": named, "failures": told}
        options.json.write_text(json.dumps(facts, indent=1))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
