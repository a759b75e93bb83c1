"""Tapes: what they write down, what they leave out, what they refuse."""

import pytest
import torch
from torch import nn

from eigenexp.operators.routes import choose_route
from eigenexp.operators.tape import TapeError, record
from tests.operators.zoo import build

MATRIX = torch.arange(12.0).reshape(3, 4)


def test_constants_are_not_computed_again():
    def function(v):
        gain = MATRIX.exp().sum(0).sqrt() + 1
        return MATRIX @ (v / gain)

    tape = record(function, torch.ones(4))
    assert tape.operations == (
        "aten.div.Tensor",
        "aten.mv.default",
    )
    v = torch.tensor([1.0, -2.0, 0.5, 3.0])
    torch.testing.assert_close(tape(v), function(v))


def test_operations_without_effect_on_the_result_are_dropped():
    tape = record(lambda v: (v.sin(), MATRIX @ v)[1], torch.ones(4))
    assert tape.operations == ("aten.mv.default",)


def test_scalings_in_a_row_become_one():
    gain = torch.tensor([1.0, 2.0, 4.0, -8.0])
    tape = record(lambda v: -(v * gain / gain.exp()) * 3, torch.ones(4))
    assert tape.operations == ("aten.mul.Tensor",)
    v = torch.tensor([3.0, 1.0, 2.0, 5.0])
    torch.testing.assert_close(tape(v), -(v * gain / gain.exp()) * 3)


def test_scalings_read_elsewhere_are_kept_apart():
    gain = torch.tensor([1.0, 2.0, 4.0, -8.0])

    def function(v):
        half = v * gain
        return half * gain + half.roll(1)

    v = torch.tensor([3.0, 1.0, 2.0, 5.0])
    torch.testing.assert_close(record(function, torch.ones(4))(v), function(v))


def test_scalings_that_overflow_in_between_are_not_merged():
    tiny = torch.full((3,), 1e-30)

    def function(v):
        return (MATRIX @ (v * MATRIX[1] * MATRIX[2])) / tiny / tiny * tiny * tiny

    v = torch.full((4,), 1e-33)
    tape = record(function, v)
    torch.testing.assert_close(tape(v), function(v))
    # The other row of scalings is merged all the same.
    assert tape.operations[:2] == ("aten.mul.Tensor", "aten.mv.default")
    assert len(tape.operations) == 6


def test_a_product_with_itself_is_no_scaling():
    v = torch.tensor([1.0, 2.0])
    tape = record(lambda v: v * v * 2, v)
    assert torch.equal(tape(3 * v), 18 * v * v)


def test_batch_norm_backward_becomes_a_multiplication():
    model, image = build("conv net")
    route, _ = choose_route(model, image)
    for tape in (route.push, route.pull):
        assert not any("batch_norm" in call or "threshold" in call for call in tape.operations)


def test_writes_in_place_start_afresh_in_every_replay():
    def function(v):
        out = torch.zeros(4)
        out.add_(v)
        out[1:].mul_(2)
        return out.addcmul_(out, torch.ones(4))

    tape = record(function, torch.ones(4))
    for scale in (1.0, 2.0, 1.0):
        expected = torch.tensor([2.0, 4.0, 4.0, 4.0]) * scale
        torch.testing.assert_close(tape(torch.full((4,), scale)), expected)


def test_a_written_constant_read_through_another_view_is_refused():
    def function(v):
        out = torch.zeros(2, 4)
        out[0] = v
        return out.sum(0)

    with pytest.raises(TapeError, match="another view"):
        record(function, torch.ones(4))


def test_the_vector_is_never_written():
    def function(v):
        v[0] = v[1]
        return v.mul_(2)

    v = torch.tensor([1.0, 2.0, 3.0])
    tape = record(function, v.clone())
    assert torch.equal(tape(v), torch.tensor([4.0, 4.0, 6.0]))
    assert torch.equal(v, torch.tensor([1.0, 2.0, 3.0]))


def test_a_constant_changed_after_it_was_read_is_refused():
    def function(v):
        gain = torch.ones(4)
        product = v * gain
        gain.mul_(2)
        return product * gain

    with pytest.raises(TapeError, match="in place"):
        record(function, torch.ones(4))


def test_values_read_into_python_are_refused():
    with pytest.raises(TapeError, match="Python value"):
        record(lambda v: v * v.sum().item(), torch.ones(4))


def test_a_result_that_does_not_depend_on_the_vector_is_refused():
    with pytest.raises(TapeError, match="does not depend"):
        record(lambda v: torch.from_numpy(v.numpy() * 2), torch.ones(4))


def test_memory_layouts_taken_for_granted_survive():
    def function(v):
        return torch.view_as_complex(v.reshape(2, 4).T.clone(memory_format=torch.contiguous_format))

    def real(v):
        return torch.view_as_real(function(v))

    v = torch.arange(8.0)
    torch.testing.assert_close(record(real, torch.ones(8))(v), real(v))


def test_a_tape_costs_what_its_operations_cost():
    cheap = record(lambda v: v * MATRIX[0], torch.ones(4))
    weight = torch.randn(64, 4)
    dear = record(lambda v: weight.T @ (weight @ v[:, None]), torch.ones(4))
    assert cheap.cost < dear.cost
    assert dear.width == 64


def test_convolutions_cost_alike_in_both_directions():
    model = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Conv2d(8, 4, 3))
    route, _ = choose_route(model, torch.rand(1, 1, 16, 16))
    assert route.costs[0] == pytest.approx(route.costs[1], rel=0.3)
