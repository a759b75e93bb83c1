"""What a run comes to when its store or disk fails: it ends, and nothing that it logged is lost.

Each case is one fit with MLflow's logger, checkpoints and pictures. Full disks are small
file systems in memory, which need the right to mount them; those cases are left out without it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tracked_problem import SETTINGS, problem, verdict

sys.path.insert(0, str(Path(__file__).parents[1]))

STEPS = 200


def solve(
    root: Path,
    uri: str | None = None,
    at: dict[int, Callable[[], None]] | None = None,
    checkpoints: Path | None = None,
    steps: int = STEPS,
) -> tuple[str, list[int], bool]:
    """Fit, doing what ``at`` says; return run id, steps logged, and whether all is stored."""
    import lightning as L

    import eigenexp as ee

    class Slow(ee.EigendistortionModule):
        def _multiply(self, block):
            time.sleep(0.01)
            return super()._multiply(block)

    class Events(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if at and trainer.global_step in at:
                at[trainer.global_step]()

    logger = ee.MLflowLogger("outage", root=root, tracking_uri=uri, drain_timeout=20)
    logging = ee.ConvergenceLogging(1)
    model, image = problem()
    trainer = L.Trainer(
        max_steps=steps,
        precision="64-true",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=root,
        callbacks=[
            logging,
            ee.DistortionPictures(50),
            ee.SolverCheckpoint(checkpoints or root / "checkpoints", 20, max_share=None),
            Events(),
        ],
    )
    trainer.fit(Slow(model, image, **SETTINGS))
    run_id = str(logger.version)
    return run_id, list(logging.history["products"]), logger.close()


def missing(root: Path, uri: str | None, run_id: str, steps: list[int]) -> str:
    """Send what waits; return what the store lacks or has twice, in words."""
    from eigenexp.checkpoints.seals import verify_checkpoint
    from eigenexp.tracking import Store, download_checkpoint, sync

    end = time.monotonic() + 120
    while not all(report.complete for report in sync(root)) and time.monotonic() < end:
        time.sleep(1.0)
    store = Store(root, uri)
    run = store.find_run(run_id)
    history = store.client.get_metric_history(run.info.run_id, "worst_residual")
    found = sorted(point.step for point in history)
    wrong = [] if found == steps else [f"{len(steps)} points logged, {len(found)} there"]
    if run.info.status != "FINISHED":
        wrong.append(run.info.status)
    with tempfile.TemporaryDirectory() as fetched:
        verify_checkpoint(download_checkpoint(store, run.info.run_id, fetched, "last"))
    return ", ".join(wrong)


def judge(name: str, lacking: str, note: str) -> bool:
    """Print a case's line."""
    return verdict(name, not lacking, lacking or note)


def server_cases(home: Path) -> Iterator[bool]:
    """Server dead at the start, dying on the way, and coming back before the end."""
    from tests.tracking.conftest import Server, Switch

    (home / "server").mkdir()
    server = Server(home / "server")
    start = time.monotonic()
    run_id, steps, stored = solve(home / "dead", server.uri)
    took = time.monotonic() - start
    server.start()
    lacking = missing(home / "dead", server.uri, run_id, steps)
    yield judge(
        "server dead at the start",
        lacking or ("stored without a server?" if stored else ""),
        f"finished offline in {took:.0f} s, {len(steps)} of {len(steps)} points after sync",
    )
    door = Switch(server.port)
    run_id, steps, stored = solve(home / "dies", door.uri, {100: door.shut})
    door.open()
    lacking = missing(home / "dies", door.uri, run_id, steps)
    note = f"finished, {len(steps)} of {len(steps)} points after sync"
    yield judge("server dies on the way", lacking, note)
    run_id, steps, stored = solve(home / "back", door.uri, {50: door.shut, 150: door.open})
    lacking = missing(home / "back", door.uri, run_id, steps)
    note = f"{len(steps)} of {len(steps)} points, all stored when the run ended: {stored}"
    yield judge("server dies and comes back", lacking, note)
    door.close()
    server.stop()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a file system of ``size`` in memory; yield whether that was permitted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    permitted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield permitted
    finally:
        if permitted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def enlarge(folder: Path) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)


def disk_cases(home: Path) -> Iterator[bool]:
    """Artifact store full, then the whole disk."""
    with small_disk(home / "artifacts" / "artifacts", "100k") as permitted:
        if not permitted:
            print("left out: full disks (no permission to mount a small one)", flush=True)
            return
        root = home / "artifacts"
        run_id, steps, stored = solve(root, None)
        enlarge(root / "artifacts")
        lacking = missing(root, None, run_id, steps)
        yield judge(
            "artifact store full",
            lacking or ("stored on a full disk?" if stored else ""),
            f"finished, {len(steps)} of {len(steps)} points, checkpoint there after sync",
        )
    from eigenexp.checkpoints.files import find_checkpoint
    from eigenexp.checkpoints.seals import verify_checkpoint

    with small_disk(home / "full", "4m"):
        root, filler = home / "full", home / "full" / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"\0" * 4096) == 4096:
                    pass

        run_id, steps, stored = solve(root, None, {60: fill, 130: filler.unlink})
        lacking = missing(root, None, run_id, steps)
        note = f"finished, {len(steps)} of {len(steps)} points"
        yield judge("disk full on the way, then room again", lacking, note)
        seal = None
        try:
            solve(root, None, {60: fill}, root / "again")
            lacking = "no error, though the last checkpoint cannot have been written"
        except Exception as error:
            text = str(error)
            lacking = "" if "\n" not in text and "free space" in text else f"error: {text}"
            seal = verify_checkpoint(find_checkpoint(root / "again"))
        yield judge(
            "disk full to the end",
            lacking,
            f"one line that says what to do, the checkpoint of step {seal and seal.step} is whole",
        )


def measure_outage(options: argparse.Namespace) -> bool:
    """Run every case."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        return all([*server_cases(home), *disk_cases(home)])


def measure_crowd(options: argparse.Namespace) -> bool:
    """Start eight fits at once on a store that does not exist yet."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "mlruns"
        folders = [Path(scratch) / str(i) for i in range(options.runs)]
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.runs) as pool:
            jobs = [pool.apply_async(solve, (root, None, None, folder)) for folder in folders]
            done = [job.get(600) for job in jobs]
        lacking = [missing(root, None, run_id, steps) for run_id, steps, _ in done]
    good = sum(not each for each in lacking)
    points = sum(len(steps) for _, steps, _ in done)
    return verdict(
        f"{options.runs} runs at once into one fresh SQLite store",
        good == options.runs and len({run_id for run_id, *_ in done}) == options.runs,
        f"{good} of {options.runs}, {points} points a metric, none lost; {set(lacking) - {''}}",
    )
