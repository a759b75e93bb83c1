"""Many pictures, many processes: each bar of throughput, exactness and survival, with PASS or FAIL.

    python benchmarks/study.py pictures   # 2 processes against 1: 16 pictures at 64², OnOff
    python benchmarks/study.py columns    # the same for one picture and a block of k = 8
    python benchmarks/study.py average    # the same for the mean of F over 16 pictures
    python benchmarks/study.py batch      # 8 pictures at 32² in one pass against one after another
    python benchmarks/study.py dense      # the average against a dense mean of JᵀJ
    python benchmarks/study.py kill       # kill -9 one of two processes at any instant, 20 times
    python benchmarks/study.py once       # 200 pictures × 4 models killed 5 times: each solved once
    python benchmarks/study.py all

Processes run one thread each. Times are those of the training loop, without start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

MODELS = {
    "LN": "LinearNonlinear",
    "LG": "LuminanceGainControl",
    "LGG": "LuminanceContrastGainControl",
    "OnOff": "OnOff",
}
STUDY = {"k": 4, "which": "both", "tol": 1e-5, "method": "lanczos"}


def check(name: str, value: float, bar: float, smaller: bool = False) -> bool:
    """Print one bar and whether it is met."""
    met = value <= bar if smaller else value >= bar
    sign = "<=" if smaller else ">="
    print(f"{'PASS' if met else 'FAIL'}  {name}: {value:.3g} ({sign} {bar:g})", flush=True)
    return met


def pictures(count: int, side: int):
    """Return ``count`` crops ``(count, 1, side, side)`` of scikit-image's pictures."""
    import torch

    import eigenexp as ee

    names = ("camera", "coins", "moon", "brick", "grass", "gravel", "text", "page")
    whole = [ee.load_picture(name).tensor[0] for name in names]
    generator = torch.Generator().manual_seed(0)
    crops = []
    for i in range(count):
        picture = whole[i % len(whole)]
        top = int(torch.randint(picture.shape[1] - side, (), generator=generator))
        left = int(torch.randint(picture.shape[2] - side, (), generator=generator))
        crops.append(picture[:, top : top + side, left : left + side])
    return torch.stack(crops)


def build_model(name: str):
    """Return a model by its short name."""
    import torch

    import eigenexp as ee

    if name != "conv":
        return getattr(ee.models, MODELS[name])()
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    layers += [torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.Softplus()]
    return torch.nn.Sequential(*layers)


# -- one fit in a process of its own ---------------------------------------------------------------


def worker(arguments: list[str]) -> None:
    """Fit as the JSON in ``arguments`` says; the first process writes times and results."""
    import lightning as L
    import torch

    import eigenexp as ee

    torch.set_num_threads(1)
    task = json.loads(arguments[0])
    out = Path(task["out"])
    out.mkdir(parents=True, exist_ok=True)

    class Clock(L.Callback):
        def on_train_start(self, trainer, module):
            trainer.strategy.barrier()
            self.began = time.perf_counter()
            (out / f"started-{trainer.global_rank}").write_text(str(os.getpid()))

        def on_train_end(self, trainer, module):
            self.seconds = time.perf_counter() - self.began

    clock = Clock()
    images = pictures(task["count"], task["side"])
    model = build_model(task.get("model", "OnOff"))
    settings = dict(task["settings"])
    kind = task["kind"]
    callbacks: list[Any] = [clock]
    if kind == "pictures":
        module: Any = ee.StudyModule(model, images, out / "study", **settings)
    elif kind == "average":
        module = ee.AverageModule(model, images, **settings)
    else:
        module = ee.EigendistortionModule(model, images[:1], parallel="columns", **settings)
    resumed = None
    if kind != "pictures" and task.get("checkpoints"):
        callbacks.append(ee.SolverCheckpoint(out / "checkpoints", every_n_steps=5))
        if (out / "checkpoints" / "last.ckpt").exists():
            resumed = str(out / "checkpoints" / "last.ckpt")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=task["devices"],
        strategy="ddp" if task["devices"] > 1 else "auto",
        max_epochs=-1,
        max_steps=task.get("max_steps", -1),
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=len(callbacks) > 1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=resumed)
    if trainer.is_global_zero:
        result = {"seconds": clock.seconds}
        if kind != "pictures":
            spectrum = module.spectrum()
            result |= {
                "eigenvalues": spectrum.eigenvalues.tolist(),
                "eigenindex": spectrum.eigenindex.tolist(),
                "products": spectrum.num_products,
            }
        (out / "result.json").write_text(json.dumps(result))


def start(task: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a fit in a session of its own."""
    command = [sys.executable, str(Path(__file__).absolute()), "worker", json.dumps(task)]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Fit and return what the first process wrote."""
    process = start(task)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a fit failed:\n{errors[-2000:]}")
    return json.loads((Path(task["out"]) / "result.json").read_text())


def speed_up(name: str, bar: float, task: dict[str, Any], repeat: int) -> bool:
    """Compare 1 and 2 processes, alternating; the best of each counts.

    The machine's own factor is that of two runs at once that know nothing of each other: cores
    share caches and memory.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeat):
            for devices in (1, 2):
                out = f"{folder}/{devices}-{turn}"
                times[devices].append(run({**task, "devices": devices, "out": out})["seconds"])
            outs = [Path(folder) / f"apart-{turn}-{number}" for number in (0, 1)]
            for process in [start({**task, "devices": 1, "out": str(out)}) for out in outs]:
                process.communicate()
            apart.append(
                max(json.loads((out / "result.json").read_text())["seconds"] for out in outs)
            )
    print(
        f"      1 process {min(times[1]):.2f} s, 2 processes {min(times[2]):.2f} s; "
        f"two unconnected runs at once: {2 * min(times[1]) / min(apart):.2f}"
    )
    return check(name, min(times[1]) / min(times[2]), bar)


# -- the bars --------------------------------------------------------------------------------------


def bar_pictures(options: argparse.Namespace) -> bool:
    """Throughput of two processes, each with its own pictures."""
    task = {"kind": "pictures", "count": 16, "side": 64, "settings": STUDY}
    return speed_up("pictures: 16 at 64², OnOff, 2 processes", 1.85, task, options.repeat)


def bar_columns(options: argparse.Namespace) -> bool:
    """Compare one process with two that share the columns of a block."""
    settings = {"method": "power", "k": 8, "which": "top", "tol": 1e-9, "max_products": 600}
    task = {"kind": "columns", "count": 1, "side": options.side, "settings": settings}
    name = f"columns: k = 8 at {options.side}², OnOff, 2 processes"
    return speed_up(name, 1.7, task, options.repeat)


def bar_average(options: argparse.Namespace) -> bool:
    """Compare one process with two that share the pictures of a mean."""
    settings = {"method": "lanczos", "k": 2, "tol": 1e-4}
    side = options.side // 2
    task = {"kind": "average", "count": 16, "side": side, "settings": settings}
    name = f"average: 16 pictures at {side}², OnOff, 2 processes"
    return speed_up(name, 1.7, task, options.repeat)


def bar_batch(options: argparse.Namespace) -> bool:
    """Compare one pass for several pictures with one after another, model by model."""
    import torch

    import eigenexp as ee
    from eigenexp.pictures.sources import picture_sources
    from eigenexp.study.cohort import Cohort, SolveSettings

    torch.set_num_threads(1)
    images = pictures(8, 32)
    sources = picture_sources(images, channels="keep")
    met = True
    for name in (*MODELS, "conv"):
        model = build_model(name).eval().requires_grad_(False)
        width = ee.JacobianOperator(model, images[:1]).width
        size = ee.operators.batched.pictures_at_once(width, torch.float32, torch.device("cpu"))
        solver = {"method": "lanczos", "k": 1, "tol": 1e-4}
        best = {1: float("inf"), size: float("inf")}
        for _ in range(options.repeat):
            for batch_size in best:
                settings = SolveSettings(
                    solver, batch_size, "auto", torch.float32, torch.device("cpu")
                )
                began = time.perf_counter()
                cohort = Cohort(model, sources, range(8), settings)
                while not cohort.done:
                    cohort.turn()
                best[batch_size] = min(best[batch_size], time.perf_counter() - began)
        label = f"batch: 8 pictures at 32², {name}, {size} at once"
        met = check(label, best[1] / best[size], 1.0) and met
    return met


def bar_dense(options: argparse.Namespace) -> bool:
    """Compare the average, found by two processes, with a dense mean."""
    import torch

    import eigenexp as ee

    met = True
    images = pictures(16, 20)
    for name in (*MODELS, "conv"):
        model = build_model(name).double()
        dense = ee.AverageFisherOperator(model, images.double()).to_dense()
        values = torch.linalg.eigvalsh(dense).flip(0)
        settings = {"method": "lanczos", "k": 2, "tol": 1e-5}
        with tempfile.TemporaryDirectory() as folder:
            task = {"kind": "average", "count": 16, "side": 20, "settings": settings}
            found = run({**task, "model": name, "devices": 2, "out": folder})
        expected = values[found["eigenindex"]]
        error = (torch.tensor(found["eigenvalues"], dtype=torch.float64) - expected).abs().max()
        label = f"average against dense, {name}, 2 processes, error/λmax"
        met = check(label, float(error / values[0]), 1e-5, smaller=True) and met
    return met


def processes_of(group: int) -> list[int]:
    """Return the living processes of a session, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def equal_studies(first: Path, second: Path) -> bool:
    """Whether two studies hold the same results bit for bit."""
    import torch

    from eigenexp.study.folder import StudyFolder

    a, b = StudyFolder(first), StudyFolder(second)
    return set(a.records()) == set(b.records()) and all(
        torch.equal(a.spectrum(p).eigenvectors, b.spectrum(p).eigenvectors)
        and torch.equal(a.spectrum(p).eigenvalues, b.spectrum(p).eigenvalues)
        for p in a.records()
    )


def bar_kill(options: argparse.Namespace) -> bool:
    """Kill one of two processes at any instant; all must end, and a new start find the same."""
    chance = random.Random(0)
    slowest, same = 0.0, 0
    kinds = ["pictures", "columns", "average"]
    with tempfile.TemporaryDirectory() as folder:
        tasks, whole = {}, {}
        for kind in kinds:
            settings: dict[str, Any] = {"method": "lanczos", "k": 2, "tol": 1e-5}
            if kind == "pictures":
                settings |= {"checkpoint_seconds": 0.2, "k": 4, "tol": 1e-6}
            if kind == "columns":
                settings = {"method": "power", "k": 4, "which": "top", "tol": 1e-6}
            count = 12 if kind == "pictures" else 6
            tasks[kind] = {"kind": kind, "count": count, "side": 40, "settings": settings}
            tasks[kind] |= {"devices": 2, "checkpoints": True}
            whole[kind] = run({**tasks[kind], "out": f"{folder}/{kind}-whole"})
        for turn in range(options.times):
            kind = kinds[turn % 3]
            task = {**tasks[kind], "out": f"{folder}/{turn}"}
            process = start(task)
            out, victim = Path(task["out"]), chance.randrange(2)
            mark = out / f"started-{victim}"
            while not mark.exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, whole[kind]["seconds"]))
            began = time.monotonic()
            try:
                os.kill(int(mark.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                print(f"      {turn}: {kind} was over before the kill")
            while processes_of(process.pid) and time.monotonic() - began < 60:
                process.poll()
                time.sleep(0.05)
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            for left in processes_of(process.pid):
                os.kill(left, signal.SIGKILL)
            process.communicate()
            found = run(task)
            if kind == "pictures":
                equal = equal_studies(out / "study", Path(f"{folder}/{kind}-whole/study"))
            else:
                equal = found["eigenvalues"] == whole[kind]["eigenvalues"]
            same += equal
            print(f"      {turn}: {kind}, rank {victim}, ended in {seconds:.1f} s, same {equal}")
    fast = check("kill: seconds until all processes end", slowest, 30, smaller=True)
    return check("kill: resumed with the same result", same, options.times) and fast


def bar_once(options: argparse.Namespace) -> bool:
    """Kill studies of many pictures again and again; each picture is solved once."""
    chance = random.Random(1)
    met = True
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"method": "lanczos", "k": 1, "tol": 1e-4, "checkpoint_seconds": 1.0}
            task = {"kind": "pictures", "count": options.pictures, "side": 32, "model": name}
            task |= {"devices": 2, "settings": settings, "out": folder}
            written: dict[Path, int] = {}
            rewritten = kills = 0
            while True:
                process = start(task)
                if kills < 5:
                    goal = (kills + 1) * options.pictures // 7 + chance.randrange(5)
                    while process.poll() is None:
                        if len(list(Path(folder).glob("study/pictures/*/record.json"))) >= goal:
                            break
                        time.sleep(0.01)
                    os.killpg(process.pid, signal.SIGKILL)
                    kills += 1
                process.communicate()
                for record in Path(folder).glob("study/pictures/*/record.json"):
                    stamp = record.stat().st_mtime_ns
                    rewritten += written.setdefault(record, stamp) != stamp
                if process.returncode == 0:
                    break
                for mark in Path(folder).glob("started-*"):
                    mark.unlink()
            import pandas as pd

            table = pd.read_parquet(Path(folder) / "study" / "table.parquet")
            complete = table["position"].nunique() == options.pictures
            complete = complete and len(table) == 2 * options.pictures
            label = f"once: {options.pictures} pictures at 32², {name}, killed {kills} times"
            met = (
                check(
                    f"{label}: pictures in the table", table["position"].nunique(), options.pictures
                )
                and met
            )
            met = check(f"{label}: records rewritten", rewritten, 0, smaller=True) and met
            met = met and complete
    return met


BARS = {
    "pictures": bar_pictures,
    "columns": bar_columns,
    "average": bar_average,
    "batch": bar_batch,
    "dense": bar_dense,
    "kill": bar_kill,
    "once": bar_once,
}


def main() -> int:
    """Run one bar, or all."""
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bar", choices=[*BARS, "all"])
    parser.add_argument("--repeat", type=int, default=3, help="fits a time is the best of")
    parser.add_argument("--times", type=int, default=20, help="kills")
    parser.add_argument("--pictures", type=int, default=200, help="pictures of 'once'")
    parser.add_argument("--side", type=int, default=256, help="picture of 'columns'")
    options = parser.parse_args()
    chosen = list(BARS) if options.bar == "all" else [options.bar]
    return int(not all([BARS[name](options) for name in chosen]))


if __name__ == "__main__":
    sys.exit(main())
