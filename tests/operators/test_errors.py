"""What cannot be solved is refused in one line that says what to do."""

import numpy as np
import pytest
import torch
from torch import nn

import eigenexp as ee
from eigenexp.errors import EigenexpError, ImageError, InputError, InputTypeError, ModelError
from eigenexp.operators import FisherOperator, JacobianOperator
from tests.operators.zoo import Lambda, NumpyCube, build


def image(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*(shape or (1, 1, 4, 4)), generator=generator, dtype=torch.float64).to(dtype)


def under_no_grad(x):
    with torch.no_grad():
        return x.sin()


def reaches_nan_slope(x):
    return (x - x.detach()).sqrt()


MODELS = {
    "numpy in the middle": (lambda x: torch.from_numpy(np.sin(x.numpy())), "numpy"),
    "numpy output": (lambda x: x.detach().numpy(), "expected output to be a tensor.*got ndarray"),
    "no_grad": (under_no_grad, "differentiable in the picture.*no_grad"),
    "detach": (lambda x: x.sin().detach(), "differentiable in the picture.*detach"),
    "constant": (lambda x: torch.ones(3, dtype=x.dtype), "differentiable in the picture"),
    "integers": (lambda x: (255 * x).to(torch.int64), "floating point, got torch.int64"),
    "integers beside": (lambda x: (x, x.argmax()), r"output\[1\] to be floating point"),
    "boolean": (lambda x: x > 0.5, "floating point, got torch.bool"),
    "nan": (lambda x: x * float("nan"), "finite response, got NaN or inf in 16 of 16"),
    "inf": (lambda x: (x - x).log() + x, "finite response"),
    "nan slope": (reaches_nan_slope, "NaN or inf"),
    "zero Jacobian": (lambda x: x * 0, "zero Jacobian"),
    "rounding": (lambda x: (255 * x).round(), "zero Jacobian"),
    "random": (lambda x: x * torch.rand(()), r"same response.*differ by up to.*model.eval\(\)"),
    "other shape": (lambda x, calls=[]: x.flatten()[: len(calls.append(0) or calls)], "shapes"),
    "numpy random": (lambda x: x * np.random.rand(), "same response"),  # noqa: NPY002
    "single precision": (lambda x: x.float(), "torch.float64, got torch.float32"),
    "half precision": (lambda x: (x, x.half()), r"output\[1\].*torch.float64, got torch.float16"),
    "meta device": (lambda x: x.to("meta"), "on the picture's device cpu, got meta"),
    "none": (lambda x: None, "got None"),
    "empty tuple": (lambda x: (), "empty output"),
    "no values": (lambda x: x[:, :0], "without elements"),
    "text": (lambda x: {"logits": x, "label": "cat"}, r"output\['label'\] to be a tensor.*str"),
    "number": (lambda x: 3.0, "to be a tensor.*float"),
    "sparse": (lambda x: x[0, 0].to_sparse(), "dense tensor"),
    "raises": (
        lambda x: x @ torch.ones(7, 7, dtype=x.dtype),
        r"shape \(1, 1, 4, 4\).*RuntimeError",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_unusable_models(name):
    function, message = MODELS[name]
    with pytest.raises(ModelError, match=message) as caught:
        JacobianOperator(Lambda(function), image())
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError):
        FisherOperator(function, image())


def test_dropout_in_training_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    with pytest.raises(ModelError, match=r"same response.*model\.eval\(\)"):
        FisherOperator(model, image())
    assert FisherOperator(model.eval(), image()).shape == (16, 16)


def test_a_response_that_depends_on_parameters_alone():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ModelError, match="differentiable in the picture"):
        JacobianOperator(lambda x: weight * x.detach().sum(), image())
    assert weight.grad is None


def test_a_model_in_another_precision_than_the_picture():
    with pytest.raises(ModelError, match=r"torch.float64, got RuntimeError"):
        JacobianOperator(nn.Conv2d(1, 1, 3), image())


def test_a_zero_jacobian_can_be_allowed():
    operator = FisherOperator(lambda x: x * 0, image(), allow_zero=True)
    assert not (operator @ torch.ones(16, dtype=torch.float64)).any()
    assert not operator.to_dense().any()


def test_a_jacobian_too_large_to_build_by_rows_is_refused(monkeypatch):
    monkeypatch.setattr("eigenexp.operators.routes.ROWS_LIMIT", 1000)
    with pytest.raises(ModelError, match=r"rows: .*GiB"):
        JacobianOperator(NumpyCube.apply, image())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pictures_that_are_not_finite(bad):
    picture = image()
    picture[0, 0, 1, 2] = bad
    with pytest.raises(ImageError, match="finite picture values"):
        FisherOperator(torch.sin, picture)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (torch.rand(1, 1, 4, 4).bfloat16(), InputTypeError, "bfloat16; solve in float32"),
        (torch.rand(1, 1, 4, 4).half(), InputTypeError, "float16; solve in float32"),
        (torch.ones(1, 1, 4, 4, dtype=torch.uint8), InputTypeError, "got torch.uint8"),
        (torch.rand(1, 4).to(torch.complex64), InputTypeError, "got torch.complex64"),
        (np.ones((1, 1, 4, 4)), InputTypeError, "got ndarray"),
        (torch.rand(2, 1, 4, 4), ImageError, r"one picture.*\(2, 1, 4, 4\)"),
        (torch.rand(()), ImageError, r"got \(\)"),
        (torch.rand(1, 0), ImageError, r"got \(1, 0\)"),
    ],
)
def test_unusable_pictures(picture, error, message):
    with pytest.raises(error, match=message):
        JacobianOperator(torch.sin, picture)


def test_bad_settings():
    with pytest.raises(InputError, match=r"route: expected 'auto' or one of.*got 'fast'"):
        JacobianOperator(torch.sin, image(), route="fast")
    with pytest.raises(InputError, match="chunk_size: expected at least 1 column, got 0"):
        JacobianOperator(torch.sin, image(), chunk_size=0)
    with pytest.raises(InputError, match="image: expected a picture tensor"):
        FisherOperator(torch.sin)
    with pytest.raises(InputError, match="image: expected none"):
        FisherOperator(JacobianOperator(torch.sin, image()), image())


@pytest.mark.parametrize("make", [JacobianOperator, FisherOperator])
def test_blocks_of_the_wrong_kind(make):
    operator = make(*build("conv net"))
    n = operator.shape[1]
    with pytest.raises(InputError, match=rf"expected shape \({n},\) or \({n}, b\), got \(3, 2\)"):
        operator @ torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="expected shape"):
        operator @ torch.ones(n, 1, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="expected shape"):
        operator @ torch.ones(n, 0, dtype=torch.float64)
    with pytest.raises(InputTypeError, match=r"operator's torch.float64, got torch.float32"):
        operator @ torch.ones(n)
    with pytest.raises(InputTypeError, match="expected a tensor, got ndarray"):
        operator @ np.ones(n)
    with pytest.raises(InputError, match="device cpu, got one on meta"):
        operator @ torch.ones(n, dtype=torch.float64, device="meta")
    product = operator.matmat if make is JacobianOperator else operator.apply
    with pytest.raises(InputError, match=rf"expected shape \({n}, b\), got \({n},\)"):
        product(torch.ones(n, dtype=torch.float64))
    assert issubclass(InputError, EigenexpError)


def test_a_lazy_module_is_told_what_it_lacks():
    lazy = nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU())
    with pytest.raises(ModelError, match=r"got 0\.weight without one.*call the model once"):
        FisherOperator(lazy, image(dtype=torch.float32))
    with pytest.raises(ModelError, match="a lazy module"):
        ee.EigendistortionModule(lazy, image(dtype=torch.float32))
