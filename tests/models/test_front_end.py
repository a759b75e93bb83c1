"""The front-end models against plenoptic's, the published figures, and their derivatives."""

import copy
import pickle

import plenoptic
import pytest
import torch
from torch.func import functional_call, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.nn.functional import softplus

from eigenexp.errors import ModelError
from eigenexp.models import (
    CenterSurround,
    Gaussian,
    LinearNonlinear,
    LuminanceContrastGainControl,
    LuminanceGainControl,
    OnOff,
    filters,
)

MODELS = [LinearNonlinear, LuminanceGainControl, LuminanceContrastGainControl, OnOff]
SMALL = {
    LinearNonlinear: LinearNonlinear(5, 0.7, 2.0),
    LuminanceGainControl: LuminanceGainControl(5, 0.7, 2.0, 5.0, 2.0),
    LuminanceContrastGainControl: LuminanceContrastGainControl(5, 0.7, 2.0, 3.0, 2.0, 7.0, 1.0),
    OnOff: OnOff(5, contrast_std=(1.0, 1.5)),
}
# torch's own: forward mode compiles its decompositions, linearize folds constants.
TORCH_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:Attempted to insert a get_attr:UserWarning"
)
every_model = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)


def picture(h, w, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 1, h, w, generator=generator, dtype=torch.float64).to(dtype)


def theirs(kind, dtype):
    model = getattr(plenoptic.models, kind.__name__)(31, pretrained=True, cache_filt=True)
    plenoptic.remove_grad(model)
    return model.to(dtype)


@pytest.fixture(scope="module")
def einstein():
    return plenoptic.data.einstein()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@every_model
def test_response_equals_plenoptics(kind, dtype, einstein):
    for x in (einstein.to(dtype), picture(30, 47, dtype), 0.4 + 0 * picture(20, 16, dtype)):
        y = kind()(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, theirs(kind, dtype)(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "mean", "deviation"),
    [
        (LinearNonlinear, 0.6928940124, 0.0463877434),
        (LuminanceGainControl, 0.6929876272, 0.0023468553),
        (LuminanceContrastGainControl, 0.6930119405, 0.0070230602),
        (OnOff, 0.6931374034, 0.0093036275),
    ],
)
def test_response_to_einstein_has_the_known_mean_and_deviation(kind, mean, deviation, einstein):
    y = kind()(einstein.double())
    assert float(y.mean()) == pytest.approx(mean, abs=2e-10)
    assert float(y.std()) == pytest.approx(deviation, abs=1e-8)  # theirs rounds its filters


@every_model
def test_float32_is_as_exact_as_plenoptics(kind, einstein):
    exact = kind()(einstein.double())
    ours = (kind()(einstein) - exact).abs().max()
    assert float(ours) <= 2 * float((theirs(kind, torch.float32)(einstein) - exact).abs().max())


@every_model
def test_derivatives_equal_plenoptics(kind, einstein):
    x = einstein[..., 100:124, 100:124].double()
    ours, reference = (
        torch.autograd.functional.jacobian(model, x) for model in (kind(), theirs(kind, x.dtype))
    )
    torch.testing.assert_close(ours, reference, atol=1e-7, rtol=1e-6)


def test_lgg_is_what_its_equations_say():
    x = picture(20, 20)
    linear = CenterSurround(31, 0.7363, 48.37, 1.25)(x)
    normed = linear / (1 + 2.94 * Gaussian(31, 170.99)(x))
    contrast = Gaussian(31, 2.658)(normed**2).sqrt() + 1e-6
    expected = softplus(normed / (1 + 34.03 * contrast))
    torch.testing.assert_close(LuminanceContrastGainControl()(x), expected, atol=1e-14, rtol=0)


def test_off_center_turns_the_filter():
    x = picture(20, 24)
    on, off = LinearNonlinear()(x), LinearNonlinear(on_center=False)(x)
    # softplus(a) − softplus(−a) = a
    torch.testing.assert_close(on - off, CenterSurround(31, 0.5339, 6.148)(x), atol=1e-13, rtol=0)


def test_onoff_is_an_on_model_and_an_off_model():
    x = picture(20, 24)
    on = LuminanceContrastGainControl(31, 1.237, 30.12, 3.2637, 76.4, 7.3405, 7.49)
    off = LuminanceContrastGainControl(
        31, 0.3233, 2.184, 14.3961, 2.184, 16.7423, 2.43, on_center=False
    )
    expected = torch.cat([on(x), off(x)], dim=1)
    torch.testing.assert_close(OnOff()(x), expected, atol=1e-14, rtol=0)


@TORCH_WARNINGS
@every_model
def test_gradcheck(kind):
    x = picture(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(SMALL[kind], (x,))
    assert torch.autograd.gradcheck(
        SMALL[kind], (x,), check_forward_ad=True, check_backward_ad=False
    )
    assert torch.autograd.gradgradcheck(SMALL[kind], (x,))


@TORCH_WARNINGS
@pytest.mark.parametrize("limit", [0, 100], ids=["blocks", "whole"])
@every_model
def test_derivatives_of_every_kind_agree(kind, limit, monkeypatch):
    monkeypatch.setattr(filters, "DENSE_LIMIT", limit)
    model, x = SMALL[kind], picture(6, 7)
    m = model(x).shape
    matrix = jacrev(model)(x).reshape(-1, x.numel())
    torch.testing.assert_close(jacfwd(model)(x).reshape(matrix.shape), matrix, atol=1e-13, rtol=0)
    directions = torch.stack([picture(6, 7, seed=seed) for seed in (1, 2, 3)])
    weights = torch.rand(3, *m, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    pushed = (directions.flatten(1) @ matrix.T).view(3, *m)
    pulled = (weights.flatten(1) @ matrix).view(3, *x.shape)

    def push(v):
        return jvp(model, (x,), (v,))[1]

    linear, pull = linearize(model, x)[1], vjp(model, x)[1]
    for products, expected in (
        (torch.stack([push(v) for v in directions]), pushed),
        (vmap(push)(directions), pushed),
        (torch.stack([linear(v) for v in directions]), pushed),
        (vmap(linear)(directions), pushed),
        (torch.stack([pull(u)[0] for u in weights]), pulled),
        (vmap(pull)(weights)[0], pulled),
    ):
        torch.testing.assert_close(products, expected, atol=1e-13, rtol=0)
    # Double backward: J·v as the derivative of u ↦ Jᵀu.
    leaf, dummy = x.clone().requires_grad_(), torch.zeros(m, dtype=x.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(leaf), leaf, dummy, create_graph=True)
    (product,) = torch.autograd.grad(gradient, dummy, directions[0])
    torch.testing.assert_close(product, pushed[0], atol=1e-13, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.5])
@every_model
def test_derivatives_are_finite_and_right_at_a_constant_picture(kind, value):
    """√(blur(a²)) has slope ∞ where a = 0; the response has a derivative there all the same."""
    model = SMALL[kind]
    x = torch.full((1, 1, 6, 6), value, dtype=torch.float64)
    matrix = jacrev(model)(x).reshape(-1, 36)
    assert bool(torch.isfinite(matrix).all())
    v = picture(6, 6, seed=1) - 0.5
    # One-sided differences at a step so small that the quadratic term 1/(1 + s·√…) is gone.
    step = 1e-9
    difference = (model(x + step * v) - model(x)).flatten() / step
    torch.testing.assert_close(matrix @ v.flatten(), difference, atol=1e-6, rtol=1e-5)


@every_model
def test_a_black_picture_has_finite_second_derivatives(kind):
    x = torch.zeros(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(SMALL[kind](x).sum(), x, create_graph=True)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), x)
        assert bool(torch.isfinite(second).all())


@every_model
def test_batches_are_answered_picture_by_picture(kind):
    pictures = [picture(20, 24, seed=seed) for seed in (0, 1)]
    both = kind()(torch.cat(pictures))
    alone = torch.cat([kind()(x) for x in pictures])
    torch.testing.assert_close(both, alone, atol=1e-14, rtol=0)


@every_model
def test_large_pictures_give_the_same_in_blocks(kind, monkeypatch):
    monkeypatch.setattr(filters, "BLOCK", 20)
    x, model = picture(33, 40), kind()
    whole = model(x)
    monkeypatch.setattr(filters, "DENSE_LIMIT", 0)
    torch.testing.assert_close(model(x), whole, atol=1e-13, rtol=0)


@every_model
def test_models_hold_no_trainable_parameter_and_copy_and_pickle(kind):
    model, x = kind(), picture(20, 20)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    y = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.float32)):
        assert torch.equal(twin(x), y)
    assert torch.equal(functional_call(model, {}, (x,)), y)
    assert torch.equal(model(x), y)
    assert f"center_std={model.center_std}" in repr(model)


@pytest.mark.parametrize("limit", [0, 100], ids=["blocks", "whole"])
@every_model
def test_models_compile(kind, limit, monkeypatch):
    monkeypatch.setattr(filters, "DENSE_LIMIT", limit)
    torch.compiler.reset()
    model, x = SMALL[kind], picture(8, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), atol=1e-14, rtol=0)


def test_lists_serve_as_pairs():
    x = picture(20, 20)
    by_list = OnOff([31, 31], center_std=[1.237, 0.3233])
    assert torch.equal(by_list(x), OnOff()(x))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: OnOff(center_std=1.0), "two numbers, \\[on, off\\], got 1.0"),
        (lambda: OnOff(contrast_std=[1, 2, 3]), "two numbers"),
        (lambda: OnOff(luminance_scalar=[1, -1]), "luminance_scalar: expected a number above 0"),
        (lambda: OnOff(amplitude_ratio=0.5), "OnOff: amplitude_ratio"),
        (lambda: LuminanceGainControl(luminance_std=0), "LuminanceGainControl: luminance_std"),
        (lambda: LuminanceContrastGainControl(contrast_scalar="x"), "contrast_scalar"),
        (lambda: OnOff()(picture(15, 15)), "at least 16x16 pixels, got 15x15; take a larger crop"),
        (lambda: OnOff()(torch.zeros(1, 3, 32, 32)), "gray picture .* got 3 channels"),
        (lambda: LinearNonlinear()(torch.zeros(32, 32)), "shape"),
    ],
)
def test_bad_input_gets_one_line(make, says):
    with pytest.raises(ModelError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
