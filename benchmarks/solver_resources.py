"""What a whole solve costs beside its products: time, memory, and plenoptic's time."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from solver_cells import Row, bar, stored_vectors
from solver_problems import MODELS, einstein, fisher
from torch import nn

import eigenexp as ee
from eigenexp.eigensolvers import make_solver, multiply

# CPU seconds of this process: those of one thread.
now = time.process_time


def section_arithmetic(options: argparse.Namespace) -> Iterator[Row]:
    """Share of the time outside products: OnOff, float32, top 1 and bottom 1 to 1e-3."""
    side = 64 if options.quick else 256
    operator = fisher("OnOff", side, torch.float32)
    operator @ torch.ones(side * side, 1)  # the first product pays for what is made once
    for method in options.methods:
        inside, before, began = 0.0, operator.num_products, now()
        solver = make_solver(operator, method, k=1, which="both", tol=1e-3, seed=0)
        while not solver.done:
            block = solver.ask()
            asked = now()
            told = multiply(operator, solver.request, block)
            inside += now() - asked
            solver.tell(*told)
        solver.result()
        seconds = now() - began
        share = 1 - inside / seconds
        yield {
            "section": "arithmetic",
            "problem": f"OnOff {side}²",
            "cell": "both1",
            "tol": 1e-3,
            "method": method,
            "products": operator.num_products - before,
            "share": share,
            "seconds": seconds,
            # Small pictures have cheap products: the bar is meant for 256².
            "bars": [bar(f"{share:.1%} ≤ 5%", share <= 0.05)] if side == 256 else [],
            "note": f"{seconds:.2f} s, {share:.1%} outside products",
        }


# -- memory ------------------------------------------------------------------------------------


def _net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 16, 5, stride=2), nn.Softplus()]
        return nn.Sequential(*first, nn.Conv2d(16, 16, 3, stride=2), nn.Softplus())


COLOUR: dict[str, Callable[[], nn.Module]] = {
    "Gaussian RGB": lambda: ee.models.Gaussian(31, 1.0),
    "net RGB": _net,
}


def section_memory(options: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of a process that solves at 3×224×224."""
    side = 64 if options.quick else 224
    for model in COLOUR:
        for method in options.methods:
            command = [sys.executable, __file__, "--memory", model, method, str(side)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            facts = json.loads(output.splitlines()[-1])
            used = facts["beyond"] / facts["vector"]
            stored = facts["stored"]
            row: Row = {
                "section": "memory",
                "problem": model,
                "cell": "both1",
                "tol": 1e-6,
                "method": method,
                **facts,
                "bars": [bar(f"{facts['peak'] / 2**30:.2f} ≤ 4 GiB", facts["peak"] <= 2**32)],
            }
            if side == 224:  # smaller vectors drown in what any process allocates
                row["bars"].append(bar(f"{used:.0f}·n ≤ ({stored}+10)·n", used <= stored + 10))
            yield row


def _memory(model: str, method: str, side: int) -> dict[str, int]:
    """Solve at 3×side×side in float32; return the peaks of this process in bytes (Linux).

    ``beyond`` is the peak of the solve less that of ten products without a solver. To 1e-6 at
    both ends, at most 500 products: enough to fill the basis.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    picture = 0.1 + 0.8 * torch.rand(1, 3, side, side, generator=generator)
    operator = ee.FisherOperator(COLOUR[model]().requires_grad_(False), picture)
    n = operator.shape[0]
    _reset_peak()
    for _ in range(10):
        operator.apply(torch.randn(n, 1, generator=generator))
    alone = _peak()
    _reset_peak()
    before = operator.num_products
    solver = make_solver(operator, method, k=1, which="both", tol=1e-6, seed=0, max_products=500)
    while not solver.done:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
    solver.result()
    return {
        "n": n,
        "products": operator.num_products - before,
        "stored": stored_vectors(solver),
        "vector": 4 * n,
        "beyond": _peak() - alone,
        "peak": _peak(),
    }


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


# -- whole solves ------------------------------------------------------------------------------


def section_plenoptic(options: argparse.Namespace) -> Iterator[Row]:
    """Time whole solves against plenoptic's, of its own OnOff and of ours."""
    sides = (32,) if options.quick else (64, 256) if options.full else (64,)
    for side in sides:
        theirs = plenoptic_solve(side)
        for whose in ("plenoptic's", "our"):
            for method in options.methods:
                ours = our_solve(side, whose, method, theirs["tol"])
                speedup = theirs["seconds"] / ours["seconds"]
                enough = max(ours["residuals"]) <= 1.1 * theirs["tol"]
                yield {
                    "section": "plenoptic",
                    "problem": f"OnOff {side}²",
                    "cell": "both1",
                    "tol": theirs["tol"],
                    "method": method,
                    "products": ours["products"],
                    "theirs": theirs,
                    "ours": ours,
                    "bars": [bar(f"{speedup:.0f}× ≥ 20×", speedup >= 20 and enough)],
                    "note": (
                        f"{whose} module: {ours['seconds']:.2f} s, residuals "
                        f"{ours['residuals'][0]:.0e} {ours['residuals'][1]:.0e}; plenoptic: "
                        f"{theirs['seconds']:.1f} s, {theirs['products']} products, "
                        f"{theirs['residuals'][0]:.0e} {theirs['residuals'][1]:.0e}"
                    ),
                }


def plenoptic_on_off() -> nn.Module:
    """Plenoptic's own OnOff."""
    import plenoptic

    model = plenoptic.models.OnOff((31, 31), pretrained=True, cache_filt=True).eval()
    plenoptic.remove_grad(model)
    return model


def plenoptic_solve(side: int) -> dict[str, Any]:
    """Run ``Eigendistortion.synthesize`` as it comes (power iteration, k = 1), in float32.

    ``residuals`` are ‖Fv − θv‖/λmax of its top and its bottom vector, in float64; ``tol`` is the
    smaller one. Its products are those that it calls for, two a step.
    """
    import plenoptic
    from plenoptic._synthesize import eigendistortion as module

    plenoptic.set_seed(0)
    model, picture = plenoptic_on_off(), einstein(side).float()
    model(picture)  # caches its filters
    names = ("_fisher_info_matrix_vector_product", "_fisher_info_matrix_eigenvalue")
    with contextlib.ExitStack() as stack:
        for sink in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(sink(io.StringIO()))
        calls = [
            stack.enter_context(mock.patch.object(module, name, wraps=getattr(module, name)))
            for name in names
        ]
        began = now()
        eig = plenoptic.Eigendistortion(picture, model)
        eig.synthesize(method="power", k=1)
        seconds = now() - began
    residuals = _residuals(plenoptic_on_off(), side, eig.eigendistortions.detach())
    return {
        "seconds": seconds,
        "products": sum(call.call_count for call in calls),
        "residuals": residuals,
        "eigenvalues": eig.eigenvalues.tolist(),
        "tol": min(residuals),
    }


def our_solve(side: int, whose: str, method: str, tol: float) -> dict[str, Any]:
    """Solve plenoptic's module or ours in float32, the making of the operator included."""
    make = MODELS["OnOff"] if whose == "our" else plenoptic_on_off
    model, picture = make().requires_grad_(False), einstein(side).float()
    model(picture)  # as for plenoptic's
    began = now()
    operator = ee.FisherOperator(model, picture)
    spectrum = ee.solve(operator, method, k=1, which="both", tol=tol, seed=0, max_products=4000)
    seconds = now() - began
    return {
        "seconds": seconds,
        "products": spectrum.num_products,
        "stop_reason": spectrum.stop_reason.value,
        "residuals": _residuals(make(), side, spectrum.eigenvectors),
        "eigenvalues": spectrum.eigenvalues.tolist(),
    }


def _residuals(model: nn.Module, side: int, vectors: torch.Tensor) -> list[float]:
    operator = ee.FisherOperator(model.double(), einstein(side))
    v = vectors.double().reshape(2, -1).T
    v = v / v.norm(dim=0)
    product = operator @ v
    theta = (v * product).sum(dim=0)
    residuals: list[float] = ((product - theta * v).norm(dim=0) / theta[0]).tolist()
    return residuals


if __name__ == "__main__" and sys.argv[1:2] == ["--memory"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(_memory(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
