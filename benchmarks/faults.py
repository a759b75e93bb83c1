"""Twelve ways in which a tracking server fails, met by real runs: every point arrives once.

    python benchmarks/faults.py --sample              three runs, about a minute
    python benchmarks/faults.py --json faults.jsonl   all, about twenty minutes

Between a run and a real MLflow server stands a proxy that fails: *now and then* for as long as the
run lives, from its *start* until after its end, or from its *middle* on. Each time the run's exit
code and its words are judged (does it say what is not stored, and how to send it?), then those of
``eigenexp sync`` while the server fails and when it is back; last, what the server has is compared
with a run that met no fault. Every case is a line of the file; a benchmark that is started again
goes on behind the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faulty_proxy import FAULTS, FaultyProxy

HOME = Path(__file__).absolute().parents[1]
WAYS = ("now and then", "from the start", "from the middle")
SAMPLE = [
    ("dropped answers", "now and then"),
    ("login page", "from the middle"),
    ("400", "now and then"),
]
FIT = ["image.crop=[120,220,20,20]", "trainer.enable_progress_bar=false", "threads=1",
       "trainer.accelerator=cpu", "logger=mlflow", "solver=power", "solver.tol=1e-9",
       "trainer.max_steps=500", "callbacks.checkpoint_every=50",
       "callbacks.checkpoint_seconds=null", "callbacks.checkpoint_share=null"]  # fmt: skip
TIMES = ("elapsed_seconds", "step_seconds", "memory", "seconds", "products_per")
TOKEN = "tok-3f9c0a"
_WAITS = "eigenexp sync"
_LONGEST_LINE = 600


@dataclass
class Case:
    """What became of one run.

    Attributes
    ----------
    fault, way
        What its server did, and when.
    met
        Requests that met the fault.
    told
        Whether the run said that something waits.
    problems
        What is not as it is to be.
    """

    fault: str
    way: str
    met: int = 0
    told: bool = False
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def call(folder: Path, uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    left = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    variables = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_TOKEN": TOKEN,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",  # so that hanging takes no minutes
        "PYTHONPATH": str(HOME),
        "OMP_NUM_THREADS": "1",
    }
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "eigenexp.cli", *arguments],
        cwd=folder,
        env={**left, **variables},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def words(done: subprocess.CompletedProcess[str], what: str) -> list[str]:
    """Return what is wrong with what a command said: a traceback, a page, an escape, a secret."""
    text = done.stdout + done.stderr
    wrong = {
        "a traceback": "Traceback" in text,
        "a page": "<html" in text or "<h1" in text,
        "an escape": "\x1b" in text,
        "the token": TOKEN in text,
        "a line without end": any(len(line) > _LONGEST_LINE for line in text.splitlines()),
    }
    return [f"{what}: {name} in its words" for name, is_so in wrong.items() if is_so]


# -- what the server has -------------------------------------------------------------------------


def stored(server: Any, experiment: str) -> list[dict[str, Any]]:
    """Return what the server has of every run of an experiment."""
    with contextlib.closing(sqlite3.connect(server.folder / "server.db")) as tables:
        runs = tables.execute(
            "select r.run_uuid, r.status from runs r join experiments e "
            "on e.experiment_id = r.experiment_id where e.name = ? and "
            "r.lifecycle_stage = 'active'",
            (experiment,),
        ).fetchall()
        found = []
        for run_id, status in runs:
            rows = tables.execute(
                "select key, step, value from metrics where run_uuid = ?", (run_id,)
            ).fetchall()
            params = dict(
                tables.execute("select key, value from params where run_uuid = ?", (run_id,))
            )
            place = server.folder / "artifacts"
            files = [p for p in place.glob(f"*/{run_id}/artifacts/**/*") if p.is_file()]
            found.append(
                {
                    "run_id": run_id,
                    "status": status,
                    "points": sorted(row for row in rows if not row[0].startswith(TIMES)),
                    "counts": Counter((key, step) for key, step, _ in rows),
                    "params": {k: v for k, v in params.items() if "experiment_name" not in k},
                    "files": Counter(_plain(path) for path in files),
                }
            )
    return found


def _plain(path: Path) -> str:
    """Return an artifact's name without the time and the number that MLflow's pictures have."""
    name = re.sub(r"\+timestamp\+\d+\+[0-9a-f-]{36}", "", path.name)
    return f"{path.parent.name}/{name}"


def compare(found: list[dict[str, Any]], calm: dict[str, Any]) -> list[str]:
    """Return what differs from a run that met no fault."""
    if len(found) != 1:
        return [f"{len(found)} runs, expected one"]
    (run,) = found
    wrong = [] if run["status"] == "FINISHED" else [f"it says {run['status']}"]
    twice = [point for point, times in run["counts"].items() if times > 1]
    wrong += [f"{twice[:3]} twice"] if twice else []
    lost = set(calm["counts"]) - set(run["counts"])
    wrong += [f"{len(lost)} points lost: {sorted(lost)[:3]}"] if lost else []
    if not lost and run["points"] != calm["points"]:
        wrong.append("other values")
    for what in ("params", "files"):
        differ = set(run[what].items()) ^ set(calm[what].items())
        wrong += [f"other {what}: {sorted(map(str, differ))[:3]}"] if differ else []
    return wrong


# -- a case --------------------------------------------------------------------------------------


def undisturbed(server: Any, proxy: FaultyProxy, folder: Path) -> tuple[dict[str, Any], int]:
    """Return what the server has of a run that met no fault, and its exit code."""
    proxy.fail(None)
    done = call(folder, proxy.uri, "fit", *FIT, "experiment_name=calm")
    settle(folder, proxy.uri)
    found = stored(server, "calm")
    if len(found) != 1 or words(done, "fit"):
        raise SystemExit(done.stdout + done.stderr)
    return found[0], done.returncode


def settle(folder: Path, uri: str) -> subprocess.CompletedProcess[str]:
    """Send what is left, until nothing is or two minutes have passed; return the last answer."""
    end = time.monotonic() + 120
    while True:
        done = call(folder, uri, "sync")
        if done.stdout.strip() == "nothing waits" or time.monotonic() > end:
            return done
        time.sleep(1.0)


def run_case(
    case: Case, server: Any, proxy: FaultyProxy, folder: Path, calm: dict[str, Any], code: int
) -> None:
    """Let a run meet a fault, and judge it."""
    began = time.monotonic()
    experiment = f"{case.fault} {case.way}"
    lasts = case.way != "now and then" and case.fault != "delay"
    share = 1.0 if case.way != "now and then" or case.fault == "delay" else 0.3
    restart = case.fault == "restart"
    proxy.fail(case.fault, share, 3 if case.way != "from the start" else 0)
    if restart:
        watch = _Restart(server, proxy, lasts, at_once=case.way == "from the start")
        watch.start()
    done = call(folder, proxy.uri, "fit", *FIT, f"experiment_name={experiment}")
    text = done.stdout + done.stderr
    case.told, case.met = _WAITS in text, proxy.met
    wrong = words(done, "fit")
    if done.returncode != code:
        wrong.append(f"exit code {done.returncode}, expected {code}: {text.strip()[-200:]}")
    if restart:
        watch.has_stopped.wait(60)
    if lasts:
        wrong += [] if case.told else ["it does not say that something waits"]
        during = call(folder, proxy.uri, "sync")
        wrong += words(during, "sync")
        if during.returncode != 1 or "waits: " not in during.stdout:
            wrong.append(f"sync while it fails: {during.returncode}, {during.stdout.strip()!r}")
        case.met = max(case.met, proxy.met)
    elif not case.told:
        now = compare(stored(server, experiment), calm)
        wrong += [f"it does not say that something waits, but {each}" for each in now]
    if not case.met:
        wrong.append("it met no fault")
    proxy.fail(None)
    if restart:
        watch.finish()
    last = settle(folder, proxy.uri)
    wrong += words(last, "sync")
    if (last.returncode, last.stdout.strip()) != (0, "nothing waits"):
        wrong.append(f"sync at last: {last.returncode}, {last.stdout.strip()!r}")
    wrong += compare(stored(server, experiment), calm)
    wrong += [f"refused: {p.read_text()[:300]}" for p in folder.glob("mlruns/spool/*.refused*")]
    case.problems, case.seconds = wrong, round(time.monotonic() - began, 1)


class _Restart:
    """Kills the server when the fault begins; starts it again at once, or when it is over."""

    def __init__(self, server: Any, proxy: FaultyProxy, lasts: bool, at_once: bool) -> None:
        import threading

        self.server, self.proxy, self.lasts, self.at_once = server, proxy, lasts, at_once
        self.has_stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        if self.at_once:
            self._stop()
        else:
            self._thread.start()

    def _watch(self) -> None:
        if self.proxy.has_begun.wait(300):
            self._stop()
            if not self.lasts:
                self.server.start()

    def _stop(self) -> None:
        self.server.stop()
        self.has_stopped.set()

    def finish(self) -> None:
        if self._thread.is_alive():
            self._thread.join(120)
        if self.server.process is None:
            self.server.start()


# -- all of them ---------------------------------------------------------------------------------


def table(cases: Sequence[Case]) -> list[str]:
    """Return the verdict as lines of Markdown."""
    lines = ["| fault | when | requests that met it | said that it waits | lost, doubled or wrong "
             "words |", "|---|---|---:|---|---:|"]  # fmt: skip
    for case in cases:
        said = "yes" if case.told else "all was stored"
        lines.append(f"| {case.fault} | {case.way} | {case.met} | {said} | {len(case.problems)} |")
    return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", action="store_true", help="three runs, about a minute")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, help="a line a case; gone on with where it is there")
    parser.add_argument("--keep", type=Path, default=None, help="folder for all that is made")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Meet every fault; return 1 where anything was lost, doubled or told wrong."""
    sys.path.insert(0, str(HOME))
    from tests.tracking.conftest import Server

    options = parse(arguments)
    wanted = SAMPLE if options.sample else [(f, w) for f in options.faults for w in options.ways]
    cases: list[Case] = []
    if options.json is not None and options.json.exists():
        cases = [Case(**json.loads(line)) for line in options.json.read_text().splitlines()]
    met = {(case.fault, case.way) for case in cases}
    with contextlib.ExitStack() as stack:
        home = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = home / "server"
        place.mkdir(parents=True)
        server = Server(place)
        server.start()
        stack.callback(server.stop)
        proxy = FaultyProxy(server.port)
        stack.callback(proxy.close)
        calm, code = undisturbed(server, proxy, home / "calm")
        for number, (fault, way) in enumerate(wanted):
            if (fault, way) in met:
                continue
            case = Case(fault, way)
            run_case(case, server, proxy, home / f"{number}", calm, code)
            cases.append(case)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(f"{json.dumps(vars(case))}\n")
            told = "; ".join(case.problems) or f"every one of {len(calm['counts'])} points once"
            print(f"{fault}, {way}: {case.met} met, {case.seconds:.0f} s; {told}", flush=True)
    print("\n".join(table(cases)))
    return int(any(case.problems for case in cases))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    raise SystemExit(main())
