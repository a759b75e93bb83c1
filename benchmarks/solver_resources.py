"""What a whole solve costs beside its products: seconds, memory, and plenoptic's seconds."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from solver_problems import MODELS, einstein, fisher
from torch import nn

import eigenexp as ee
from eigenexp.eigensolvers import make_solver, multiply


def arithmetic(method: str, side: int) -> tuple[float, float, int]:
    """Return (share of the wall time outside products, seconds, products); OnOff, float32.

    Top 1 and bottom 1 to 1e-3. Making the operator is not counted.
    """
    operator = fisher("OnOff", side, torch.float32)
    operator @ torch.ones(side * side, 1)
    inside = 0.0
    began = time.perf_counter()
    solver = make_solver(operator, method, k=1, which="both", tol=1e-3, seed=0)
    while not solver.done:
        block = solver.ask()
        asked = time.perf_counter()
        told = multiply(operator, solver.request, block)
        inside += time.perf_counter() - asked
        solver.tell(*told)
    solver.result()
    seconds = time.perf_counter() - began
    return 1 - inside / seconds, seconds, operator.num_products - 1


# -- memory ------------------------------------------------------------------------------------


def _conv() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 16, 5, stride=2), nn.Softplus()]
        return nn.Sequential(*first, nn.Conv2d(16, 16, 3, stride=2), nn.Softplus())


COLOUR: dict[str, Callable[[], nn.Module]] = {
    "Gaussian RGB": lambda: ee.models.Gaussian(31, 1.0),
    "conv RGB": _conv,
}


def memory(model: str, method: str, side: int) -> dict[str, Any]:
    """Run :func:`_memory` in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory", model, method, str(side)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    facts: dict[str, Any] = json.loads(output.splitlines()[-1])
    return facts


def _memory(model: str, method: str, side: int) -> dict[str, Any]:
    """Solve at 3×side×side in float32; return the peaks of this process in bytes (Linux).

    ``beyond_bytes`` is the peak of the solve less that of as many single products without a solver;
    ``stored`` the vectors the solver says it stores. 1e-6 at both ends, at most 700 products: enough
    to fill the basis.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    picture = 0.1 + 0.8 * torch.rand(1, 3, side, side)
    operator = ee.FisherOperator(COLOUR[model]().requires_grad_(False), picture)
    n = operator.shape[0]
    _reset_peak()
    for _ in range(10):
        operator.apply(torch.randn(n, 1))
    alone = _status("VmHWM")
    _reset_peak()
    before = operator.num_products
    solver = make_solver(operator, method, k=1, which="both", tol=1e-6, seed=0, max_products=700)
    while not solver.done:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
    solver.result()
    peak = _status("VmHWM")
    return {
        "n": n,
        "products": operator.num_products - before,
        "stored": int(getattr(solver, "basis_size", solver.block_size)),
        "bytes_a_vector": 4 * n,
        "beyond_bytes": peak - alone,
        "peak_bytes": peak,
    }


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024


# -- whole solves ------------------------------------------------------------------------------


def _plenoptic_on_off() -> nn.Module:
    import plenoptic

    model = plenoptic.models.OnOff((31, 31), pretrained=True, cache_filt=True).eval()
    plenoptic.remove_grad(model)
    return model


def _residuals(model: nn.Module, side: int, vectors: torch.Tensor) -> list[float]:
    """Return ‖Fv − θv‖/λmax of the top and the bottom vector, F in float64."""
    operator = ee.FisherOperator(model.double(), einstein(side))
    v = vectors.double().reshape(2, -1).T
    v = v / v.norm(dim=0)
    product, response = operator.apply(v)
    assert response is not None
    theta = response.square().sum(dim=0)
    residuals: list[float] = ((product - theta * v).norm(dim=0) / theta[0]).tolist()
    return residuals


def plenoptic_solve(side: int) -> dict[str, Any]:
    """Time ``Eigendistortion.synthesize`` as it comes: power iteration, k = 1, float32."""
    import plenoptic

    plenoptic.set_seed(0)
    model, picture = _plenoptic_on_off(), einstein(side).float()
    model(picture)  # caches its filters
    columns = 0

    import plenoptic._synthesize.eigendistortion as module

    product = module._fisher_info_matrix_vector_product

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal columns
        columns += 1
        return product(*arguments)

    value = module._fisher_info_matrix_eigenvalue

    def counted_value(*arguments: Any) -> torch.Tensor:
        nonlocal columns
        columns += 1
        return value(*arguments)

    module._fisher_info_matrix_vector_product = counted
    module._fisher_info_matrix_eigenvalue = counted_value
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            eig = plenoptic.Eigendistortion(picture, model)
            eig.synthesize(method="power", k=1)
    finally:
        module._fisher_info_matrix_vector_product = product
        module._fisher_info_matrix_eigenvalue = value
    seconds = time.perf_counter() - began
    residuals = _residuals(_plenoptic_on_off(), side, eig.eigendistortions.detach())
    return {
        "seconds": seconds,
        "products": columns,
        "residuals": residuals,
        "eigenvalues": eig.eigenvalues.tolist(),
        "tol": min(residuals),
    }


def our_solve(side: int, whose: str, method: str, tol: float) -> dict[str, Any]:
    """Time our solve of plenoptic's module or ours, the operator's making included, float32."""

    def make() -> nn.Module:
        return MODELS["OnOff"]() if whose == "ours" else _plenoptic_on_off()

    model, picture = make().requires_grad_(False), einstein(side).float()
    model(picture)  # as for plenoptic's
    began = time.perf_counter()
    operator = ee.FisherOperator(model, picture)
    spectrum = ee.solve(operator, method, k=1, which="both", tol=tol, seed=0, max_products=4000)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "products": spectrum.num_products,
        "stop_reason": spectrum.stop_reason.value,
        "residuals": _residuals(make(), side, spectrum.eigenvectors),
        "eigenvalues": spectrum.eigenvalues.tolist(),
    }


if __name__ == "__main__" and sys.argv[1:2] == ["--memory"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(_memory(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
