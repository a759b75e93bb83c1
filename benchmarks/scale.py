"""Big networks and pictures, low precision, and what a study costs.

    python benchmarks/scale.py efficientnet | networks | precision | cost [--json FILE]

efficientnet  EfficientNet-Lite0 with its ImageNet weights at 224x224x3, block and logits: top 1
              and bottom 1 to 1e-3, products, seconds, peak memory
networks      ResNet-50 and ViT-B/16 (random weights) at 224x224x3 and 512x512x3, with activations
              kept and recomputed
precision     the same block in float32, bfloat16 and float16: what a product is worth
cost          the constants of docs/cost.md on this machine, two processes

Every solve runs in a process of its own, one thread; peak memory is that process's largest resident
set, Python and torch (about 0.3 GiB) included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

SETTINGS = {"k": 1, "which": "both", "tol": 1e-3}


def peak_gib() -> float:
    """Return the largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def build(name: str, layer: str | None, size: int) -> Any:
    """Return a model by name, cut at a layer."""
    from eigenexp import models

    if name == "vit_b16":
        return models.vit_b16(layer=layer, image_size=size)
    return {"efficientnet_lite0": models.efficientnet_lite0, "resnet50": models.resnet50}[name](
        layer=layer
    )


def solve_case(case: dict[str, Any]) -> dict[str, Any]:
    """Solve one problem in this process and measure it."""
    import eigenexp as ee

    torch.set_num_threads(1)
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    model_dtype = dtypes.get(case.get("precision", ""))
    picture = ee.load_picture("chelsea", resize=case["size"], channels="color").tensor
    model = build(case["model"], case["layer"], case["size"])
    if model_dtype is not None:
        model = model.to(model_dtype)
    before = peak_gib()
    began = time.perf_counter()
    operator = ee.FisherOperator(
        model, picture, recompute=case.get("recompute", False), model_dtype=model_dtype
    )
    linearised = time.perf_counter() - began
    vector = torch.randn(operator.shape[0], 1, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        operator @ vector
        times.append(time.perf_counter() - began)
    facts = {
        **case,
        "n": operator.shape[0],
        "m": operator.jacobian.shape[0],
        "route": operator.route,
        "product_eps": operator.product_eps,
        "linearise_seconds": linearised,
        "product_seconds": statistics.median(times),
        "start_gib": before,
    }
    if case.get("solve", True):
        began = time.perf_counter()
        settings = {**SETTINGS, **case.get("settings", {})}
        spectrum = ee.solve(operator, **settings)
        facts |= {
            "solve_seconds": time.perf_counter() - began,
            "products": spectrum.num_products,
            "eigenvalues": spectrum.eigenvalues.tolist(),
            "worst_residual": float(spectrum.residuals.max()) / spectrum.scale,
            "status": [str(status) for status in spectrum.status],
            "stop_reason": str(spectrum.stop_reason),
        }
    facts["peak_gib"] = peak_gib()
    return facts


def in_process(case: dict[str, Any]) -> dict[str, Any]:
    """Run :func:`solve_case` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {**case, "error": last}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def report(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the cases and print a line each."""
    print(
        f"{'model':<20}{'layer':<34}{'size':>5} {'activations':<11} {'m':>7} {'products':>8} "
        f"{'s/product':>9} {'solve s':>8} {'peak GiB':>8}  λmax, λmin, worst residual, status"
    )
    results = []
    for case in cases:
        facts = in_process(case)
        results.append(facts)
        head = (
            f"{case['model']:<20}{case['layer'] or 'logits':<34}{case['size']:>5} "
            f"{'recomputed' if case.get('recompute') else case.get('precision', 'kept'):<11} "
        )
        if "error" in facts:
            print(head + facts["error"])
            continue
        solved = "products" in facts
        print(
            head
            + f"{facts['m']:>7} {facts['products'] if solved else '-':>8} "
            + f"{facts['product_seconds']:>9.3f} "
            + (f"{facts['solve_seconds']:>8.1f} " if solved else f"{'-':>8} ")
            + f"{facts['peak_gib']:>8.2f}  "
            + (
                f"{facts['eigenvalues'][0]:.5g}, {facts['eigenvalues'][-1]:.3g}, "
                f"{facts['worst_residual']:.1e}, {'/'.join(facts['status'])}"
                if solved
                else ""
            ),
            flush=True,
        )
    return results


def efficientnet() -> list[dict[str, Any]]:
    """Print the solves of EfficientNet-Lite0."""
    layers = ["network._blocks.4", None]
    return report(
        [{"model": "efficientnet_lite0", "layer": layer, "size": 224} for layer in layers]
    )


def networks() -> list[dict[str, Any]]:
    """Print ResNet-50, ViT-B/16 and 512x512 pictures, activations kept and recomputed."""
    cases = []
    for name, layer, size in (
        ("resnet50", "network.resnet.encoder.stages.1", 224),
        ("resnet50", None, 224),
        ("vit_b16", None, 224),
        ("efficientnet_lite0", None, 512),
        ("resnet50", None, 512),
    ):
        for recompute in (False, True):
            # Where activations are recomputed the answer is the same: a product tells the cost.
            cases.append(
                {
                    "model": name,
                    "layer": layer,
                    "size": size,
                    "recompute": recompute,
                    "solve": not recompute,
                }
            )
    return report(cases)


def precision() -> list[dict[str, Any]]:
    """Print what products in lower precisions are worth."""
    base = {"model": "efficientnet_lite0", "layer": "network._blocks.4", "size": 224}
    results = report(
        [
            {**base, "precision": p, "settings": {"which": "top", "tol": tol, "max_products": 60}}
            for p, tol in (("float32", 1e-3), ("bfloat16", 0.1), ("float16", 0.02))
        ]
    )
    for facts in results:
        if "error" not in facts:
            print(f"{facts['precision']:<9} product_eps {facts['product_eps']:.2e}")
    return results


# -- the cost of a study ---------------------------------------------------------------------------


def median(
    run: Callable[[], object],
    repeat: int = 7,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Return the median seconds of ``run`` after a first time; CPU seconds by default."""
    run()
    times = []
    for _ in range(repeat):
        began = clock()
        run()
        times.append(clock() - began)
    return statistics.median(times)


def exchanges(sizes: list[int]) -> dict[str, dict[str, float]]:
    """Return seconds of an exchange of so many float32 between two processes.

    Columns are gathered; a mean is of products; one number is broadcast, as Lightning does before
    every step of several processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--exchange", json.dumps(sizes), "--meet", folder]
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        outputs = [rank.communicate()[0] for rank in ranks]
    measured: dict[str, dict[str, float]] = json.loads(outputs[0].splitlines()[-1])
    return measured


def exchange_rank(sizes: list[int], folder: str, rank: int) -> None:
    """Time exchanges as one of two ranks, each after 10 ms of work.

    Of each exchange the shorter of both ranks' times counts: the other one only waited.
    """
    from types import SimpleNamespace

    import torch.distributed as dist

    from eigenexp.distributed.exchange import Exchange

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    here: Any = SimpleNamespace(global_rank=rank, world_size=2)
    blocks = Exchange(here, "start again")
    number = torch.zeros(1, dtype=torch.int64)
    matrix = torch.randn(300, 300)
    turns = max(1, round(0.010 / median(lambda: matrix @ matrix, repeat=50)))
    seconds: dict[str, dict[str, float]] = {}
    for size in sizes:
        own = torch.ones(size, 1)
        ways = {
            "gather": lambda own=own: blocks.gather_columns(own, 1),
            "mean": lambda own=own: blocks.mean(own),
        }
        if size == 1:
            ways = {"broadcast": lambda: dist.broadcast(number, src=0)}
        for name, exchange in ways.items():
            times = []
            for _ in range(60):
                for _ in range(turns):
                    matrix @ matrix
                began = time.perf_counter()
                exchange()
                times.append(time.perf_counter() - began)
            everyone = [times, times]
            dist.all_gather_object(everyone, times)
            both = torch.tensor(everyone).min(0).values
            seconds.setdefault(name, {})[str(size)] = float(both.mean())
    blocks.close()
    dist.destroy_process_group()
    print(json.dumps(seconds))


PROBLEMS = (("onoff", 64), ("onoff", 256), ("lite0 block 4", 224))


def problem(name: str, size: int) -> tuple[Any, Any]:
    """Return a model and a picture."""
    import eigenexp as ee

    if name == "lite0 block 4":
        model: Any = ee.models.efficientnet_lite0("network._blocks.4")
        return model, ee.load_picture("chelsea", resize=size, channels="color").tensor
    kinds = {"onoff": ee.models.OnOff, "lg": ee.models.LuminanceGainControl}
    return kinds[name](), ee.load_picture("camera", resize=size).tensor


def product_rank(name: str, size: int, seconds: float) -> None:
    """Multiply for so many seconds and print the median CPU seconds of a product."""
    import eigenexp as ee

    torch.set_num_threads(1)
    operator = ee.FisherOperator(*problem(name, size))
    vector = torch.randn(operator.shape[0], 1)
    operator @ vector
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        began = time.process_time()
        operator @ vector
        times.append(time.process_time() - began)
    print(json.dumps(statistics.median(times)))


def at_once(name: str, size: int, processes: int) -> float:
    """Return CPU seconds of a product with so many processes multiplying at once."""
    command = [sys.executable, __file__, "--product", json.dumps([name, size, 8.0])]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    return statistics.mean(json.loads(output) for output in outputs)


def solver_seconds(n: int, steps: int) -> float:
    """Return the solver's own CPU seconds a step, products left out, over its first steps."""
    import eigenexp as ee

    generator = torch.Generator().manual_seed(0)
    diagonal = torch.rand(n, 1, generator=generator)
    solver = ee.eigensolvers.Lanczos(n, k=1, which="both", tol=1e-30, seed=0, dtype=torch.float32)
    began = time.process_time()
    for _ in range(steps):
        solver.tell(diagonal * solver.ask())
    return (time.process_time() - began) / steps


def command_seconds(folder: Path, *arguments: str) -> float:
    """Return the CPU seconds of one ``eigenexp`` command, what it starts included."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run(
        [sys.executable, "-m", "eigenexp.cli", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return spent() - before


def store_seconds(folder: Path) -> dict[str, float]:
    """Return CPU seconds of writes to an SQLite store as a run makes them."""
    from mlflow.entities import Metric

    from eigenexp.tracking import local_store

    store = local_store(folder / "store")
    run_id = store.create_run("e")
    steps = iter(range(10**9))

    def batch(size: int) -> None:
        at = next(steps)
        points = [Metric(f"m{i % 20}", 1.0, 0, at * size + i) for i in range(size)]
        store.client.log_batch(run_id, metrics=points)

    created = median(lambda: store.create_run("e"), repeat=15)
    return {"create a run": created, "500 points": median(lambda: batch(500), repeat=15)}


def job_files(folder: Path) -> dict[str, float]:
    """Return what one run of the demo's size leaves: points in the store, files, bytes."""
    import sqlite3

    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as store:
        (points,) = store.execute("select count(*) from metrics").fetchone()
    files = [path for path in folder.glob("mlruns/**/*") if path.is_file()]
    kept = [path for path in files if path.name != "mlflow.db"]
    return {
        "points a run": points,
        "files a run": len(kept),
        "MiB a run": sum(path.stat().st_size for path in kept) / 2**20,
    }


def growth() -> dict[str, int]:
    """Return the products at each end as the picture grows."""
    import eigenexp as ee

    found = {}
    for name in ("onoff", "lg"):
        for size in (32, 64, 128):
            operator = ee.FisherOperator(*problem(name, size))
            for which in ("top", "bottom"):
                spectrum = ee.solve(operator, k=1, which=which, tol=1e-3)
                found[f"{name} {size} {which}"] = spectrum.num_products
            print(
                f"  {name:<6}{size:>4}²  n = {operator.shape[0]:<6} top "
                f"{found[f'{name} {size} top']:>4}  bottom {found[f'{name} {size} bottom']:>4}",
                flush=True,
            )
    return found


def cost() -> list[dict[str, Any]]:
    """Print the constants of the cost model, and what it makes of them."""
    import eigenexp as ee
    from eigenexp.experiments.config import compose_config

    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    print(
        "CPU seconds of a product F·v and of a forward pass; a product with two processes at once"
    )
    for name, size in PROBLEMS:
        model, picture = problem(name, size)
        operator = ee.FisherOperator(model, picture)
        vector = torch.randn(operator.shape[0], 1)
        with torch.no_grad():
            forward = median(lambda m=model, p=picture: m(p))
        product = median(lambda o=operator, v=vector: o @ v)
        alone, both = at_once(name, size, 1), at_once(name, size, 2)
        facts[f"product {name} {size}"] = product
        facts[f"at once {name} {size}"] = both / alone
        print(
            f"  {name:<14}{size:>4}²  {product:.5f}  forward {forward:.5f}  two at once: "
            f"{alone:.5f} → {both:.5f} each, throughput {2 * alone / both:.2f}×",
            flush=True,
        )
    print("the solver's own CPU seconds a step (100 steps from the start)")
    for n in (4096, 65536, 150528):
        facts[f"solver {n}"] = solver_seconds(n, 100)
        print(f"  n = {n:<7} {facts[f'solver {n}']:.5f}")
    print("seconds of an exchange of n float32 between two processes at work (mean of 60)")
    measured = exchanges([1, 4096, 65536, 150528, 786432])
    print(f"  one number, as Lightning before every step: {measured['broadcast']['1']:.5f}")
    for n, seconds in measured["mean"].items():
        facts[f"exchange {n}"] = seconds
        print(f"  n = {n:<7} mean {seconds:.5f}  columns {measured['gather'][n]:.5f}")
    print("products, one pair, to 1e-3")
    facts |= growth()
    composed = median(lambda: compose_config(["model=lg", "image=coffee"]), repeat=9)
    facts["compose"] = composed
    print(f"composing a job before a sweep starts: {composed:.3f} CPU s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quiet = ["threads=1", "trainer.enable_progress_bar=false"]
        nothing = [*quiet, "image.crop=[120,220,16,16]", "solver.tol=1e-1", "model=identity"]
        facts["job"] = command_seconds(folder, "fit", *nothing, "logger=none")
        facts["job, MLflow"] = command_seconds(folder, "fit", *nothing, "logger=mlflow")
        print(f"a job that solves nothing: {facts['job']:.1f} CPU s, with MLflow", end=" ")
        print(f"{facts['job, MLflow']:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command_seconds(folder, "fit", "experiment=demo", "logger=mlflow", *quiet)
        left = job_files(folder)
        facts |= left
        print("the demo leaves: " + ", ".join(f"{v:.6g} {k}" for k, v in left.items()))
        for key, seconds in store_seconds(folder).items():
            facts[f"store: {key}"] = seconds
            print(f"SQLite store, {key}: {seconds:.4f} CPU s")
    for line in projected(facts):
        print(line)
    return [facts]


def projected(facts: dict[str, Any]) -> list[str]:
    """Return what the model of docs/cost.md makes of the constants."""
    products, n = 35, 150528
    product = facts["product lite0 block 4 224"]
    solver, exchange = facts[f"solver {n}"], facts[f"exchange {n}"]
    lines = ["projected (nothing below is measured):"]
    job = facts["job, MLflow"] + products * (product + solver)
    lines.append(f"  one Lite0 problem of {products} products, one core: {job:.0f} s")
    study = 1000 * job / 3600
    lines.append(
        f"  1000 of them: {study:.1f} core hours; 1000 SLURM jobs: {job:.0f} s and the queue"
    )
    writes = facts["store: create a run"] + facts["points a run"] / 500 * facts["store: 500 points"]
    lines.append(
        f"  the store's writes of 1000 jobs, one after another: {1000 * writes / 60:.1f} min; "
        f"{job / writes:.0f} jobs at a time keep one SQLite file busy"
    )
    lines.append(f"  files of 1000 jobs: {1000 * facts['files a run']:.0f}")
    lines.append(f"  composing 1000 jobs: {1000 * facts['compose']:.0f} s")
    for devices in (2, 8):
        # Every rank repeats the solver's arithmetic on the whole block.
        alone = devices * (product + solver)
        together = product + devices * solver + exchange
        lines.append(
            f"  columns over {devices} processes, a block of {devices} at n = {n}: "
            f"{alone / together:.2f}× one process"
        )
    for devices, pictures in ((2, 16), (8, 16), (8, 128)):
        alone = pictures * product + solver
        # A sum passes 2(p − 1)/p of the block through every process.
        passed = 2 * (devices - 1) / devices * exchange
        together = pictures / devices * product + solver + passed
        lines.append(
            f"  the mean of {pictures} pictures over {devices} processes: "
            f"{alone / together:.2f}× one process"
        )
    return lines


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = {"efficientnet": efficientnet, "networks": networks, "precision": precision}
    sections["cost"] = cost
    parser.add_argument("section", nargs="?", choices=sections)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--exchange", help=argparse.SUPPRESS)
    parser.add_argument("--product", help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(solve_case(json.loads(options.case))))
        return
    if options.exchange:
        exchange_rank(json.loads(options.exchange), options.meet, options.rank)
        return
    if options.product:
        product_rank(*json.loads(options.product))
        return
    if options.section is None:
        parser.error("expected one of " + ", ".join(sections))
    load = os.getloadavg()[0]
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, one thread, load {load:.1f} at start"
    )
    results = sections[options.section]()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
