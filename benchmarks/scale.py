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


def median(run: Callable[[], object], repeat: int = 7) -> float:
    """Return the median seconds of ``run`` after a first time."""
    run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def all_reduce(sizes: list[int]) -> dict[int, float]:
    """Return seconds of a gloo all-reduce of so many float32 between two processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--reduce", json.dumps(sizes), "--meet", folder]
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        outputs = [rank.communicate()[0] for rank in ranks]
    measured = json.loads(outputs[0].splitlines()[-1])
    return {int(size): seconds for size, seconds in measured.items()}


def reduce_rank(sizes: list[int], folder: str, rank: int) -> None:
    """Time the all-reduce as one of two ranks."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seconds = {}
    for size in sizes:
        block = torch.ones(size)
        seconds[size] = median(lambda block=block: dist.all_reduce(block), repeat=15)
    dist.destroy_process_group()
    print(json.dumps(seconds))


def solver_seconds(n: int, steps: int) -> float:
    """Return the solver's own seconds a step, products left out, averaged over its first steps."""
    from eigenexp.eigensolvers import Lanczos

    generator = torch.Generator().manual_seed(0)
    diagonal = torch.rand(n, 1, generator=generator)
    solver = Lanczos(n, k=1, which="both", tol=1e-30, seed=0, dtype=torch.float32)
    began = time.perf_counter()
    for _ in range(steps):
        solver.tell(diagonal * solver.ask())
    return (time.perf_counter() - began) / steps


def command_seconds(folder: Path, *arguments: str) -> float:
    """Return the seconds of one ``eigenexp`` command."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "eigenexp.cli", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


def throughput(folder: Path) -> dict[str, float]:
    """Return jobs a minute of one process and of two, one thread each, by joblib."""
    jobs = [
        *("fit", "-m", "model=onoff", "image.crop=[120,220,48,48]", "solver.tol=1e-4"),
        *("logger=none", "solver.seed=range(8)", "threads=1", "hydra/launcher=joblib"),
    ]
    seconds = {
        f"{workers} processes": command_seconds(folder, *jobs, f"hydra.launcher.n_jobs={workers}")
        for workers in (1, 2)
    }
    return {name: 60 * 8 / spent for name, spent in seconds.items()}


def store_seconds(folder: Path) -> dict[str, float]:
    """Return seconds of writes to an SQLite store as a run makes them."""
    from mlflow.entities import Metric

    from eigenexp.tracking import local_store

    store = local_store(folder / "store")
    run_id = store.create_run("e")
    step = iter(range(10**9))

    def batch(size: int) -> None:
        at = next(step)
        points = [Metric(f"m{i % 20}", 1.0, 0, at * size + i) for i in range(size)]
        store.client.log_batch(run_id, metrics=points)

    created = median(lambda: store.create_run("e"), repeat=9)
    return {"create a run": created, "500 points": median(lambda: batch(500), repeat=9)}


def cost() -> list[dict[str, Any]]:
    """Print the constants of the cost model, and what it makes of them."""
    import eigenexp as ee

    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    print("product F·v and forward pass, seconds")
    for name, size in (("onoff", 64), ("onoff", 256), ("lite0 block 4", 224)):
        if name == "onoff":
            model: Any = ee.models.OnOff()
            picture = ee.load_picture("camera", resize=size).tensor
        else:
            model = ee.models.efficientnet_lite0("network._blocks.4")
            picture = ee.load_picture("chelsea", resize=size, channels="color").tensor
        operator = ee.FisherOperator(model, picture)
        vector = torch.randn(operator.shape[0], 1)
        with torch.no_grad():
            forward = median(lambda m=model, p=picture: m(p))
        product = median(lambda o=operator, v=vector: o @ v)
        facts[f"product {name} {size}"] = product
        print(f"  {name:<14}{size:>4}²  {product:.4f}  forward {forward:.4f}")
    print("the solver's own seconds a step (100 steps from the start)")
    for n in (4096, 65536, 150528):
        facts[f"solver {n}"] = solver_seconds(n, 100)
        print(f"  n = {n:<7} {facts[f'solver {n}']:.5f}")
    print("all-reduce of n float32 between two processes (gloo)")
    for n, seconds in all_reduce([1, 4096, 65536, 150528, 786432]).items():
        facts[f"all-reduce {n}"] = seconds
        print(f"  n = {n:<7} {seconds:.5f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = ["image.crop=[120,220,16,16]", "solver.tol=1e-1", "model=identity"]
        quiet = [*small, "threads=1", "trainer.enable_progress_bar=false"]
        facts["job"] = command_seconds(folder, "fit", *quiet, "logger=none")
        facts["job, MLflow"] = command_seconds(folder, "fit", *quiet, "logger=mlflow")
        print(f"a job that solves nothing: {facts['job']:.1f} s, with MLflow", end=" ")
        print(f"{facts['job, MLflow']:.1f} s")
        for key, seconds in store_seconds(folder).items():
            facts[f"store: {key}"] = seconds
            print(f"SQLite store, {key}: {seconds:.4f} s")
        for key, rate in throughput(folder).items():
            facts[f"jobs a minute, {key}"] = rate
            print(f"OnOff at 48², {key}: {rate:.1f} jobs a minute")
        files = sum(1 for path in folder.glob("mlruns/**/*") if path.is_file())
        facts["files a job"] = files / 18
        print(f"files a job: {files / 18:.0f}")
    return [facts]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = {"efficientnet": efficientnet, "networks": networks, "precision": precision}
    sections["cost"] = cost
    parser.add_argument("section", nargs="?", choices=sections)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--reduce", help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(solve_case(json.loads(options.case))))
        return
    if options.reduce:
        reduce_rank(json.loads(options.reduce), options.meet, options.rank)
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
