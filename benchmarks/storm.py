"""A storm of ``kill -9``: at random instants and in the middle of a save, an upload, a log flush.

Each run is one solve with checkpoints every 10 steps, both loggers and pictures. It is killed again
and again and resumed from its newest whole checkpoint, until the kills are used up and it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tracked_problem import SETTINGS, problem, verdict

EVERY = 10  # steps between checkpoints
KINDS = ("step", "checkpoint", "upload", "flush")
TIMES = ("elapsed_seconds", "step_seconds", "memory")  # metrics that no two runs share


def live(root: Path, folder: Path, run_id: str | None, steps: int, pause: float) -> None:
    """Solve to the end, from the newest checkpoint on; say on standard output how far it is."""
    import lightning as L
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    import eigenexp as ee
    from eigenexp.checkpoints.files import find_checkpoint
    from eigenexp.errors import CheckpointError

    class Slow(ee.EigendistortionModule):
        def _multiply(self, block):
            time.sleep(pause)
            return super()._multiply(block)

    class Telling(ee.SolverCheckpoint):
        def on_train_batch_end(self, trainer, *rest):
            print("step", trainer.global_step, flush=True)
            super().on_train_batch_end(trainer, *rest)

        def _write(self, trainer, module, step):
            super()._write(trainer, module, step)
            print("saved", step, flush=True)

    logger = ee.MLflowLogger("storm", root=root, run_id=run_id, drain_timeout=120)
    print("run", logger.version, flush=True)
    try:
        checkpoint = find_checkpoint(folder)
    except CheckpointError:
        checkpoint = None
    model, image = problem()
    trainer = L.Trainer(
        max_steps=steps,
        precision="64-true",
        logger=[logger, TensorBoardLogger(root / "tb", name="", version="run")],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=root,
        callbacks=[
            ee.ConvergenceLogging(1),
            ee.DistortionPictures(20),
            Telling(folder, every_n_steps=EVERY, max_share=None),
        ],
    )
    module = Slow(model, image, **SETTINGS)
    trainer.fit(module, ckpt_path=checkpoint)
    stored = logger.close()
    torch.save(module.solver.result().eigenvectors, root / "result.pt")
    print("done", stored, flush=True)


@dataclass
class Life:
    """A process that solves, and what it said so far."""

    pid: int
    output: int
    run_id: str | None = None
    step: int = 0
    first_step: int = 0
    saved: int = 0
    done: bool = False
    code: int | None = None
    buffer: bytes = b""

    def poll(self) -> bool:
        """Read what it says; return whether it lives."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output, 65536):
                self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "run":
                self.run_id = value
            elif word == "step":
                self.step = int(value)
                self.first_step = self.first_step or self.step
            elif word == "saved":
                self.saved = int(value)
            elif word == "done":
                self.done = True
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def find_senders(self) -> set[int]:
        """Return the processes that send for it."""
        import psutil

        with contextlib.suppress(psutil.Error):
            return {child.pid for child in psutil.Process(self.pid).children()}
        return set()

    def kill(self, senders: set[int]) -> None:
        """Kill it, and those who send for it, without a word."""
        for pid in (*senders, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while self.poll() and time.monotonic() < end:
            time.sleep(0.01)
        self.poll()


def begin(root: Path, folder: Path, run_id: str | None, options: argparse.Namespace) -> Life:
    """Fork a life: everything is imported already, so that it begins at once."""
    root.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(writing, 1)
            os.dup2(os.open(root / "stderr.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
            live(root, folder, run_id, options.steps, options.pause)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    os.set_blocking(reading, False)
    return Life(pid, reading, run_id)


def traces(kind: str, root: Path, folder: Path) -> bool:
    """Whether something is being written, of the kind that is to be cut off."""
    if kind == "checkpoint":
        return any(folder.glob(".*.eigenexp-tmp"))
    if kind == "upload":
        folders = root.glob("artifacts/storm/*/artifacts/")
        names = ("checkpoints/last", "checkpoints/best", "images")
        return any(any((f / name).glob(".*.eigenexp-tmp")) for f in folders for name in names)
    return (root / "mlflow.db-journal").exists()


def kill_at(
    life: Life,
    kind: str,
    root: Path,
    folder: Path,
    rng: random.Random,
    limit: float,
    senders: set[int],
) -> tuple[bool, bool]:
    """Wait for the instant and kill; return whether the life ended before, and whether it hit.

    ``senders`` of earlier lives, which may be at work still, die with this one's.
    """
    # Some steps are still before the first one: while the run is found, the checkpoint read.
    early = kind == "step" and rng.random() < 0.3
    while life.poll() and not (early or life.step):
        time.sleep(0.002)
    senders |= life.find_senders()
    start = time.monotonic()
    after = rng.uniform(0, limit)
    patience = after if kind == "step" else after + 5.0
    while life.poll():
        passed = time.monotonic() - start
        if passed > patience or (kind != "step" and passed > after and traces(kind, root, folder)):
            break
        time.sleep(0.002 if kind == "step" or passed < after else 0)
    if life.code is not None:
        return True, False
    everything = kind in ("upload", "flush") or rng.random() < 0.5
    life.kill(senders if everything else set())
    if everything:
        senders.clear()
    return False, kind == "step" or traces(kind, root, folder)


def problems_of(root: Path, folder: Path, run_id: str, truth: Path) -> list[str]:
    """Compare a run that was killed again and again with the one nobody disturbed."""
    import torch

    from eigenexp.checkpoints.files import find_checkpoint
    from eigenexp.tracking import download_checkpoint, local_store, sync
    from eigenexp.tracking.spool import find_spools

    found = []
    if not torch.equal(torch.load(root / "result.pt"), torch.load(truth / "result.pt")):
        found.append("another result")
    find_checkpoint(folder)
    end = time.monotonic() + 120  # the sender of an earlier life may still have its turn
    while not all(report.complete for report in sync(root)) and time.monotonic() < end:
        time.sleep(0.5)
    if find_spools(root):
        found.append("a spool is left")
    # On a busy machine a life may have gone by a provisional id.
    run_id = local_store(root).find_run(run_id).info.run_id
    with sqlite3.connect(root / "mlflow.db") as store, sqlite3.connect(truth / "mlflow.db") as calm:
        if store.execute("pragma integrity_check").fetchone() != ("ok",):
            found.append("a corrupt store")
        query = "select key, step, value from metrics order by key, step"
        points, expected = store.execute(query).fetchall(), calm.execute(query).fetchall()
        counted = Counter((key, step) for key, step, _ in points)
        if max(counted.values()) > 1:
            found.append("a point twice")
        missing = {(key, step) for key, step, _ in expected} ^ set(counted)
        if missing:
            found.append(f"a gap, or points of no step: {sorted(missing)[:5]}")
        ours, theirs = (
            {point for point in each if not point[0].startswith(TIMES)}
            for each in (points, expected)
        )
        if not missing and ours != theirs:
            found.append(f"other values: {sorted(ours - theirs)[:5]}")
        # A life killed before it knew its run's name leaves a run of its own, without a point.
        query = "select status from runs where run_uuid = ?"
        (status,) = store.execute(query, (run_id,)).fetchone()
        if status != "FINISHED":
            found.append(f"status {status}")
        if store.execute("select distinct run_uuid from metrics").fetchall() != [(run_id,)]:
            found.append("points in another run")
    store = local_store(root)
    for kind in ("last", "best"):
        download_checkpoint(store, run_id, root / "fetched", kind)
    if any(root.glob("artifacts/**/.*.eigenexp-tmp")):
        found.append("half an artifact is left")
    if tensorboard_steps(root) != tensorboard_steps(truth):
        found.append("TensorBoard has other points")
    return found


def tensorboard_steps(root: Path) -> list[int]:
    """Return the steps of one TensorBoard curve, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tb" / "run"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("worst_residual")]


def measure_storm(options: argparse.Namespace) -> bool:
    """Kill runs until the kills are used up; print a line a run and the verdict."""
    import lightning
    import lightning.pytorch.loggers
    import psutil
    import torch
    from torch.utils.tensorboard import SummaryWriter

    import eigenexp

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # purging is what we look at
    del lightning, psutil, SummaryWriter  # imported once, for every life
    eigenexp.MLflowLogger  # noqa: B018
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    other = Path(options.other)
    hits, lost, wrong = Counter(), [], 0
    kills = runs = 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory(dir=other) as away,
    ):
        home = Path(scratch)
        filesystems = len({home.stat().st_dev, Path(away).stat().st_dev})
        calm = begin(home / "calm", home / "calm" / "checkpoints", None, options)
        while calm.poll():
            time.sleep(0.05)
        if not calm.done:
            raise SystemExit((home / "calm" / "stderr.txt").read_text()[-3000:])
        while kills < options.times:
            root = home / str(runs)
            folder = (root if runs % 2 else Path(away) / str(runs)) / "checkpoints"
            run_id, saved, died_at, ended, here = None, 0, 0, False, 0
            senders: set[int] = set()
            while not ended:
                life = begin(root, folder, run_id, options)
                if kills < options.times and here < options.lives:
                    kind = KINDS[kills % len(KINDS)]
                    ended, hit = kill_at(life, kind, root, folder, rng, options.limit, senders)
                    if not ended:
                        kills += 1
                        here += 1
                        hits[kind] += hit
                else:
                    while life.poll():
                        time.sleep(0.02)
                    ended = True
                if died_at and life.first_step:
                    lost.append(died_at - life.first_step + 1)
                    if life.first_step <= saved:
                        wrong += 1
                        print(f"run {runs}: resumed at {life.first_step}, {saved} was saved")
                saved, run_id = max(saved, life.saved), life.run_id or run_id
                died_at = life.step or died_at
                if ended and not life.done:
                    raise SystemExit((root / "stderr.txt").read_text()[-3000:])
            found = problems_of(root, folder, str(run_id), home / "calm")
            wrong += bool(found)
            where = "same" if runs % 2 else "other"
            print(
                f"run {runs} ({where} filesystem): {here} kills, {kills} so far; "
                f"{', '.join(found) or 'identical, every point once'}",
                flush=True,
            )
            shutil.rmtree(root)
            shutil.rmtree(folder.parent, ignore_errors=True)
            runs += 1
    in_time = max(lost, default=0) <= EVERY + 1
    where = ", ".join(f"{hits[kind]} in a {kind}" for kind in KINDS)
    return verdict(
        f"{kills} x kill -9 on {filesystems} filesystems, then resume",
        not wrong and in_time,
        f"{runs - wrong} of {runs} runs bit-identical with every point once, 0 corrupt stores; at "
        f"most {max(lost, default=0)} steps done again (checkpoints every {EVERY}); {where}",
    )
