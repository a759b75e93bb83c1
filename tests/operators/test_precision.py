"""Networks in bfloat16 and float16 under a float32 solver; what their products are worth."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eigenexp import FisherOperator, JacobianOperator
from eigenexp.eigensolvers import solve
from eigenexp.errors import InputTypeError, ModelError
from eigenexp.operators.precision import find_coarse_step, scaled

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


# -- steps of the model's own in a lower precision ---------------------------------------------


class Cast(nn.Module):
    """A model of double precision but for one step."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weights = torch.randn(30, 144, generator=torch.Generator().manual_seed(7)).double()

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.sin(3 * x.flatten(1).to(self.dtype)).to(x.dtype)
        return inner @ self.weights.to(x).T


class Autocast(nn.Module):
    """A float32 network that runs itself in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.net(x)
        return y.to(x.dtype)


COARSE = {
    "float32 in float64": (Cast(torch.float32), torch.float64, torch.float32, "a cast"),
    "bfloat16 in float64": (Cast(torch.bfloat16), torch.float64, torch.bfloat16, "a cast"),
    "float16 in float32": (Cast(torch.float16), torch.float32, torch.float16, "a cast"),
    "autocast": (Autocast(), torch.float32, torch.bfloat16, r"torch\.autocast"),
}


@pytest.mark.parametrize("name", COARSE)
def test_a_coarse_step_is_measured_told_and_solved_with(name: str) -> None:
    model, dtype, coarse, cause = COARSE[name]
    with pytest.warns(UserWarning, match=rf"picture's {dtype}, got .* in {coarse} \({cause}"):
        operator = FisherOperator(model, picture().to(dtype))
    eps = torch.finfo(coarse).eps
    assert eps <= operator.product_eps < 16 * eps
    found = solve(operator, "lanczos", k=1, which="top", tol=64 * operator.product_eps)
    assert bool(found.converged.all())
    truth = torch.linalg.eigvalsh(operator.to_dense().double())[-1]
    assert abs(float(found.eigenvalues[0] - truth)) <= float(found.error_bounds[0])


def test_a_coarse_constant_changes_no_products_rounding() -> None:
    ramp = torch.linspace(0, 1, 144).reshape(1, 1, 12, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = FisherOperator(
            lambda x: torch.sin(x) * ramp.float().double(), picture().double()
        )
    assert operator.product_eps == torch.finfo(torch.float64).eps


class _Wrong(torch.autograd.Function):
    """A backward that is neither the derivative nor linear, in a model with a float32 step."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.float().sin().double()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad + 0.5 * grad.abs()


def test_a_wrong_backward_does_not_pass_for_rounding() -> None:
    with pytest.raises(ModelError, match="differentiable in the picture"):
        FisherOperator(_Wrong.apply, picture().double())


def test_the_coarsest_arithmetic_is_found_where_it_is() -> None:
    x = picture().double()
    assert find_coarse_step(lambda: torch.sin(x), x) is None
    found = find_coarse_step(lambda: torch.sin(x.float()) + x.to(torch.complex64), x)
    assert found is not None
    assert (found.dtype, found.operation) == (torch.float32, "aten._to_copy")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_plenoptics_texture_model_is_solved_in_float64_as_its_own_class_does() -> None:
    plenoptic = pytest.importorskip("plenoptic")
    model = plenoptic.models.PortillaSimoncelli((32, 32), n_scales=1, spatial_corr_width=3)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with pytest.warns(UserWarning, match="got .* in torch.complex64"):
        operator = FisherOperator(model.double(), image)
    assert operator.product_eps == pytest.approx(torch.finfo(torch.float32).eps, rel=16)
    top = solve(operator, "lanczos", which="top", tol=1e-4)
    assert bool(top.converged.all())


# -- compiled models -------------------------------------------------------------------------------


def compiled_part(backend: Any) -> nn.Module:
    net = network(torch.float32)
    return nn.Sequential(torch.compile(net[0], backend=backend), *net[1:])


def compiled_in_place(backend: Any) -> nn.Module:
    net = network(torch.float32)
    net.compile(backend=backend)
    return net


COMPILED: dict[str, Callable[[Any], Any]] = {
    "function": lambda backend: torch.compile(network(torch.float32).forward, backend=backend),
    "part": compiled_part,
    "in place": compiled_in_place,
    "module": lambda backend: torch.compile(network(torch.float32), backend=backend),
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_a_model_compiled_of_itself_is_recorded_uncompiled(name: str) -> None:
    def refuse(graph: object, inputs: object) -> object:
        raise AssertionError("the recording was compiled")

    operator = FisherOperator(COMPILED[name](refuse), picture())
    expected = FisherOperator(network(torch.float32), picture())
    v = torch.randn(144, 1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(operator @ v, expected @ v)
    assert operator.route == expected.route
