"""What one product F·v costs, against every hand-written route and plenoptic's iteration.

    python benchmarks/products.py [--json FILE] [--repeat 15] [--models NAME ...]

Every number is a median over pairs run in turn, in CPU seconds of one thread (so that a busy
machine blurs less). The hand-written routes for F·v = Jᵀ(J v), best one taken for each model:

jvp, backward     J·v by torch.func.jvp, then a new forward and backward pass
jvp, kept vjp     J·v by torch.func.jvp, Jᵀ·u by torch.func.vjp, kept
linearize         J·v by torch.func.linearize, traced once; Jᵀ·u by torch.func.vjp, kept
double backward   both by torch.autograd.grad on kept graphs

A second table compares the dense Jacobian of OnOff (plenoptic's module and ours) at 32×32 with
plenoptic's row loop, each in a process of its own, set-up (tracing, checks) included: CPU seconds,
the growth of the process's peak memory, and the ratios. ``--models`` with no name gives it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import eigenexp as ee

Run = Callable[[], Any]


def vgg_like(width: int = 32) -> nn.Module:
    """Six convolutions with batch normalisation, ReLU and max pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for factor in (1, 2, 4):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width * factor, 3, padding=1)]
            layers += [nn.BatchNorm2d(width * factor), nn.ReLU()]
            channels = width * factor
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def conv_net() -> nn.Module:
    """ReLU and max pooling, gray pictures."""
    first = [nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(16, 32, 3), nn.ReLU())


class Transformer(nn.Module):
    """Patches, two blocks of attention, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 64, 8, 8)
        block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (1, tokens, 64) probabilities."""
        return self.blocks(self.embed(x).flatten(2).transpose(1, 2)).softmax(-1)


def plenoptic_on_off() -> nn.Module:
    """Plenoptic's own OnOff."""
    import plenoptic

    model = plenoptic.models.OnOff((31, 31), pretrained=True, cache_filt=True)
    plenoptic.remove_grad(model)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "OnOff 256²": (ee.models.OnOff, (1, 1, 256, 256)),
    "OnOff 64²": (ee.models.OnOff, (1, 1, 64, 64)),
    "OnOff 32²": (ee.models.OnOff, (1, 1, 32, 32)),
    "LGG 256²": (ee.models.LuminanceContrastGainControl, (1, 1, 256, 256)),
    "LG 64²": (ee.models.LuminanceGainControl, (1, 1, 64, 64)),
    "LN 64²": (ee.models.LinearNonlinear, (1, 1, 64, 64)),
    "Gaussian 64²": (lambda: ee.models.Gaussian(7, 1.0), (1, 1, 64, 64)),
    "plenoptic OnOff 256²": (plenoptic_on_off, (1, 1, 256, 256)),
    "plenoptic OnOff 64²": (plenoptic_on_off, (1, 1, 64, 64)),
    "conv net 32²": (conv_net, (1, 1, 32, 32)),
    "VGG-like 64²×3": (vgg_like, (1, 3, 64, 64)),
    "transformer 64²×3": (Transformer, (1, 3, 64, 64)),
}


def hand_written(model: nn.Module, image: Tensor, v: Tensor) -> dict[str, Run]:
    """Return F·v by each hand-written route that this model allows."""

    def flat(x: Tensor) -> Tensor:
        return model(x).reshape(-1)

    def jvp(direction: Tensor) -> Tensor:
        return torch.func.jvp(flat, (image,), (direction,))[1]

    x = image.clone().requires_grad_()
    y = flat(x)
    dummy = torch.zeros_like(y, requires_grad=True)
    (gradient,) = torch.autograd.grad(y, x, dummy, create_graph=True)

    def double_backward() -> Tensor:
        (u,) = torch.autograd.grad(gradient, dummy, v, retain_graph=True)
        return torch.autograd.grad(y, x, u, retain_graph=True)[0]

    routes: dict[str, Run] = {"double backward": double_backward}
    if "plenoptic" in type(model).__module__:
        return routes  # function transforms crash on models that assign .data in their forward
    _, pull = torch.func.vjp(flat, image)
    _, push = torch.func.linearize(flat, image)

    def jvp_then_backward() -> Tensor:
        u = jvp(v)
        point = image.clone().requires_grad_()
        return torch.autograd.grad(flat(point), point, u)[0]

    routes["jvp, backward"] = jvp_then_backward
    routes["jvp, kept vjp"] = lambda: pull(jvp(v))[0]
    routes["linearize"] = lambda: pull(push(v))[0]
    return routes


def plenoptic_iteration(model: nn.Module, image: Tensor, v: Tensor) -> Run:
    """Return one step of plenoptic's power iteration, k = 1, without its progress bar."""
    from plenoptic._synthesize.autodiff import (
        _fisher_info_matrix_eigenvalue,
        _fisher_info_matrix_vector_product,
    )

    x = image.reshape(-1, 1).clone().requires_grad_()
    y = model(x.view(image.shape)).reshape(-1, 1)
    dummy = torch.ones_like(y, requires_grad=True)
    column = v.reshape(-1, 1)

    def step() -> Tensor:
        product = _fisher_info_matrix_vector_product(y, x, column, dummy)
        basis, _ = torch.linalg.qr(product, "reduced")
        return _fisher_info_matrix_eigenvalue(y, x, basis, dummy)

    return step


def medians(runs: dict[str, Run], repeat: int) -> dict[str, float]:
    """Run all in turn, ``repeat`` times; return the median CPU seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 2):
        for name, run in runs.items():
            began = time.thread_time()
            run()
            if turn > 1:
                times[name].append(time.thread_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, repeat: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the row of one model."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    # Inference shortcuts of nn.Transformer have no derivative: its weights keep their gradients.
    model = make().to(dtype).eval().requires_grad_("transformer" in name)
    image = (0.1 + 0.8 * torch.rand(shape)).to(dtype)
    v = torch.randn(shape).to(dtype)
    began = time.thread_time()
    operator = ee.FisherOperator(model, image)
    made = time.thread_time() - began
    block = v.reshape(-1, 1)
    with sdpa_kernel(SDPBackend.MATH):
        runs = hand_written(model, image, v)
        hand = list(runs)
        reference = runs["double backward"]().reshape(-1, 1)
        error = float((operator @ block - reference).norm() / reference.norm())
        runs["ours"] = lambda: operator.apply(block)
        runs["plenoptic"] = plenoptic_iteration(model, image, v)

        def forward() -> None:
            with torch.no_grad():
                model(image)

        runs["forward"] = forward
        times = medians(runs, repeat)
    best = min(hand, key=times.__getitem__)
    return {
        "model": name,
        "route": operator.route,
        "ms": 1e3 * times["ours"],
        "forwards": times["ours"] / times["forward"],
        "best_hand_written": best,
        "over_best": times["ours"] / times[best],
        "over_plenoptic": times["ours"] / times["plenoptic"],
        "set_up_ms": 1e3 * made,
        "error": error,
        "times_ms": {key: 1e3 * value for key, value in times.items()},
    }


def dense(which: str, model_name: str) -> dict[str, float]:
    """Build the dense Jacobian of an OnOff at 32×32 in this process, set-up included."""
    from plenoptic._synthesize.autodiff import _jacobian

    torch.manual_seed(0)
    model = (plenoptic_on_off() if model_name == "plenoptic" else ee.models.OnOff()).eval()
    image = 0.1 + 0.8 * torch.rand(1, 1, 32, 32)
    model(image)
    status = Path("/proc/self/status")

    def resident(key: str) -> float:
        return int(status.read_text().split(f"{key}:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = resident("VmRSS"), time.thread_time()
    if which == "plenoptic":
        x = image.reshape(-1, 1).clone().requires_grad_()
        jacobian = _jacobian(model(x.view(image.shape)).reshape(-1, 1), x)
    else:
        jacobian = ee.JacobianOperator(model, image).to_dense()
    return {
        "seconds": time.thread_time() - began,
        "peak_mib": resident("VmHWM") - before,
        "norm": float(jacobian.double().norm()),
    }


def dense_rows(repeat: int) -> dict[str, dict[str, float]]:
    """Run :func:`dense` for both solvers and both models in fresh processes; medians."""
    cells = [(which, model) for model in ("plenoptic", "ours") for which in ("ours", "plenoptic")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {cell: [] for cell in cells}
    for _ in range(repeat):
        for cell in cells:
            command = [sys.executable, "-W", "ignore", __file__, "--dense-in-process", *cell]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[cell].append(json.loads(output.splitlines()[-1]))
    return {
        f"{which}, {model} OnOff": {
            key: statistics.median(row[key] for row in rows) for key in rows[0]
        }
        for (which, model), rows in found.items()
    }


def dense_ratios(cells: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return, for each model, how much faster ours is, and its share of plenoptic's peak memory."""
    ratios = {}
    for model in ("plenoptic", "ours"):
        ours, theirs = (cells[f"{which}, {model} OnOff"] for which in ("ours", "plenoptic"))
        ratios[f"{model} OnOff"] = {
            "faster": theirs["seconds"] / ours["seconds"],
            "memory": ours["peak_mib"] / theirs["peak_mib"],
        }
    return ratios


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--dense-in-process", nargs=2, help="for itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.dense_in_process:
        print(json.dumps(dense(*options.dense_in_process)))
        return
    print(
        f"{'model':22} {'route':9} {'ms':>8} {'forwards':>8} {'over best':>9} "
        f"{'(hand-written)':17} {'over plenoptic':>14} {'set-up ms':>9}"
    )
    rows = []
    for name in options.models:
        row = measure(name, options.repeat, torch.float64 if options.float64 else torch.float32)
        rows.append(row)
        print(
            f"{name:22} {row['route']:9} {row['ms']:8.3f} {row['forwards']:8.2f} "
            f"{row['over_best']:9.2f} {row['best_hand_written']:17} {row['over_plenoptic']:14.3f} "
            f"{row['set_up_ms']:9.1f}",
            flush=True,
        )
    cells = dense_rows(3)
    print("\ndense Jacobian of OnOff 32² (m = 2048, n = 1024), set-up included")
    for name, cell in cells.items():
        print(f"{name:28} {cell['seconds']:6.2f} s  {cell['peak_mib']:5.0f} MiB")
    ratios = dense_ratios(cells)
    for name, ratio in ratios.items():
        print(
            f"{name}: {ratio['faster']:.0f} times faster than plenoptic (bar 10), with "
            f"{ratio['memory']:.2f} of its peak memory (bar 0.5)"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"products": rows, "dense": cells, "dense_ratios": ratios}, indent=1)
        )


if __name__ == "__main__":
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        # plenoptic's notes on caching its filters, torch's on prototypes.
        warnings.simplefilter("ignore")
        main()
