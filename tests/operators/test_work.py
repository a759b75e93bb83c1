"""Multiplications of a product, counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import eigenexp as ee
from eigenexp.eigensolvers import make_solver
from eigenexp.operators import DenseOperator
from eigenexp.operators.work import MultiplicationCounter


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: nn.Conv2d(3, 4, 5)(torch.ones(1, 3, 9, 9)), 4 * 25 * 3 * 25),
        (lambda: nn.Conv2d(4, 4, 3, groups=4)(torch.ones(1, 4, 6, 6)), 4 * 16 * 9),
        (lambda: nn.ConvTranspose2d(2, 3, 2)(torch.ones(1, 2, 5, 5)), 50 * 3 * 4),
        (lambda: nn.Linear(7, 5)(torch.ones(3, 7)), 3 * 7 * 5),
        (lambda: torch.ones(2, 3, 4) @ torch.ones(2, 4, 5), 2 * 3 * 4 * 5),
        (lambda: functional.scaled_dot_product_attention(*[torch.ones(6, 8)] * 3), 2 * 48 * 6),
        (lambda: torch.ones(10).exp(), 10),
    ],
    ids=[
        "convolution",
        "depthwise",
        "transposed",
        "linear",
        "matrices",
        "attention",
        "elementwise",
    ],
)
def test_multiplications_are_counted(call: Callable[[], Tensor], expected: int) -> None:
    with MultiplicationCounter() as counter:
        call()
    # Tensors are made inside, too, and layers add a bias.
    assert expected <= counter.count <= 1.5 * expected + 1000


def test_an_operator_tells_its_solver_what_a_product_costs() -> None:
    x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    model = nn.Conv2d(1, 4, 3).double().requires_grad_(False)
    operator = ee.FisherOperator(model, x[:1])
    forward = 4 * 100 * 9
    assert 3 * forward <= operator.work <= 4 * forward
    assert operator.problem.work == operator.work
    assert make_solver(operator, "davidson").work == operator.work
    batch = ee.BatchedFisherOperator(model, x)
    assert abs(batch.at(1).problem.work - operator.work) <= 0.3 * operator.work
    assert DenseOperator(torch.eye(4).double()).problem.work is None
