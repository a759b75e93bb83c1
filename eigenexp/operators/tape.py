"""A linear computation written down once, operation by operation, and replayed.

J·v and Jᵀ·u are linear in v and u. Running one of them once under :class:`Recorder` notes each
low-level operation its result depends on; whatever does not depend on the vector (the forward
pass, masks, gains, filters) is a constant of the tape. A replay then costs the linear operations
alone: no forward pass, no autograd bookkeeping, and nothing but tensors, so it can be batched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TapeError", "record"]

aten = torch.ops.aten


class TapeError(RuntimeError):
    """A computation that cannot be written down as a fixed list of operations."""


class Recorder(TorchDispatchMode):
    """Note every operation that touches the vector; run all of them as usual."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        # Tensors are kept alive while recording: identities are the keys.
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}
        self._constant_nodes: dict[int, tuple[Tensor, fx.Node]] = {}
        self._constant_storages: set[int] = set()
        self._written: dict[int, Tensor] = {}
        self.mutates = False
        self._nodes[id(vector)] = (vector, self.graph.placeholder("vector"))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        tracked = any(id(x) in self._nodes for x in tensors)
        written = self._targets(func, args, kwargs) if func._schema.is_mutable else []
        if not tracked:
            for x in written:
                if _storage(x) in self._constant_storages:
                    raise TapeError(f"{func} changes a tensor that earlier operations read")
            if any(_storage(x) in self._written for x in tensors):
                raise TapeError(f"{func} reads a tensor through another view than was written")
            return func(*args, **kwargs)
        if func in _READS:
            raise TapeError(f"{func} makes a plain number of a value that depends on the vector")
        for x in written:
            self._own(x)
        node_args, node_kwargs = pytree.tree_map_only(Tensor, self._node, (args, kwargs))
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._note(result, node, written)
        return result

    def _targets(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        values = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]

    def _own(self, target: Tensor) -> None:
        """Give a tensor about to be written its own copy on the tape, if it was a constant."""
        self.mutates = True
        if id(target) in self._nodes:
            return
        if _storage(target) in self._constant_storages or _storage(target) in self._written:
            raise TapeError("a tensor is written that another operation reads")
        start = self._constant(target.clone())
        self._nodes[id(target)] = (target, self.graph.call_function(aten.clone.default, (start,)))
        self._written[_storage(target)] = target

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self._nodes:
            return self._nodes[id(tensor)][1]
        if _storage(tensor) in self._written:
            raise TapeError("a tensor is read through another view than was written")
        return self._constant(tensor)

    def _constant(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._constant_nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor.detach()
            self._constant_nodes[id(tensor)] = (tensor, self.graph.get_attr(name))
            self._constant_storages.add(_storage(tensor))
        return self._constant_nodes[id(tensor)][1]

    def _note(self, result: Any, node: fx.Node, written: list[Tensor]) -> None:
        if isinstance(result, Tensor):
            if not any(result is x for x in written):
                self._nodes[id(result)] = (result, node)
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(_item, (node, i))
                    self._nodes[id(part)] = (part, item)

    def finish(self, result: Tensor) -> fx.GraphModule:
        if id(result) not in self._nodes:
            raise TapeError("the result does not depend on the vector")
        self.graph.output(self._nodes[id(result)][1])
        self.graph.eliminate_dead_code()
        root = torch.nn.Module()
        for name, tensor in self.constants.items():
            root.register_buffer(name, tensor)
        return fx.GraphModule(root, self.graph)


import operator

_item = operator.getitem
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def record(function: Callable[[Tensor], Tensor], vector: Tensor) -> fx.GraphModule:
    """Run ``function`` once and return its tape."""
    recorder = Recorder(vector)
    with recorder:
        result = function(vector)
    return recorder.finish(result)
