"""The checks of the constructor: types of errors and warnings, and their order."""

import copy
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from eigenexp import Eigendistortion, remove_grad, set_seed, validate_image, validate_model
from tests.compat.models import Matrix, Smooth, picture


class Through(nn.Module):
    """A model from a function of the picture."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16,
                                   torch.complex64])  # fmt: skip
def test_pictures_of_other_dtypes_are_type_errors(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        Eigendistortion(torch.ones(1, 1, 4, 4, dtype=dtype), Smooth())


def test_a_batch_is_a_value_error_and_a_line_of_values_is_none():
    with pytest.raises(ValueError, match="one picture"):
        Eigendistortion(picture(2, 1, 4, 4), Smooth())
    with pytest.warns(UserWarning, match="4 dimensions"):
        eig = Eigendistortion(picture(5), Matrix(torch.eye(5, dtype=torch.float64)).eval())
    assert eig.image.shape == (5,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_is_a_value_error(bad):
    image = picture(1, 1, 4, 4)
    image[0, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        Eigendistortion(image, Smooth())


def test_values_outside_the_unit_range_warn_and_are_solved_for():
    with pytest.warns(UserWarning, match=r"\[0, 1\]"):
        Eigendistortion(picture(1, 1, 4, 4) * 3, Smooth())


def test_the_picture_is_checked_before_the_model_and_dtype_before_shape():
    broken = Through(lambda x: x.detach())
    with pytest.raises(TypeError):
        Eigendistortion(torch.ones(2, 1, 4, 4, dtype=torch.int64), broken)
    with pytest.raises(ValueError, match="one picture"):
        Eigendistortion(picture(2, 1, 4, 4), broken)


def test_learnable_parameters_are_refused_with_the_remedy():
    model = nn.Conv2d(1, 2, 3).eval().double()
    with pytest.raises(ValueError, match="remove_grad"):
        Eigendistortion(picture(1, 1, 6, 6), model)
    remove_grad(model)
    assert not any(p.requires_grad for p in model.parameters())
    Eigendistortion(picture(1, 1, 6, 6), model)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.detach().numpy(),
        lambda x: torch.as_tensor(x.numpy()),
        lambda x: x.detach(),
        lambda x: (x * 255).round().long(),
        lambda x: None,
        lambda x: [x, "label"],
        lambda x: {},
    ],
    ids=["numpy", "numpy inside", "detached", "integer", "None", "list with text", "empty dict"],
)
def test_responses_that_cannot_be_differentiated_are_value_errors(function):
    with pytest.raises(ValueError, match=r"^model: expected"):
        Eigendistortion(picture(1, 1, 4, 4), Through(function))


def test_a_model_under_no_grad_is_a_value_error():
    with pytest.raises(ValueError, match="detached"):
        Eigendistortion(picture(1, 1, 4, 4), Through(torch.no_grad()(lambda x: 2 * x)))


def test_precision_and_device_changes():
    with pytest.raises(TypeError, match="float32"):
        Eigendistortion(picture(1, 1, 4, 4), Through(lambda x: x.float()))
    with pytest.raises(RuntimeError, match="got meta"):
        validate_model(Through(lambda x: x.to("meta")), image_dtype=torch.float64)


def test_training_mode_warns():
    with pytest.warns(UserWarning, match="eval"):
        Eigendistortion(picture(1, 1, 4, 4), Smooth().train())


def test_errors_of_the_model_itself_keep_their_type():
    def fails(x):
        raise KeyError("layer4")

    with pytest.raises(KeyError, match="layer4"):
        Eigendistortion(picture(1, 1, 4, 4), Through(fails))


def test_callables_that_are_no_modules_work():
    eig = Eigendistortion(picture(1, 1, 4, 4), torch.tanh)
    eig.synthesize("exact")
    assert torch.equal(eig.eigenvalues.sort(descending=True).values, eig.eigenvalues)
    assert "model = tanh" in repr(eig)


def test_the_picture_is_copied():
    image = picture(1, 1, 4, 4)
    before = image.clone()
    eig = Eigendistortion(image, torch.tanh)
    image.zero_()
    assert torch.equal(eig.image, before)


def test_construction_and_solving_leave_the_global_random_states_alone():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    eig = Eigendistortion(picture(1, 1, 4, 4), Through(lambda x: torch.tanh(x)))
    eig.synthesize(max_iter=300, tol=1.0)
    with pytest.warns(UserWarning, match="randomized SVD"):
        eig.synthesize("randomized_svd", p=10)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()


def test_set_seed_seeds_torch_and_numpy_and_with_them_the_solve():
    set_seed(7)
    first = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    set_seed(7)
    assert torch.equal(first[0], torch.rand(2))
    assert (first[1] == np.random.rand(2)).all()  # noqa: NPY002
    state = torch.get_rng_state()
    set_seed(None)
    assert torch.equal(state, torch.get_rng_state())

    def solve():
        eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
        with pytest.warns(UserWarning, match="not converged"):
            eig.synthesize(max_iter=3)
        return eig.eigendistortions

    set_seed(1)
    one, again = solve(), solve()
    set_seed(2)
    assert torch.equal(one, again)
    assert not torch.equal(one, solve())


def test_validate_image_and_model_alone():
    validate_image(picture(1, 1, 4, 4))
    validate_image(picture(3, 1, 4, 4), no_batch=False)
    with pytest.raises(TypeError, match="list"):
        validate_image([1.0])
    validate_model(Smooth(dtype=torch.float32).eval())
    validate_model(Smooth(), image_shape=(1, 1, 5, 5), image_dtype=torch.float64)


def test_repr_names_picture_and_model_and_does_not_change():
    eig = Eigendistortion(picture(1, 1, 4, 4), nn.Sequential(Smooth(), nn.Tanh()).eval())
    expected = (
        "Eigendistortion(\n  image = torch.Size([1, 1, 4, 4]) (torch.float64),\n"
        "  model = Sequential(\n    (0): Smooth()\n    (1): Tanh()\n  ),\n)"
    )
    assert repr(eig) == str(eig) == expected
    eig.synthesize("exact")
    assert repr(eig) == expected


def test_attributes_before_synthesis():
    model = Smooth()
    eig = Eigendistortion(picture(1, 1, 4, 4), model)
    assert eig.model is model
    for name in ("jacobian", "eigendistortions", "eigenvalues", "eigenindex", "spectrum"):
        assert getattr(eig, name) is None


def test_a_synthesized_object_can_be_deep_copied():
    eig = Eigendistortion(picture(1, 1, 4, 4), Smooth())
    eig.synthesize("exact")
    twin = copy.deepcopy(eig)
    assert torch.equal(twin.eigenvalues, eig.eigenvalues)
    twin.synthesize("exact")


def test_the_class_needs_no_lightning_and_no_plotting():
    code = (
        "import sys, eigenexp; eigenexp.Eigendistortion; eigenexp.examine_saved_synthesis\n"
        "print([m for m in ('lightning', 'mlflow', 'hydra', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
