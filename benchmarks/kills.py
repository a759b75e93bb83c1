"""``kill -9`` at random instants of fits, studies and sweeps, until each has its result.

    python benchmarks/kills.py --sample                   about a minute
    python benchmarks/kills.py --json kills.jsonl         100 fits, 40 studies, 30 sweeps

A *chain* is one run that is killed again and again, and taken up each time as a user would, until
it ends by itself. It is then compared with one that nobody disturbed: bit-identical results, each
MLflow point and each TensorBoard point once, no run beside it, nothing that says it is running
while it is dead. Every chain is one line of the file; a benchmark that is started again goes on
behind the last one. Chains alternate between two filesystems.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HOME = Path(__file__).absolute().parents[1]
TIMES = ("elapsed_seconds", "step_seconds", "memory", "seconds", "pictures_per", "products_per")
QUIET = ["trainer.enable_progress_bar=false", "threads=1", "trainer.accelerator=cpu"]
CROP = "image.crop=[120,220,20,20]"
FIT = [CROP, *QUIET, "solver=power", "solver.tol=1e-9", "trainer.max_steps=400",
       "callbacks.checkpoint_every=10", "callbacks.checkpoint_seconds=null",
       "callbacks.checkpoint_share=null"]  # fmt: skip
STUDY = [*QUIET, "image=folder", "image.path=[camera,coins,moon,page,clock]", "image.resize=16",
         "solver=power", "solver.tol=1e-6", "solver.max_products=400", "study.cohort=1",
         "study.checkpoint_seconds=0.1", "trainer.devices=2"]  # fmt: skip
SWEEP = [*FIT, "trainer.max_steps=150", "solver.seed=1,2,3"]
COMMANDS = {
    "fits": [["fit", *FIT, "resume=auto"], ["fit", *FIT, "resume=auto"]],
    "studies": [["fit", *STUDY, "resume=auto"], ["fit", *STUDY, "resume=auto"]],
    "sweeps": [["fit", "-m", *SWEEP], ["fit", "--retry-failed", "last"]],
}
FORKED = ("fits", "sweeps")
"""Those of one process, which begin at once by a fork; the others start from nothing."""
FULL = {"fits": 100, "studies": 40, "sweeps": 30}
SAMPLE = {"fits": 4, "studies": 0, "sweeps": 2}
A_CHAIN = {"fits": 10, "studies": 5, "sweeps": 5}  # kills


@dataclass
class Chain:
    """What became of one run.

    Attributes
    ----------
    kind, number
        Which.
    filesystem
        Where its folder lay.
    kills
        Of each, how many seconds after its begin, and whether the senders died with it.
    problems
        What is not as it is to be.
    """

    kind: str
    number: int
    filesystem: str
    kills: list[tuple[float, bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


# -- lives ---------------------------------------------------------------------------------------


def preload() -> None:
    """Import what every life needs, once."""
    import lightning.pytorch
    import lightning.pytorch.loggers
    import psutil
    import torch
    from torch.utils.tensorboard import SummaryWriter

    import eigenexp.cli
    import eigenexp.experiments.experiment
    import eigenexp.sweeps  # noqa: F401

    del lightning, psutil, SummaryWriter
    torch.set_num_threads(1)


def begin(kind: str, folder: Path, arguments: Sequence[str]) -> Life:
    """Start a command in ``folder``, in a session of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    if kind not in FORKED:
        process = subprocess.Popen(
            [sys.executable, "-m", "eigenexp.cli", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(HOME)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        os.close(log)
        return Life(process.pid, process)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            os.dup2(log, 1)
            os.dup2(log, 2)
            from eigenexp.cli import main

            code = main(list(arguments))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # what is registered for an exit is the benchmark's
    os.close(log)
    return Life(pid)


@dataclass
class Life:
    """A process that works on the run."""

    pid: int
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None

    def poll(self) -> bool:
        """Whether it lives."""
        if self.code is None and self.process is not None:
            self.code = self.process.poll()
        elif self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def others(self) -> tuple[list[Any], list[Any]]:
        """Return its other ranks, and those who send for it."""
        import psutil

        ranks, senders = [], []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    sends = any(part.startswith("eigenexp.tracking") for part in child.cmdline())
                    (senders if sends else ranks).append(child)
        return ranks, senders

    def kill(self, rng: random.Random, left: list[Any]) -> bool:
        """Kill it without a word; half of the time everybody who works for it, senders too.

        Of a run of several processes one alone may be killed: the others are to end by themselves.
        """
        import psutil

        ranks, senders = self.others()
        left += senders
        everybody = rng.random() < 0.5
        alone = bool(ranks) and not everybody and rng.random() < 0.5
        for process in [*ranks, *(left if everybody else [])] if not alone else []:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while (self.poll() or any(map(_lives, ranks))) and time.monotonic() < end:
            time.sleep(0.01)
        if everybody:
            left.clear()
        return everybody


def _lives(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def wait(life: Life, seconds: float) -> bool:
    """Wait so long; return whether it ended before."""
    end = time.monotonic() + seconds
    while life.poll() and time.monotonic() < end:
        time.sleep(0.005)
    return life.code is not None


# -- one chain -----------------------------------------------------------------------------------


@dataclass
class Span:
    """Seconds of an undisturbed run: until it is recorded, and from there on.

    The second follows the machine's speed: a life that ended before its kill makes it shorter.
    """

    begins: float
    works: float


def wait_for_record(life: Life, folder: Path, since: float) -> float:
    """Wait until a life has recorded that it runs; return the seconds it took."""
    began = time.monotonic()
    while life.poll():
        with contextlib.suppress(OSError):
            records = folder.glob("mlruns/checkpoints/*/run.json")
            if any(path.stat().st_mtime >= since for path in records):
                break
        time.sleep(0.005)
    return time.monotonic() - began


def run_chain(chain: Chain, folder: Path, calm: Path, span: Span, most: int) -> None:
    """Kill, take up, kill, …, and compare."""
    rng = random.Random(f"{chain.kind} {chain.number}")
    first, again = COMMANDS[chain.kind]
    began, left = time.monotonic(), []
    while True:
        # A sweep that was killed before it had a manifest has nothing that could be taken up.
        fresh = not list(folder.glob("mlruns/sweeps/*/manifest.json"))
        now, clock = time.time(), time.monotonic()
        life = begin(chain.kind, folder, first if fresh else again)
        if len(chain.kills) < most:
            after = rng.uniform(0, span.begins)  # of what comes before its first record
            if rng.random() < 0.8:
                wait_for_record(life, folder, now)
                after = rng.uniform(0, 0.8 * span.works)
            if wait(life, after):
                span.works *= 0.7
            else:
                span.works *= 1.1
                lived = round(time.monotonic() - clock, 3)
                chain.kills.append((lived, life.kill(rng, left)))
                chain.problems += look_at_dead(folder)
                if not is_over(chain.kind, folder):
                    continue
                life.code = 0  # killed on its way out
        if life.code != 0 and not wait(life, 300):
            life.kill(rng, left)
            chain.problems.append("it hangs")
        break
    if life.code not in (0, 3):
        tail = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
        chain.problems.append(f"exit code {life.code}: {tail[-1:]}")
    chain.problems += settle(folder)
    with contextlib.suppress(Exception) if chain.problems else contextlib.nullcontext():
        chain.problems += compare(chain.kind, folder, calm)
    chain.seconds = round(time.monotonic() - began, 1)


def is_over(kind: str, folder: Path) -> bool:
    """Whether a run has recorded its end: the same command would begin another one."""
    from eigenexp.runs.folder import list_runs

    records = [run.read_record() for run in list_runs(folder / "mlruns")]
    return kind != "sweeps" and any(record["status"] == "FINISHED" for record in records)


def look_at_dead(folder: Path) -> list[str]:
    """Return the runs and jobs that say they are running, though nobody works on them."""
    from eigenexp.runs.folder import list_runs
    from eigenexp.runs.table import run_rows
    from eigenexp.sweeps.manifest import list_sweeps

    root = folder / "mlruns"
    said = [f"{row['run']} says {row['status']}" for row in run_rows(list_runs(root))
            if row["status"] == "RUNNING"]  # fmt: skip
    jobs = [job for sweep in list_sweeps(root) for job in sweep.jobs()]
    return said + [f"job {job.index} says running" for job in jobs if job.state == "running"]


def settle(folder: Path) -> list[str]:
    """Let senders end and send what is left; return what still waits."""
    from eigenexp.tracking import sync

    end = time.monotonic() + 180
    while True:
        waiting = [report for report in sync(folder / "mlruns") if not report.complete]
        if not waiting:
            return []
        if time.monotonic() > end:
            return [f"unsent: {report.problem}" for report in waiting]
        time.sleep(0.5)


def compare(kind: str, folder: Path, calm: Path) -> list[str]:
    """Return what differs from the run that nobody disturbed."""
    found = []
    root, truth = folder / "mlruns", calm / "mlruns"
    ours, theirs = results(root), results(truth)
    if sorted(ours) != sorted(theirs):
        found.append(f"results {sorted(ours)}, expected {sorted(theirs)}")
    found += [f"{name}: another result" for name in theirs if ours.get(name) != theirs[name]]
    found += compare_points(kind, root, truth)
    for name, curves in events(root).items():
        doubled = [tag for tag, steps in curves.items() if len(set(steps)) < len(steps)]
        found += [f"TensorBoard {name}: {doubled[:3]} twice"] if doubled else []
    if kind != "studies":  # whose points come when a picture is done, in whatever order
        mine, calms = (sorted(map(repr, events(place).values())) for place in (root, truth))
        found += [] if mine == calms else ["TensorBoard: other points"]
    return found


def results(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each result's numbers, by what was solved."""
    import hashlib

    from eigenexp.spectrum import Spectrum

    found = {}
    for path in sorted(root.glob("results/**/spectrum.safetensors")):
        spectrum = Spectrum.load(path)
        numbers = (spectrum.eigenvalues, spectrum.eigenvectors, spectrum.residuals)
        data = b"".join(each.numpy().tobytes() for each in numbers)
        config = spectrum.metadata.get("config", {})
        name = path.parent.name if "pictures" in path.parts else f"seed {config['solver']['seed']}"
        name = f"{name} again" if name in found else name
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def compare_points(kind: str, root: Path, truth: Path) -> list[str]:
    """Return what is lost or doubled in the tracking store."""
    found, points = [], {}
    for place in (root, truth):
        with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as store:
            rows = store.execute(
                "select r.run_uuid, r.status, m.key, m.step, m.value from runs r left join metrics "
                "m on m.run_uuid = r.run_uuid where r.lifecycle_stage = 'active'"
            ).fetchall()
        runs: dict[str, list[tuple[str, int, float]]] = {}
        for run_id, status, key, step, value in rows:
            own = runs.setdefault(run_id, [])
            if key is not None:
                own.append((key, step, value))
            if place == root and status != "FINISHED":
                found.append(f"run {run_id[:8]} is {status}")
        if place == root:
            for run_id, own in runs.items():
                counted = Counter((key, step) for key, step, _ in own)
                doubled = [point for point, times in counted.items() if times > 1]
                found += [f"run {run_id[:8]}: {doubled[:3]} twice"] if doubled else []
        points[place] = [
            sorted((key, step, value) for key, step, value in own if not _is_free(kind, key))
            for own in runs.values()
        ]
    mine, theirs = (sorted(points[place]) for place in (root, truth))
    if len(mine) != len(theirs):
        found.append(f"{len(mine)} runs, expected {len(theirs)}")
    elif mine != theirs:
        lost = sum(len(set(b) - set(a)) for a, b in zip(mine, theirs, strict=True))
        more = sum(len(set(a) - set(b)) for a, b in zip(mine, theirs, strict=True))
        found.append(f"{lost} points lost, {more} that are not of it")
    return sorted(set(found))


def _is_free(kind: str, key: str) -> bool:
    """Whether no two runs share a metric: a time, or a study's own progress."""
    return key.startswith(TIMES) or (kind == "studies" and "/" not in key)


def events(root: Path) -> dict[str, dict[str, list[int]]]:
    """Return the steps of every curve that TensorBoard shows, by run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # purging is what we look at
    found = {}
    for folder in sorted((root / "tb").glob("*")):
        shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        shown.Reload()
        found[folder.name] = {
            tag: [event.step for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]
        }
    return found


# -- all of them ---------------------------------------------------------------------------------


def undisturbed(kind: str, folder: Path) -> Span:
    """Run a command to its end; return what it took."""
    began = time.monotonic()
    life = begin(kind, folder, COMMANDS[kind][0])
    begins = wait_for_record(life, folder, 0.0)
    if not wait(life, 600) or life.code not in (0, 3):
        raise SystemExit((folder / "output.txt").read_text(errors="replace")[-3000:])
    span = Span(begins, time.monotonic() - began - begins)
    settle(folder)
    return span


def table(chains: Sequence[Chain]) -> list[str]:
    """Return the verdict as lines of Markdown."""
    lines = ["| killed | kills | senders too | runs | on filesystems | not identical, lost or "
             "doubled |", "|---|---:|---:|---:|---|---:|"]  # fmt: skip
    for kind in COMMANDS:
        own = [chain for chain in chains if chain.kind == kind]
        if own:
            kills = [kill for chain in own for kill in chain.kills]
            places = ", ".join(sorted({chain.filesystem for chain in own}))
            lines.append(
                f"| {kind} | {len(kills)} | {sum(all_of_it for _, all_of_it in kills)} | "
                f"{len(own)} | {places} | {sum(bool(chain.problems) for chain in own)} |"
            )
    return lines


def filesystem(folder: Path) -> str:
    """Return the kind of filesystem a folder lies on."""
    import psutil

    places = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    parents = [folder.resolve(), *folder.resolve().parents]
    return next((places[str(p)] for p in parents if str(p) in places), "unknown")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", action="store_true", help="a few kills, about a minute")
    for kind, count in FULL.items():
        parser.add_argument(f"--{kind}", type=int, help=f"kills (default {count})")
    parser.add_argument("--json", type=Path, help="a line a chain; gone on with where it is there")
    parser.add_argument("--keep", type=Path, help="folder for the runs that are not as they should")
    parser.add_argument("--here", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--there", type=Path, default=Path("/dev/shm"), help="another filesystem")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Kill as often as asked for; return 1 where anything was lost."""
    options = parse(arguments)
    wanted = SAMPLE if options.sample else FULL
    given = {kind: getattr(options, kind) for kind in wanted}
    wanted = {kind: given[kind] if given[kind] is not None else wanted[kind] for kind in wanted}
    wanted = {kind: kills for kind, kills in wanted.items() if kills}
    chains: list[Chain] = []
    if options.json is not None and options.json.exists():
        chains = [Chain(**json.loads(line)) for line in options.json.read_text().splitlines()]
    sys.path.insert(0, str(HOME))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("EIGENEXP_ROOT", None)
    preload()
    with contextlib.ExitStack() as stack:
        places = [
            Path(tempfile.mkdtemp(dir=place, prefix="kills-"))
            for place in (options.here, options.there)
        ]
        for place in places:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
        spans: dict[str, Span] = {}
        while wanted:
            done = {kind: sum(len(c.kills) for c in chains if c.kind == kind) for kind in wanted}
            kind = min(wanted, key=lambda kind: done[kind] / wanted[kind])
            if done[kind] >= wanted[kind]:
                break
            calm = places[0] / f"calm-{kind}"
            if kind not in spans:
                spans[kind] = undisturbed(kind, calm)
            number = sum(chain.kind == kind for chain in chains)
            place = places[number % 2]
            chain = Chain(kind, number, filesystem(place))
            folder = place / f"{kind}-{number}"
            most = min(A_CHAIN[kind], wanted[kind] - done[kind])
            run_chain(chain, folder, calm, spans[kind], most)
            chains.append(chain)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(f"{json.dumps(vars(chain))}\n")
            told = ", ".join(chain.problems) or "identical, every point once"
            say(f"{kind} {number}: {len(chain.kills)} kills, {chain.seconds:.0f} s; {told}")
            if options.keep is not None and chain.problems:
                shutil.copytree(folder, options.keep / folder.name)
            shutil.rmtree(folder, ignore_errors=True)
    say("\n".join(table(chains)))
    return int(any(chain.problems for chain in chains))


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)
    assert isinstance(sys.stdout, io.TextIOBase)
    raise SystemExit(main())
