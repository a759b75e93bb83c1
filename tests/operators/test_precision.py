"""Networks in bfloat16 and float16 under a float32 solver; what their products are worth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eigenexp import FisherOperator, JacobianOperator
from eigenexp.errors import InputTypeError, ModelError
from eigenexp.operators.precision import scaled

LOW = [torch.bfloat16, torch.float16]


def network(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Softplus())
        return nn.Sequential(*layers).requires_grad_(False).eval().to(dtype)


def picture() -> Tensor:
    return torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", LOW)
def test_products_are_float32_and_near_those_of_the_float32_network(dtype: torch.dtype) -> None:
    operator = FisherOperator(network(dtype), picture(), model_dtype=dtype)
    reference = FisherOperator(network(torch.float32), picture())
    v = torch.randn(144, 3, generator=torch.Generator().manual_seed(2))
    product, expected = operator @ v, reference @ v
    assert product.dtype == operator.jacobian.response.dtype == torch.float32
    error = float((product - expected).norm() / expected.norm())
    eps = torch.finfo(dtype).eps
    assert 0.01 * eps < error < 16 * eps


@pytest.mark.parametrize("dtype", LOW)
def test_the_rounding_of_a_product_is_the_networks(dtype: torch.dtype) -> None:
    operator = FisherOperator(network(dtype), picture(), model_dtype=dtype)
    eps = torch.finfo(dtype).eps
    assert eps <= operator.product_eps < 16 * eps
    # It bounds the asymmetry that a solver sees, in units of λmax.
    v, w = torch.randn(2, 144, generator=torch.Generator().manual_seed(3))
    v, w = v / v.norm(), w / w.norm()
    scale = float(torch.linalg.eigvalsh(operator.to_dense().double())[-1])
    asymmetry = abs(float(w @ (operator @ v) - v @ (operator @ w)))
    assert asymmetry <= 4 * operator.product_eps * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_operators_rounding_is_its_dtypes(dtype: torch.dtype) -> None:
    operator = FisherOperator(network(dtype), picture().to(dtype))
    assert operator.product_eps == torch.finfo(dtype).eps


def test_large_and_small_vectors_stay_in_the_range_of_float16() -> None:
    jacobian = JacobianOperator(network(torch.float16), picture(), model_dtype=torch.float16)
    v = torch.randn(144, 1, generator=torch.Generator().manual_seed(4))
    expected = jacobian.matmat(v)
    for factor in (2.0**40, 2.0**-40):
        assert torch.equal(jacobian.matmat(factor * v), factor * expected)
    assert not bool(jacobian.matmat(0 * v).any())
    assert torch.equal(scaled(lambda x: 3 * x)(torch.tensor([3.0, -5.0])), torch.tensor([9.0, -15]))


def test_mistakes_are_told() -> None:
    with pytest.raises(ModelError, match=r"expected weights in torch\.bfloat16, got 0\.weight"):
        JacobianOperator(network(torch.float32), picture(), model_dtype=torch.bfloat16)
    with pytest.raises(InputTypeError, match="model_dtype: expected"):
        JacobianOperator(network(torch.float32), picture(), model_dtype=torch.float64)
