"""Products against a dense Jacobian, for every kind of model, by the route found."""

import random

import numpy as np
import plenoptic
import pytest
import torch
from torch import nn

from eigenexp.errors import ModelError
from eigenexp.models import LuminanceContrastGainControl, OnOff
from eigenexp.operators import FisherOperator, JacobianOperator
from eigenexp.operators.routes import AUTOMATIC
from eigenexp.operators.tape import record
from tests.operators.zoo import CASES, Lambda, build, dense, dense_jacobian, flat


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, dtype=torch.float64):
    torch.testing.assert_close(
        a, b, rtol=0, atol=1e3 * torch.finfo(dtype).eps * max(1.0, float(b.detach().abs().max()))
    )


@pytest.mark.parametrize("name", CASES)
def test_products_of_every_kind_of_model(name):
    model, image = build(name)
    response, expected = dense(model, image)
    operator = JacobianOperator(model, image)
    m, n = expected.shape
    assert operator.route == CASES[name].route
    assert operator.shape == (m, n)
    assert operator.image_shape == (tuple(image.shape[1:]) or (n,))
    close(operator.response, response)
    v, u = randn(n, 3), randn(m, 2, seed=1)
    close(operator.matmat(v), expected @ v)
    close(operator.rmatmat(u), expected.T @ u)
    close(operator @ v[:, 0], expected @ v[:, 0])
    close(operator.T @ u[:, 0], expected.T @ u[:, 0])
    close(operator.to_dense(), expected)
    product, response = FisherOperator(operator).apply(v)
    close(response, expected @ v)
    close(product, expected.T @ expected @ v)


@pytest.mark.parametrize("name", ["conv net", "attention", "fft", "tuple", "in place"])
def test_float32(name):
    model, image = build(name, torch.float32)
    expected = dense_jacobian(*build(name)).float()
    operator = JacobianOperator(model, image)
    assert operator.route == CASES[name].route
    close(operator.to_dense(), expected, torch.float32)


def plenoptic_model(name):
    models = {
        "LN": lambda: plenoptic.models.LinearNonlinear(7, pretrained=False),
        "LG": lambda: plenoptic.models.LuminanceGainControl(7, pretrained=False),
        "LGG": lambda: plenoptic.models.LuminanceContrastGainControl(7, pretrained=False),
        "OnOff": lambda: plenoptic.models.OnOff((31, 31), pretrained=True, cache_filt=True),
        "Gaussian": lambda: plenoptic.models.Gaussian(7, 1.5),
    }
    model = models[name]().double().eval()
    plenoptic.remove_grad(model)
    return model


@pytest.mark.parametrize("name", ["LN", "LG", "LGG", "OnOff", "Gaussian"])
def test_plenoptic_models_run_taped(name):
    model = plenoptic_model(name)
    image = 0.1 + 0.8 * torch.rand(
        1, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    operator = JacobianOperator(model, image)
    assert operator.route == "traced"
    v = randn(1024, 2)
    step = 1e-5
    column = v[:, 0].reshape(image.shape)
    with torch.no_grad():
        expected = (flat(model(image + step * column)) - flat(model(image - step * column))) / (
            2 * step
        )
    torch.testing.assert_close(operator @ v[:, 0], expected, rtol=1e-6, atol=1e-7)
    u = randn(operator.shape[0], 1, seed=1)
    torch.testing.assert_close(
        torch.sum((operator @ v[:, :1]) * u), torch.sum(v[:, :1] * (operator.T @ u))
    )


@pytest.mark.parametrize("model", [OnOff, LuminanceContrastGainControl])
def test_own_models_in_both_precisions(model):
    image = 0.1 + 0.8 * torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    single = JacobianOperator(model(), image)
    double = JacobianOperator(model().double(), image.double())
    assert single.route == double.route == "traced"
    close(single.to_dense(), double.to_dense().float(), torch.float32)


@pytest.mark.parametrize("route", AUTOMATIC)
def test_a_named_route_reproduces_its_arithmetic(route):
    model, image = build("conv net")
    first = FisherOperator(model, image, route=route)
    second = FisherOperator(model, image, route=first.route)
    assert first.route == second.route == route
    v = randn(first.shape[0], 5)
    assert torch.equal(first @ v, second @ v)
    assert torch.equal(first @ v, first @ v)
    expected = dense_jacobian(model, image)
    close(first @ v, expected.T @ expected @ v)


@pytest.mark.parametrize("name", ["conv net", "custom forward mode", "numpy backward"])
def test_the_route_found_is_found_again(name):
    one, two = (FisherOperator(*build(name)) for _ in range(2))
    assert one.route == two.route
    v = randn(one.shape[0], 3)
    assert torch.equal(one @ v, two @ v)


@pytest.mark.parametrize("name", ["conv net", "once differentiable", "custom forward mode"])
def test_unchecked_operators_take_a_route_that_runs(name):
    model, image = build(name)
    operator = JacobianOperator(model, image, check=False)
    assert operator.route == CASES[name].route
    close(operator.to_dense(), dense_jacobian(model, image))


def test_a_wrong_derivative_is_refused():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad.detach().flip(-1) + grad

    with pytest.raises(ModelError, match=r"traced: .*(differs|adjoint)"):
        JacobianOperator(Lambda(Wrong.apply), torch.rand(1, 1, 4, 4), route="traced")


def test_tapes_that_disagree_with_autograd_are_refused(monkeypatch):
    # Both off by the same factor, and so adjoint to each other.
    def half(function, vector):
        tape = record(function, vector)

        class Half:
            width, cost = tape.width, tape.cost

            def __call__(self, vector):
                return tape(vector) / 2

        return Half()

    monkeypatch.setattr("eigenexp.operators.routes.record", half)
    model, image = build("conv net")
    assert JacobianOperator(model, image).route == "double-backward"
    with pytest.raises(ModelError, match=r"traced: J·v from tape and autograd differs"):
        JacobianOperator(model, image, route="traced")


class Wavering(torch.autograd.Function):
    """2x, with a backward pass that is off by a rounding error every other time."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        Wavering.calls += 1
        return grad * (2 + 1e-15 * (Wavering.calls % 2))


def test_products_that_repeat_up_to_rounding_are_taken_with_a_warning():
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="repeat only up to rounding"):
        operator = JacobianOperator(Lambda(Wavering.apply), image, route="double-backward")
    assert not operator.repeatable
    assert JacobianOperator(*build("conv net")).repeatable


def test_compiled_modules_are_taken_as_they_were():
    model, image = build("conv net")
    operator = JacobianOperator(torch.compile(model, backend="eager"), image)
    assert operator.route == "traced"
    close(operator.to_dense(), dense_jacobian(model, image))


def test_bound_methods_leave_their_module_as_it_was():
    model, image = build("batch norm in training")
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    JacobianOperator(model.forward, image)
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tape_that_missed_a_step_is_refused():
    class Outside(torch.autograd.Function):
        """Its backward pass does half of its work where no tape can see it."""

        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad + torch.from_numpy(grad.detach().numpy().copy())

    operator = JacobianOperator(Lambda(Outside.apply), torch.rand(1, 1, 4, 4))
    assert operator.route == "rows"
    close(operator.to_dense(), 2 * torch.eye(16), torch.float32)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("route", AUTOMATIC)
def test_inside_contexts_that_turn_gradients_off(context, route):
    model, image = build("conv net")
    expected = FisherOperator(model, image, route=route)
    v = randn(expected.shape[0], 2)
    with context():
        operator = FisherOperator(model, image.clone(), route=route)
        inside = operator @ v.clone()
        single = operator @ v[:, 0].clone()
        jacobian = operator.jacobian.to_dense()
    assert torch.equal(inside, expected @ v)
    assert torch.equal(single, expected @ v[:, 0])
    # They can be used when the context is left.
    assert not any(result.is_inference() for result in (inside, single, jacobian))


@pytest.mark.parametrize("name", ["conv net", "attention"])
def test_autocast_does_not_reach_the_products(name):
    model, image = build(name, torch.float32)
    operator = FisherOperator(model, image)
    v = randn(operator.shape[0], 2, dtype=torch.float32)
    expected = operator @ v
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operator @ v, expected)
        assert torch.equal(FisherOperator(model, image) @ v, expected)


def test_model_picture_and_random_states_are_left_as_they_were():
    model, image = build("conv net")
    model.train()  # batch norm then changes its running statistics in each forward pass
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    image.requires_grad_()
    before = image.detach().clone()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what is looked at
    random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002

    class Consuming(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
            return self.inner(x)

    for route in AUTOMATIC:
        operator = FisherOperator(Consuming(), image, route=route)
        operator @ randn(operator.shape[0], 2)
        operator.jacobian.to_dense()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert model.training
    assert image.grad is None
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_data_assigned_in_forward_is_put_back():
    model, image = build("data assigning")
    FisherOperator(model, image)
    assert float(model.std) == -1.5


def test_the_picture_is_copied():
    model, image = build("fft")
    operator = FisherOperator(model, image)
    v = randn(operator.shape[0], 1)
    expected = operator @ v
    image.zero_()
    assert torch.equal(operator @ v, expected)


def test_forward_passes_are_not_repeated():
    calls = []
    inner, image = build("conv net")
    operator = FisherOperator(Lambda(lambda x: calls.append(1) or inner(x)), image)
    assert operator.route == "traced"
    made = len(calls)
    assert made == 2  # one to linearise, one to see that it is not random
    operator @ randn(operator.shape[0], 4)
    operator.jacobian.to_dense()
    assert len(calls) == made


def test_products_do_not_require_gradients():
    model, image = build("conv net")
    v = randn(128, 1).requires_grad_()
    for route in AUTOMATIC:
        assert not (FisherOperator(model, image, route=route) @ v).requires_grad
