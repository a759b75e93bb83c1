"""Compiled products: used when they equal the others, dropped with a note when not."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eigenexp import FisherOperator, JacobianOperator


def picture() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh()).double().requires_grad_(False)


def fake(change: float = 0.0, error: Exception | None = None, noise: bool = False) -> Any:
    def compile(function: Any, **options: Any) -> Any:
        if error is not None:
            raise error
        calls = [0]

        def run(vector: Tensor) -> Tensor:
            calls[0] += 1
            return function(vector) * (1 + change) + (1e-14 * calls[0] if noise else 0)

        return run

    return compile


def test_products_that_agree_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", fake(change=1e-15))
    operator = JacobianOperator(network(), picture(), compile=True)
    reference = JacobianOperator(network(), picture())
    v = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert operator.chunk_size == 1
    product = operator @ v
    assert not torch.equal(product, reference @ v)
    torch.testing.assert_close(product, reference @ v)


@pytest.mark.parametrize(
    ("compile", "words"),
    [
        (fake(error=RuntimeError("no compiler\nlong story")), "RuntimeError: no compiler"),
        (fake(change=1e-6), "push differs"),
        (fake(noise=True), "computed twice differs"),
    ],
)
def test_what_fails_or_differs_is_not_used(
    compile: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", compile)
    with pytest.warns(UserWarning, match=rf"compile: not used, going on without it \(.*{words}"):
        operator = FisherOperator(network(), picture(), compile=True)
    reference = FisherOperator(network(), picture())
    v = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(operator @ v, reference @ v)


def test_a_route_without_tape_is_not_compiled() -> None:
    with pytest.warns(UserWarning, match="route 'double-backward' has no tape"):
        JacobianOperator(network(), picture(), route="double-backward", compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("default")
def test_the_compiler_here() -> None:
    reference = FisherOperator(network(), picture())
    v = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile: not used")
        operators = [FisherOperator(network(), picture(), compile=True) for _ in range(5)]
    for operator in operators:
        torch.testing.assert_close(operator @ v, reference @ v)
