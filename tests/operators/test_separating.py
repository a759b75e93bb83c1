"""Large separable filters become matrices in a tape; everything else stays as it is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from eigenexp.operators import FisherOperator, JacobianOperator
from eigenexp.operators.routes import choose_route
from tests.operators.zoo import Lambda, dense_jacobian


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filters(count, rank, rows=11, columns=13):
    """``(count, 1, rows, columns)`` filters of this rank."""
    return (randn(count, rows, rank) @ randn(count, rank, columns, seed=1))[:, None]


def operations(model, image):
    route, _ = choose_route(model, image, "traced")
    return {
        name: {operation.split(".")[1] for operation in tape.operations}
        for name, tape in (("push", route.push), ("pull", route.pull))
    }


def padded(mode):
    return lambda x: functional.pad(x, (6, 6, 5, 5), mode)


CASES = {
    "rank one": (lambda x, w: functional.conv2d(x, w), filters(3, 1), 1),
    "rank two": (lambda x, w: functional.conv2d(x, w), filters(3, 2), 1),
    "zero border": (lambda x, w: functional.conv2d(x, w, padding=(5, 6)), filters(2, 2), 1),
    "stride": (lambda x, w: functional.conv2d(x, w, stride=(2, 3), padding=2), filters(2, 1), 1),
    "dilation": (lambda x, w: functional.conv2d(x, w, dilation=(2, 1)), filters(2, 1, 7), 1),
    "reflected": (lambda x, w: functional.conv2d(padded("reflect")(x), w), filters(2, 2), 1),
    "replicated": (lambda x, w: functional.conv2d(padded("replicate")(x), w), filters(2, 1), 1),
    "channels": (lambda x, w: functional.conv2d(x, w, groups=3), filters(3, 1), 3),
    "two a channel": (lambda x, w: functional.conv2d(x, w, groups=3), filters(6, 2), 3),
    "biased": (lambda x, w: functional.conv2d(x, w, bias=torch.ones(2).to(w)), filters(2, 1), 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [1, 5])
def test_separable_filters_give_the_same_products_without_a_convolution(name, chunk_size):
    function, weight, channels = CASES[name]
    model = Lambda(lambda x: functional.softplus(function(x.sin(), weight)))
    image = torch.rand(1, channels, 16, 15, dtype=torch.float64)
    operator = JacobianOperator(model, image, route="traced", chunk_size=chunk_size)
    for direction in operations(model, image).values():
        assert "bmm" in direction
        assert not any("convolution" in operation for operation in direction)
    if "border" in name or name in ("reflected", "replicated"):
        assert not any("pad" in operation for operation in operations(model, image)["pull"])
    expected = dense_jacobian(model, image)
    v, u = randn(expected.shape[1], 7), randn(expected.shape[0], 7)
    torch.testing.assert_close(operator.matmat(v), expected @ v, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(operator.rmatmat(u), expected.T @ u, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-11, atol=1e-11)


def test_a_border_that_others_read_stays():
    weight = filters(2, 1)

    def model(x):
        wide = padded("reflect")(x)
        return torch.cat([functional.conv2d(wide, weight).flatten(), wide.square().flatten()])

    image = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    operator = FisherOperator(Lambda(model), image, route="traced")
    expected = dense_jacobian(Lambda(model), image)
    v = randn(144, 3)
    torch.testing.assert_close(operator @ v, expected.T @ (expected @ v))


@pytest.mark.parametrize(
    "weight",
    [
        filters(2, 11),  # of full rank
        filters(2, 1) + 1e-9 * filters(2, 11),  # nearly separable is not separable
        filters(2, 1, 3, 3),  # too small to gain
    ],
)
def test_other_filters_stay_convolutions(weight):
    model = Lambda(lambda x: functional.conv2d(x, weight).sin())
    image = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    operator = JacobianOperator(model, image, route="traced")
    found = operations(model, image)
    assert "convolution" in found["push"]
    assert "bmm" not in found["push"]
    expected = dense_jacobian(model, image)
    torch.testing.assert_close(operator.matmat(randn(400, 2)), expected @ randn(400, 2))


def test_layers_that_mix_channels_stay_convolutions():
    model = nn.Conv2d(3, 4, 7).double().requires_grad_(False)
    assert "convolution" in operations(model, torch.rand(1, 3, 12, 12).double())["push"]


def test_weights_in_single_precision_are_as_separable_as_their_rounding():
    weight = filters(2, 1, 15, 15).float() / 20
    model = Lambda(lambda x: functional.conv2d(x, weight).sin())
    image = torch.rand(1, 1, 24, 24)
    operator = JacobianOperator(model, image, route="traced")
    assert "bmm" in operations(model, image)["push"]
    weight = weight.double()  # the same weights, read exactly: no longer separable
    again = JacobianOperator(model, image.double(), route="traced")
    assert "convolution" in operations(model, image.double())["push"]
    difference = (operator.to_dense().double() - again.to_dense()).norm()
    assert float(difference) <= 1e-5 * float(again.to_dense().norm())
