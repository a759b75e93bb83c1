"""What a command costs beside its solve: whole processes side by side, paired, medians.

A round runs every command once, so that all see the same machine; what is reported is the median
over rounds of the difference to ``import lightning`` in the same round, as wall time and as
processor time (of the process and of those it waited for). A sweep is run with few and with many
jobs: the slope is the cost of a further one.

``python benchmarks/startup.py --rounds 5 --json startup.json``
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

FIT = ["fit", "model=identity", "image=camera", "image.crop=[120,220,8,8]", "solver=exact"]
FEW, MANY = 2, 8


def cost(command: list[str], folder: Path) -> tuple[float, float]:
    """Return the wall and processor seconds of a process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, used


def commands(sweeps: bool) -> dict[str, list[str]]:
    """Return what is run in a round, by name."""
    ours = [sys.executable, "-m", "eigenexp.cli"]
    found = {
        "import lightning": [sys.executable, "-c", "import lightning"],
        "fit, logger=none": [*ours, *FIT, "logger=none"],
        "fit, both loggers": [*ours, *FIT],
        "help": [*ours, "--help"],
        "models": [*ours, "models"],
        "show": [*ours, "show"],
    }
    for logger in ("none", "both") if sweeps else ():
        for count in (FEW, MANY):
            seeds = f"solver.seed={','.join(map(str, range(count)))}"
            name = f"sweep of {count}, logger={logger}"
            found[name] = [*ours, *FIT[:1], "-m", *FIT[1:], seeds, f"logger={logger}"]
    return found


def main() -> None:
    """Run the rounds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweeps", action="store_true", help="the cost of a further job too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    every = commands(options.sweeps)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, command in every.items():
                measured[name].append(cost(command, Path(folder)))
    rows = []
    for name, costs in measured.items():
        pairs = list(zip(costs, measured["import lightning"], strict=True))
        rows.append(
            {
                "command": name,
                "wall": median(wall for wall, _ in costs),
                "cpu": median(used for _, used in costs),
                "wall_beyond_lightning": median(own[0] - base[0] for own, base in pairs),
                "cpu_beyond_lightning": median(own[1] - base[1] for own, base in pairs),
            }
        )
    for logger in ("none", "both") if options.sweeps else ():
        few, many = (measured[f"sweep of {count}, logger={logger}"] for count in (FEW, MANY))
        slopes = [
            [(after[i] - before[i]) / (MANY - FEW) for i in (0, 1)]
            for before, after in zip(few, many, strict=True)
        ]
        rows.append(
            {
                "command": f"a further job, logger={logger}",
                "wall": median(slope[0] for slope in slopes),
                "cpu": median(slope[1] for slope in slopes),
            }
        )
    for row in rows:
        beyond = (
            f"  {row['wall_beyond_lightning']:+6.2f} wall {row['cpu_beyond_lightning']:+6.2f} cpu"
            if "wall_beyond_lightning" in row
            else ""
        )
        print(f"{row['command']:<32} {row['wall']:6.2f} wall {row['cpu']:6.2f} cpu{beyond}")
    if options.json is not None:
        facts = {"rounds": options.rounds, "load": os.getloadavg(), "rows": rows}
        options.json.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
