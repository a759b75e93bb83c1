"""Replace large convolutions in a tape by small matrices, where their filters are separable.

A filter of low rank, K = Σ uᵣ vᵣᵀ, acts on rows and columns apart: Y = Σ Aᵣ X Bᵣᵀ, with Aᵣ and Bᵣ
the matrices of the one-dimensional filters uᵣ and vᵣ, stride, dilation and border folded in. The
Gaussians and differences of Gaussians of front-end models have rank 1 and 2. Matrix products are
several times faster than a convolution by a large filter, and its backward pass, itself several
times slower, becomes X̄ = Σ Aᵣᵀ Ȳ Bᵣ at the same price.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from eigenexp.operators.folding import merge_views

__all__ = ["separate"]

aten = torch.ops.aten

# Smaller filters are quicker as they are; and so are more filters than can be factored in passing.
_FEWEST_WEIGHTS = 25
_MOST_FILTERS = 256
# Multiplications a matrix product does in the time of one of a convolution: measured on one core
# for 31 × 31 filters at 32² to 256², about 2 forward, about 5 backward.
_FORWARD_GAIN = 1.5
_BACKWARD_GAIN = 4.0

_PADS: dict[Any, str] = {
    aten.reflection_pad2d.default: "reflect",
    aten.replication_pad2d.default: "replicate",
}
_PAD_BACKWARDS: dict[Any, str] = {
    aten.reflection_pad2d_backward.default: "reflect",
    aten.replication_pad2d_backward.default: "replicate",
}


def separate(graph: fx.Graph, constants: dict[str, Tensor]) -> bool:
    """Replace, in place, what is quicker by matrices; return whether anything was."""
    changed = False
    for node in list(graph.nodes):
        if node.target is aten.convolution.default:
            changed |= _forward(graph, constants, node)
        elif node.target is aten.convolution_backward.default:
            changed |= _backward(graph, constants, node)
    if changed:
        graph.eliminate_dead_code()
        merge_views(graph)
    return changed


@dataclass(frozen=True)
class _Convolution:
    """A convolution of single-channel filters: geometry ``(rows, columns)`` and weights."""

    weight: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    channels: int

    @classmethod
    def of(cls, weight: Tensor, arguments: tuple[Any, ...], groups: int) -> _Convolution | None:
        """Return it if it is of a kind treated here; ``arguments`` from ``stride`` on."""
        stride, padding, dilation, transposed = arguments[:4]
        single = weight.ndim == 4 and weight.shape[1] == 1 and not transposed
        large = single and weight[0, 0].numel() >= _FEWEST_WEIGHTS
        if not large or len(weight) > _MOST_FILTERS:
            return None
        return cls(weight, list(stride), list(padding), list(dilation), groups)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return u ``(filters, rank, rows)`` and v ``(filters, rank, columns)``, in float64.

        What is left out is no larger than the rounding of the weights and of the decomposition.
        """
        u, s, v = torch.linalg.svd(self.weight[:, 0].double(), full_matrices=False)
        tails = s.square().flip(1).cumsum(1).flip(1).sqrt()
        slack = 4 * torch.finfo(self.weight.dtype).eps
        rank = max(1, int((tails > slack * s[:, :1]).sum(1).max()))
        return (u * s[:, None])[..., :rank].mT, v[:, :rank]

    def matrix(self, taps: Tensor, place: int, size: int, border: _Border) -> Tensor:
        """Return the matrices ``(filters, rank, out, size)`` of filters of one dimension."""
        lines = border.extend(torch.eye(size, dtype=taps.dtype, device=taps.device), place)
        filtered: Tensor = functional.conv1d(
            lines[:, None],
            taps.flatten(0, 1)[:, None],
            stride=self.stride[place],
            padding=self.padding[place],
            dilation=self.dilation[place],
        )
        out = filtered.shape[2]
        return filtered.permute(1, 2, 0).reshape(*taps.shape[:2], out, size)


@dataclass(frozen=True)
class _Border:
    """The padding before a convolution: ``mode``, and ``(left, right, top, bottom)``."""

    mode: str = "constant"
    widths: tuple[int, ...] = (0, 0, 0, 0)

    def extend(self, lines: Tensor, place: int) -> Tensor:
        """Pad each line by what rows (place 0) or columns (place 1) of a picture are padded by."""
        widths = self.widths[2:] if place == 0 else self.widths[:2]
        return functional.pad(lines[None], widths, self.mode)[0] if any(widths) else lines


@dataclass(frozen=True)
class _Matrices:
    """A ``(filters, rank, rows out, rows)`` and B ``(filters, rank, columns out, columns)``."""

    rows: Tensor
    columns: Tensor

    @property
    def products(self) -> int:
        """Multiplications of one application: rows first, then columns."""
        filters, rank, height, rows = self.rows.shape
        width, columns = self.columns.shape[2:]
        return filters * rank * height * columns * (rows + width)


def _matrices(convolution: _Convolution, height: int, width: int, border: _Border) -> _Matrices:
    u, v = convolution.factors()
    return _Matrices(
        convolution.matrix(u, 0, height, border), convolution.matrix(v, 1, width, border)
    )


def _forward(graph: fx.Graph, constants: dict[str, Tensor], node: fx.Node) -> bool:
    source, weight, bias, *arguments, groups = node.args
    convolution = _known(constants, source, weight, bias, arguments, groups)
    if convolution is None or not isinstance(source, fx.Node):
        return False
    border = _Border()
    mode = _PADS.get(source.target)
    if mode is not None and isinstance(source.args[0], fx.Node):
        border, source = _Border(mode, tuple(source.args[1])), source.args[0]  # type: ignore[arg-type]
    shape, out = source.meta.get("shape", ()), node.meta["shape"]
    if len(shape) != 4 or shape[0] != 1:
        return False
    matrices = _matrices(convolution, shape[2], shape[3], border)
    if matrices.products > _FORWARD_GAIN * out.numel() * convolution.weight[0].numel():
        return False
    emit = _Emitter(graph, constants, node, convolution.weight)
    filters, rank, height, rows = matrices.rows.shape
    width, columns = matrices.columns.shape[2:]
    channels = convolution.channels
    a = emit.constant(matrices.rows.reshape(channels, -1, rows))
    b = emit.constant(matrices.columns.mT.reshape(filters * rank, columns, width))
    x = emit.reshape(source, [channels, rows, columns])
    y = emit.product(a, x, [channels, filters * rank * height // channels, columns])
    y = emit.reshape(y, [filters * rank, height, columns])
    y = emit.product(y, b, [filters * rank, height, width])
    if rank > 1:
        y = emit.reshape(y, [filters, rank, height, width])
        y = emit.call(aten.sum.dim_IntList, (y, [1]), [filters, height, width])
    node.replace_all_uses_with(emit.reshape(y, list(out)))
    return True


def _backward(graph: fx.Graph, constants: dict[str, Tensor], node: fx.Node) -> bool:
    source, _, weight, _, *arguments, groups, wanted = node.args
    convolution = _known(constants, source, weight, None, arguments, groups)
    only_source = wanted == [True, False, False] and len(node.users) == 1
    if convolution is None or not only_source:
        return False
    replaced = next(iter(node.users))
    if replaced.target is not operator.getitem or not isinstance(source, fx.Node):
        return False
    border, out = _Border(), replaced.meta["shape"]
    user = next(iter(replaced.users)) if len(replaced.users) == 1 else None
    mode = None if user is None else _PAD_BACKWARDS.get(user.target)
    if mode is not None and user is not None and user.args[0] is replaced:
        border, replaced = _Border(mode, tuple(user.args[2])), user  # type: ignore[arg-type]
        out = user.meta["shape"]
    shape = source.meta.get("shape", ())
    if len(shape) != 4 or shape[0] != 1 or len(out) != 4:
        return False
    matrices = _matrices(convolution, out[2], out[3], border)
    if matrices.products > _BACKWARD_GAIN * shape.numel() * convolution.weight[0].numel():
        return False
    emit = _Emitter(graph, constants, replaced, convolution.weight)
    filters, rank, height, rows = matrices.rows.shape
    width, columns = matrices.columns.shape[2:]
    channels, each = convolution.channels, filters // convolution.channels
    b = emit.constant(matrices.columns.reshape(filters * rank, width, columns))
    a = matrices.rows.reshape(channels, each * rank * height, rows).mT
    y = emit.reshape(source, [filters, 1, height, width])
    if rank > 1:
        y = emit.call(
            aten.expand.default, (y, [filters, rank, height, width]), [filters, rank, height, width]
        )
    y = emit.reshape(y, [filters * rank, height, width])
    y = emit.product(y, b, [filters * rank, height, columns])
    y = emit.reshape(y, [channels, each * rank * height, columns])
    y = emit.product(emit.constant(a), y, [channels, rows, columns])
    replaced.replace_all_uses_with(emit.reshape(y, list(out)))
    return True


def _known(
    constants: dict[str, Tensor], source: Any, weight: Any, bias: Any, rest: Any, groups: Any
) -> _Convolution | None:
    """Return the convolution if its filters are constants and it is linear in ``source``."""
    moving = isinstance(source, fx.Node) and source.op != "get_attr"
    fixed = isinstance(weight, fx.Node) and weight.op == "get_attr"
    if not moving or not fixed or bias is not None:
        return None
    return _Convolution.of(constants[str(weight.target)], tuple(rest), groups)


class _Emitter:
    """Adds operations before a node, with the facts a tape keeps of each."""

    def __init__(
        self, graph: fx.Graph, constants: dict[str, Tensor], before: fx.Node, like: Tensor
    ) -> None:
        self._graph, self._constants, self._before = graph, constants, before
        self._like = like

    def constant(self, value: Tensor) -> fx.Node:
        name = f"matrix_{len(self._constants)}"
        self._constants[name] = value.to(self._like).contiguous()
        with self._graph.inserting_before(self._before):
            return self._graph.get_attr(name)

    def call(self, target: Any, arguments: tuple[Any, ...], shape: list[int]) -> fx.Node:
        with self._graph.inserting_before(self._before):
            node = self._graph.call_function(target, arguments)
        node.meta["shape"] = torch.Size(shape)
        node.meta["numel"] = node.meta["shape"].numel()
        node.meta["dtype"], node.meta["device"] = self._like.dtype, self._like.device
        return node

    def reshape(self, source: fx.Node, shape: list[int]) -> fx.Node:
        return self.call(aten.reshape.default, (source, shape), shape)

    def product(self, left: fx.Node, right: fx.Node, shape: list[int]) -> fx.Node:
        return self.call(aten.bmm.default, (left, right), shape)
