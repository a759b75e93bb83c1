"""No product waits for the device: nothing in it reads a value back, or crosses devices.

On an accelerator each such read stops the queue of kernels. What a CPU can tell is whether one is
asked for, which is counted below autograd; the marked tests do the rest where there is a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import eigenexp as ee
from eigenexp import FisherOperator
from eigenexp.operators.memory import to_device
from tests.training import quiet_trainer

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
SHAPES = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default}


class Reads(TorchDispatchMode):
    """Counts operations that make a Python value, or a shape, of a tensor's values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.moved: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in READS or func in SHAPES:
            self.seen.append(str(func))
        given = {x.device for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {x.device for x in pytree.tree_leaves(result) if isinstance(x, Tensor)}
        if len(given | made) > 1:
            self.moved.append(str(func))
        return result


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(3)]
        return nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, nn.MaxPool2d(2)).requires_grad_(False)


def picture() -> Tensor:
    return torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def reads_of_a_product(operator: FisherOperator, width: int) -> Reads:
    block = torch.randn(144, width, device=operator.device)
    operator.apply(block)
    with Reads() as reads:
        operator.apply(block)
        operator.jacobian.matmat(block)
    return reads


@pytest.mark.parametrize("route", ["traced", "traced-forward", "double-backward", "recompute"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_product_reads_nothing_back(route: str, width: int) -> None:
    operator = FisherOperator(network(), picture(), route=route)
    reads = reads_of_a_product(operator, width)
    assert reads.seen == []
    assert reads.moved == []
    assert operator.num_products == 2 * width  # asked for afterwards: that may wait


def test_a_low_precision_product_reads_nothing_back() -> None:
    operator = FisherOperator(network().to(torch.bfloat16), picture(), model_dtype=torch.bfloat16)
    assert reads_of_a_product(operator, 1).seen == []


def test_the_counter_sees_a_read() -> None:
    with Reads() as reads:
        float(torch.ones(1).sum())
    assert reads.seen == ["aten._local_scalar_dense.default"]


class OnTheWay:
    """A tensor of the CPU that writes down how it is taken to a device that is not here."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.done: list[str] = []

    def pin_memory(self) -> OnTheWay:
        self.done.append("pinned")
        return self

    def to(self, *places: Any, **how: Any) -> OnTheWay:
        place = next((str(p) for p in places), str(how.get("dtype")))
        self.done.append(f"to {place}{' at once' if how.get('non_blocking') else ''}")
        return self


def test_pictures_go_to_a_gpu_from_pinned_memory() -> None:
    tensor: Any = OnTheWay()
    to_device(tensor, torch.device("cuda:1"), torch.float32)
    assert tensor.done == ["to torch.float32", "pinned", "to cuda:1 at once"]
    here = torch.ones(2)
    assert to_device(here, torch.device("cpu")) is here
    assert to_device(here, torch.device("cpu"), torch.float64).dtype == torch.float64


# -- where a GPU is at hand ------------------------------------------------------------------------


@pytest.mark.gpu
def test_gpu_products_equal_the_cpus_and_wait_for_nothing() -> None:
    device = torch.device("cuda")
    on_gpu = FisherOperator(network().to(device), picture().to(device))
    on_cpu = FisherOperator(network(), picture())
    block = torch.randn(144, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        (on_gpu @ block.to(device)).cpu(), on_cpu @ block, rtol=1e-3, atol=1e-5
    )
    assert reads_of_a_product(on_gpu, 3).seen == []
    moved = block.to(device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.apply(moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_picture_goes_to_the_gpu_without_waiting() -> None:
    here = torch.rand(1, 3, 64, 64)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(here, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), here)


@pytest.mark.gpu
def test_gpu_solves_what_the_cpu_solves() -> None:
    device = torch.device("cuda")
    settings: dict[str, Any] = {"k": 2, "which": "both", "tol": 1e-3}
    on_gpu = ee.solve(FisherOperator(network().to(device), picture().to(device)), **settings)
    on_cpu = ee.solve(FisherOperator(network(), picture()), **settings)
    torch.testing.assert_close(
        on_gpu.eigenvalues.cpu()[:2], on_cpu.eigenvalues[:2], rtol=1e-2, atol=0
    )


@pytest.mark.gpu
def test_gpu_trainer_puts_everything_on_its_device(tmp_path: Any) -> None:

    module = ee.EigendistortionModule(network(), picture(), k=1, tol=1e-2)
    trainer = quiet_trainer(
        tmp_path, [ee.ConvergenceStopping()], accelerator="gpu", devices=1, max_steps=500
    )
    trainer.fit(module)
    assert module.operator.device.type == module.solver.device.type == "cuda"
    assert module.spectrum().eigenvalues[0] > 0
