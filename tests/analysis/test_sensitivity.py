"""λ as a loss: its value, its gradient in the weights, and a classifier trained on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.errors import InputError, ModelError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Softplus(), nn.Linear(12, 4))
    return layers.double()


def pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 1, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("noise", [None, ee.noise.Categorical(), ee.noise.Gaussian(0.5)])
def test_it_is_the_eigenvalue_of_an_eigenvector(noise: ee.noise.Noise | None) -> None:
    model, x = net(), pictures(3)
    tops, values = [], []
    for one in x.split(1):
        operator = ee.FisherOperator(model, one, noise=noise)
        spectrum = ee.solve(operator, k=1, which="top", method="exact")
        tops.append(spectrum.eigenvectors.reshape(one.shape))
        values.append(float(spectrum.eigenvalues[0]))
    found = ee.sensitivity(model, x, torch.cat(tops), noise=noise)
    assert found.tolist() == pytest.approx(values, rel=1e-9)


def test_its_gradient_is_that_of_the_eigenvalue() -> None:
    model, x = net(), pictures(1)

    def largest() -> float:
        operator = ee.FisherOperator(model, x)
        return float(ee.solve(operator, k=1, which="top", method="exact").eigenvalues[0])

    e = ee.solve(ee.FisherOperator(model, x), k=1, which="top", method="exact").eigenvectors
    weight = model[1].weight
    (slope,) = torch.autograd.grad(ee.sensitivity(model, x, e.reshape(x.shape)).sum(), weight)
    step = 1e-6
    with torch.no_grad():
        weight[3, 5] += step
        above = largest()
        weight[3, 5] -= 2 * step
        below = largest()
    assert float(slope[3, 5]) == pytest.approx((above - below) / (2 * step), rel=1e-4)


class Cubed(torch.autograd.Function):
    """A function that can be gone back through once."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


def test_models_of_one_backward_pass_take_forward_mode() -> None:
    x = pictures(2)
    e = torch.ones_like(x)
    found = ee.sensitivity(lambda z: Cubed.apply(z), x, e)
    assert torch.allclose(found, (3 * x**2).square().flatten(1).sum(dim=1))


def test_training_on_it_lowers_the_certified_largest_eigenvalue() -> None:
    model, x = net(), pictures(1)
    noise = ee.noise.Categorical()

    def solve() -> ee.Spectrum:
        operator = ee.FisherOperator(model, x, noise=noise)
        return ee.solve(operator, k=1, which="top", tol=1e-6)

    before = solve()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    label = model(x).argmax(dim=1)
    for _ in range(5):
        e = solve().eigenvectors.reshape(x.shape)
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), label)
            (loss + 5 * ee.sensitivity(model, x, e, noise=noise).mean()).backward()
            optimizer.step()
    after = solve()
    assert bool(before.converged.all())
    assert bool(after.converged.all())
    assert int(model(x).argmax()) == int(label)
    most = float(after.eigenvalues[0] + after.error_bounds[0])
    assert most < 0.5 * float(before.eigenvalues[0] - before.error_bounds[0])


def test_what_does_not_fit_is_refused_in_a_line() -> None:
    x = pictures(2)
    for call, told, kind in (
        (lambda: ee.sensitivity(net(), x, x[:1]), "directions", InputError),
        (lambda: ee.sensitivity(lambda z: z.sum(), x, x), "one a picture", ModelError),
        (lambda: ee.sensitivity(lambda z: z.detach(), x, x), "ignores|derivative", ModelError),
    ):
        with pytest.raises(kind, match=told) as raised:
            call()
        assert "\n" not in str(raised.value)
