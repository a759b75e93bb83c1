"""Recomputed activations: the same products, less kept, the model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eigenexp import FisherOperator, JacobianOperator
from eigenexp.errors import InputError, ModelError
from eigenexp.models import LayerOutput
from eigenexp.operators.recomputing import recomputing, segments


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.norm(self.first(x))))


class Deep(nn.Module):
    """Twelve residual blocks, four to a stage."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(4))) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


def deep() -> Deep:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Deep().double().eval().requires_grad_(False)


def picture(size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 1, size, size, generator=generator, dtype=torch.float64)


def saved_bytes(model: nn.Module, image: Tensor) -> int:
    """Return the bytes of tensors autograd keeps of a forward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    x = image.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(x)
    assert output.requires_grad
    weights = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("layer", [None, "stages.1.2", "stages.1.2.norm", "stages.1"])
def test_products_are_those_of_autograd(layer: str | None) -> None:
    model: nn.Module = deep() if layer is None else LayerOutput(deep(), layer)
    jacobian = JacobianOperator(model, picture(), recompute=True)
    assert jacobian.route == "recompute"
    x = picture()
    reference = torch.autograd.functional.jacobian(lambda z: model(z).flatten(), x)
    expected = reference.reshape(-1, x.numel())
    torch.testing.assert_close(jacobian.to_dense(), expected, rtol=1e-10, atol=1e-12)
    block = torch.randn(x.numel(), 3, dtype=torch.float64)
    torch.testing.assert_close(
        FisherOperator(jacobian) @ block, expected.T @ (expected @ block), rtol=1e-9, atol=1e-11
    )


def test_only_what_enters_a_block_is_kept() -> None:
    model, image = deep(), picture(32)
    whole = saved_bytes(model, image)
    with recomputing(model):
        kept = saved_bytes(model, image)
    activation = 4 * 32 * 32 * 8
    assert kept <= 14 * activation  # twelve blocks and the ends
    assert kept < 0.4 * whole


def test_a_sequential_of_layers_is_cut_into_pieces() -> None:
    layers = [m for _ in range(8) for m in (nn.Conv2d(2, 2, 3, padding=1), nn.Softplus())]
    plain = nn.Sequential(nn.Conv2d(1, 2, 1), *layers).double().requires_grad_(False)
    assert segments(plain) == [plain]
    image = picture(32)
    whole = saved_bytes(plain, image)
    with recomputing(plain):
        assert saved_bytes(plain, image) < 0.5 * whole
    reference = JacobianOperator(plain, picture()).to_dense()
    dense = JacobianOperator(plain, picture(), route="recompute").to_dense()
    torch.testing.assert_close(dense, reference, rtol=1e-10, atol=1e-12)


def test_blocks_are_those_nearest_the_square_root() -> None:
    model = deep()
    assert segments(model) == [block for stage in model.stages for block in stage]
    # A block that the forward pass ends inside of would be cut short; whole ones are taken.
    for layer, cut in (
        ("stages.1.2.norm", [model.stages[1], model.stages[1][2]]),
        ("stages.2", []),
    ):
        found = segments(LayerOutput(model, layer))
        inside = {id(m) for block in found for m in block.modules()}
        assert not any(block is whole for block in found for whole in cut)
        assert id(model.stages[1][0].first) in inside


def test_the_model_is_left_as_it_was() -> None:
    model = deep()
    before = [dict(module.__dict__) for module in model.modules()]
    own: Any = model.stages[0][0].forward
    model.stages[0][1].forward = own  # somebody's own patch stays
    JacobianOperator(model, picture(), recompute=True)
    assert model.stages[0][1].__dict__.pop("forward") is own
    after = [dict(module.__dict__) for module in model.modules()]
    assert [sorted(a) for a in after] == [sorted(b) for b in before]


@pytest.mark.parametrize(
    ("model", "words"),
    [(lambda x: x.sin(), "expected a torch.nn.Module"), (nn.Tanh(), "found none in Tanh")],
)
def test_what_has_no_blocks_is_told(model: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        JacobianOperator(model, picture(), recompute=True)


def test_recompute_is_a_route_of_its_own() -> None:
    with pytest.raises(InputError, match="route 'auto'"):
        JacobianOperator(deep(), picture(), route="rows", recompute=True)
    assert JacobianOperator(deep(), picture()).route == "traced"
