"""A linear computation written down once, operation by operation, and replayed.

J·v and Jᵀ·u are linear in v and u. Running one of them once under a recorder notes each
low-level operation whose result depends on the vector; everything else (the forward pass, masks,
gains, filters) becomes a constant of the tape. A replay then costs the linear operations alone:
no forward pass and no autograd bookkeeping. It is a pure function of tensors, so it can be batched,
and it never sees the model again.

Unlike symbolic tracers this runs real operations below autograd, where forward-mode, reverse-mode
and second derivatives all look alike; it costs one evaluation and handles any model that can be
differentiated at all.

``torch.fx.experimental.proxy_tensor.make_fx`` nearly does this. It is not used because a picture
costs more: its first call imports for 1.1 s, and each recording of Jᵀ·u of OnOff takes 53 ms (16²)
and 88 ms (64²) of one core against 25 and 11 here (torch 2.13); it also keeps every operation that
does not depend on the vector, to be computed again at each replay.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from eigenexp.operators.folding import fold
from eigenexp.operators.separating import separate

__all__ = ["Tape", "TapeError", "record"]

aten = torch.ops.aten

# Operations that turn tensor values into Python values, on which the program may then branch.
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}


# torch's own doors to the same kernels, which take a microsecond less to pass.
_DOORS: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.bmm.default: torch.bmm,
    aten.convolution.default: torch.convolution,
    aten.div.Scalar: torch.div,
    aten.div.Tensor: torch.div,
    aten.gather.default: torch.gather,
    aten.mm.default: torch.mm,
    aten.mul.Scalar: torch.mul,
    aten.mul.Tensor: torch.mul,
    aten.mv.default: torch.mv,
    aten.neg.default: torch.neg,
    aten.permute.default: torch.permute,
    aten.reshape.default: torch.reshape,
    aten.select.int: torch.select,
    aten.sub.Tensor: torch.sub,
    aten.t.default: torch.t,
    aten.transpose.int: torch.transpose,
}


class TapeError(RuntimeError):
    """A computation that cannot be written down as a fixed list of operations."""


class Tape:
    """A recorded linear function of one tensor; calling it replays the operations.

    Attributes
    ----------
    width
        Largest number of values in an intermediate result.
    cost
        Multiplications, roughly: compares tapes, and is no time.
    operations
        Names of the operations, in order.
    code
        The tape as Python text, to read.
    """

    def __init__(self, graph: fx.Graph, constants: dict[str, Tensor]) -> None:
        nodes = [node for node in graph.nodes if node.op == "call_function"]
        self.width = max((node.meta.get("numel", 1) for node in nodes), default=1)
        self.cost = sum(_cost(node, constants) for node in nodes)
        self.operations = tuple(
            str(node.target) for node in nodes if node.target is not operator.getitem
        )
        for node in nodes:
            node.target = _DOORS.get(node.target, node.target)
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        module = fx.GraphModule(dict.fromkeys(used, torch.empty(0)), graph)
        for name in used:
            # Plain attributes: a module's registered buffers take longer to look up.
            delattr(module, name)
            module.__dict__[name] = constants[name]
        self.code = str(module.code)
        self._replay: Callable[[Tensor], Tensor] = module.forward

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the function's value at ``vector``; call it where gradients are off."""
        return self._replay(vector)


def record(function: Callable[[Tensor], Tensor], vector: Tensor) -> Tape:
    """Run ``function``, linear in its argument, once at ``vector`` and return its tape.

    Raises
    ------
    TapeError
        When the result does not depend on the vector through tensor operations alone.
    """
    recorder = _Recorder(vector)
    with recorder:
        result = function(vector)
    graph, constants = recorder.finish(result), recorder.constants
    if not recorder.mutates:
        with torch.no_grad():
            shorter = _shortened(graph, constants, vector, result.detach())
        if shorter is not None:
            return shorter
    return Tape(graph, constants)


def _shortened(
    graph: fx.Graph, constants: dict[str, Tensor], vector: Tensor, result: Tensor
) -> Tape | None:
    """Return a shorter tape, or None if its result is not the same up to rounding."""
    for matrices in (True, False):
        shorter, own = fx.Graph(), dict(constants)
        shorter.output(shorter.graph_copy(graph, {}))
        fold(shorter, own)
        if matrices and not separate(shorter, own):
            continue
        tape = Tape(shorter, own)
        try:
            difference = (tape(vector) - result).norm()
        except RuntimeError:
            continue  # an operation took the recorded memory layout for granted
        if bool(difference <= 1e3 * torch.finfo(result.dtype).eps * result.norm()):
            return tape
    return None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note every operation that reads the vector, directly or not; run all of them as usual.

    torch documents dispatch modes without a public name for their class, and what an operation
    writes is told by its ``_schema`` alone.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The compiler, half a second's import, has no part in this.
        return False

    def __init__(self, vector: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.mutates = False
        self._vector = self.graph.placeholder("vector")
        # Keyed by identity; the tensors are kept alive so that no identity comes up twice.
        self._noted: dict[int, tuple[Tensor, fx.Node]] = {}
        self._sharers: dict[int, int] = {}
        self._frozen: dict[int, tuple[Tensor, fx.Node]] = {}
        self._frozen_storages: set[int] = set()
        self._written_storages: set[int] = set()
        self._keep(vector, _described(self._vector, vector))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors_in((args, kwargs))
        targets = _targets(func, args, kwargs) if func._schema.is_mutable else []
        if func is aten.ones_like.default:
            return func(*args, **kwargs)  # the vector's shape, none of its values
        if not any(id(x) in self._noted for x in tensors):
            if any(_storage(x) in self._frozen_storages for x in targets):
                raise TapeError(f"{func} changes a tensor in place that was read before")
            if any(_storage(x) in self._written_storages for x in tensors):
                raise TapeError(f"{func} reads another view of a tensor written in place")
            return func(*args, **kwargs)
        if func in _READS:
            raise TapeError(f"{func} makes a Python value of the vector's values")
        free = {id(target): self._open(target) for target in targets}
        node_args, node_kwargs = map_aggregate(
            (args, kwargs), lambda x: self._node(x) if isinstance(x, Tensor) else x
        )
        pure = _pure_twin(func) if len(targets) == 1 and all(free.values()) else None
        result = func(*args, **kwargs)
        if pure is not None:
            node = self.graph.call_function(pure, node_args, node_kwargs)
            self._keep(targets[0], _described(node, targets[0]))
        else:
            self.mutates = self.mutates or bool(targets)
            node = self.graph.call_function(func, node_args, node_kwargs)
            self._note(result, node, targets)
        return result

    def _open(self, target: Tensor) -> bool:
        """Make ready for a write in place; return whether no other tensor shares the values."""
        storage = _storage(target)
        if id(target) in self._noted:
            return self._sharers[storage] == 1
        if storage in self._frozen_storages or storage in self._written_storages:
            raise TapeError("a constant is written in place that was read before")
        # Every replay starts from the values before the write.
        start = self._freeze(target.clone())
        node = self.graph.call_function(aten.clone.default, (start,))
        self._keep(target, _described(node, target))
        self._written_storages.add(storage)
        return True

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        if id(tensor) not in self._noted:
            storage = _storage(tensor)
            self._sharers[storage] = self._sharers.get(storage, 0) + 1
        self._noted[id(tensor)] = (tensor, node)

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self._noted:
            return self._noted[id(tensor)][1]
        if _storage(tensor) in self._written_storages:
            raise TapeError("another view is read of a tensor written in place")
        return self._freeze(tensor)

    def _freeze(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._frozen:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor.detach()
            self._frozen[id(tensor)] = (tensor, self.graph.get_attr(name))
            self._frozen_storages.add(_storage(tensor))
        return self._frozen[id(tensor)][1]

    def _note(self, result: Any, node: fx.Node, targets: list[Tensor]) -> None:
        if isinstance(result, Tensor):
            if not any(result is x for x in targets):
                self._keep(result, _described(node, result))
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    self._keep(part, _described(item, part))

    def finish(self, result: Tensor) -> fx.Graph:
        """Return the operations the result needs."""
        if id(result) not in self._noted:
            raise TapeError("the result does not depend on the vector")
        self.graph.output(self._noted[id(result)][1])
        self.graph.eliminate_dead_code()
        self._noted.clear()
        self._frozen.clear()
        if self.mutates:
            # A replay must not write into the caller's vector.
            with self.graph.inserting_after(self._vector):
                copy = self.graph.call_function(aten.clone.default, (self._vector,))
            self._vector.replace_all_uses_with(copy, lambda user: user is not copy)
        return self.graph


def _described(node: fx.Node, value: Tensor) -> fx.Node:
    node.meta["numel"] = value.numel()
    node.meta["shape"] = value.shape
    node.meta["dtype"] = value.dtype
    node.meta["device"] = value.device
    return node


def _tensors_in(values: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(value: Any) -> Any:
        if isinstance(value, Tensor):
            found.append(value)
        return value

    map_aggregate(values, note)
    return found


def _targets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors an operation writes in place."""
    values = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors_in(values)


def _pure_twin(func: Any) -> Any:
    """Return the operation that computes what ``func`` writes into its first argument, if any."""
    name, _, overload = func.name().partition("::")[2].partition(".")
    if not name.endswith("_") or name in _NO_TWIN or func.namespace != "aten":
        return None
    return getattr(getattr(aten, name[:-1], None), overload or "default", None)


def _storage(tensor: Tensor) -> int:
    # Not its public data_ptr(), which is 0 for all that are empty.
    return int(tensor.untyped_storage()._cdata)


# Their twins cannot be batched, or do not exist as one operation.
_NO_TWIN = {"copy_"}

_PRODUCTS = {
    aten.mv.default,
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
}
# A pass over memory costs about as much as this many multiplications a value.
_PASS = 4


def _cost(node: fx.Node, constants: dict[str, Tensor]) -> int:
    numel = int(node.meta.get("numel", 0))
    if node.target in (aten.convolution.default, aten.convolution_backward.default):
        weight = node.args[1 if node.target is aten.convolution.default else 2]
        values = node.meta if node.target is aten.convolution.default else _meta(node.args[0])
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            kernel = constants[str(weight.target)]
            return int(values.get("numel", 0)) * (kernel.numel() // kernel.shape[0])
    if node.target in _PRODUCTS:
        left = node.args[-2]
        if isinstance(left, fx.Node):
            shape = (
                constants[str(left.target)].shape
                if left.op == "get_attr"
                else _meta(left).get("shape", (1,))
            )
            return numel * int(shape[-1])
    return _PASS * numel


def _meta(node: Any) -> dict[str, Any]:
    return node.meta if isinstance(node, fx.Node) else {}
