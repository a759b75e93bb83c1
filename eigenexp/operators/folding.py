"""Make a tape shorter without changing what it computes, up to rounding.

Derivatives of activations, normalisations and gain controls multiply each value by a constant.
Several such steps in a row are one multiplication, whose factors are found by sending ones through
the steps. Copies and relabelled views that only autograd needed are dropped.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["fold", "merge_views"]

aten = torch.ops.aten

# Linear in the first argument, value by value, all others constant.
_SCALINGS = {
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.neg.default,
    aten.threshold_backward.default,
    aten.softplus_backward.default,
    aten.sigmoid_backward.default,
    aten.tanh_backward.default,
    aten.gelu_backward.default,
    aten.silu_backward.default,
    aten.leaky_relu_backward.default,
    aten.elu_backward.default,
    aten.hardtanh_backward.default,
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
}
_COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh.default}
# All the same values in the same order: reshapes to the shape recorded.
_VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}


def fold(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Shorten, in place, a graph that writes no tensor in place."""
    if any(node.target is aten.as_strided.default for node in graph.nodes):
        return  # its strides refer to the very layouts recorded
    _drop_copies(graph)
    _merge_scalings(graph, constants)
    graph.eliminate_dead_code()
    merge_views(graph)


def _drop_copies(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target in _COPIES and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def merge_views(graph: fx.Graph) -> None:
    """Turn views of views into one reshape, in place."""
    # Without the copies a layout may differ from the one recorded: reshape takes any.
    for node in list(graph.nodes):
        source = node.args[0] if node.target in _VIEWS else None
        if not isinstance(source, fx.Node) or "shape" not in node.meta:
            continue
        if source.meta.get("shape") == node.meta["shape"]:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            continue
        node.target = aten.reshape.default
        node.args = (source, list(node.meta["shape"]))
        node.kwargs = {}
        if source.target is aten.reshape.default:
            node.args = (source.args[0], node.args[1])
            if not source.users:
                graph.erase_node(source)


def _merge_scalings(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    for node in list(graph.nodes):
        source = _scaled(node)
        if source is None or _continues(node):
            continue
        chain = [node]
        while (before := _scaled(source)) is not None and _continues(source):
            chain.insert(0, source)
            source = before
        if len(chain) == 1 and node.target not in (operator.getitem, aten.mul.Tensor):
            continue
        factor = _factor(chain, source, constants)
        if factor is None:
            continue
        if bool((factor == 1).all()):
            node.replace_all_uses_with(source)
            continue
        name = f"factor_{len(constants)}"
        constants[name] = factor
        with graph.inserting_before(node):
            product = graph.call_function(aten.mul.Tensor, (source, graph.get_attr(name)))
        product.meta.update(node.meta)
        node.replace_all_uses_with(product)


def _continues(node: fx.Node) -> bool:
    """Whether the only use of a scaling is another scaling of its result."""
    users = list(node.users)
    if len(users) == 1 and users[0].target is aten.native_batch_norm_backward.default:
        users = list(users[0].users)
    return len(users) == 1 and _scaled(users[0]) is not None


def _scaled(node: fx.Node) -> fx.Node | None:
    """Return what ``node`` multiplies value by value with constants, or None if it does not."""
    step = _step(node)
    if step is None or "shape" not in node.meta:
        return None
    moving = [x for x in step.all_input_nodes if x.op != "get_attr"]
    places = [i for i, argument in enumerate(step.args) if argument in moving]
    if len(moving) != 1 or len(places) != 1:
        return None
    if places != [0] and step.target is not aten.mul.Tensor:
        return None
    source = moving[0]
    same = all(source.meta.get(key) == node.meta[key] for key in ("shape", "dtype"))
    return source if same else None


def _step(node: fx.Node) -> fx.Node | None:
    """Return the operation behind a result, if it is one that scales."""
    if node.target is not operator.getitem:
        return node if node.target in _SCALINGS else None
    step, place = node.args
    if isinstance(step, fx.Node) and step.target is aten.native_batch_norm_backward.default:
        # By running statistics (train is False), and only its first result is used.
        fixed = step.args[7] is False and place == 0 and len(step.users) == 1
        return step if fixed else None
    return None


def _factor(chain: list[fx.Node], source: fx.Node, constants: dict[str, Tensor]) -> Tensor | None:
    meta = source.meta
    ones = torch.ones(meta["shape"], dtype=meta["dtype"], device=meta["device"])
    values: dict[fx.Node, Any] = {source: ones}

    def value(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        return constants[str(argument.target)] if argument.op == "get_attr" else values[argument]

    for node in chain:
        step = _step(node)
        if step is None or not callable(step.target):
            return None
        result = step.target(*fx.map_arg(step.args, value), **fx.map_arg(step.kwargs, value))
        values[node] = result[0] if step is not node else result
    factor: Tensor = values[chain[-1]]
    # Steps may over- and underflow where their product does not; keep them apart then.
    return factor if bool(torch.isfinite(factor.abs()).all()) else None
