"""Less memory for more time: the activations between a network's blocks are kept, no others.

A backward pass needs every activation; a deep network at a large picture has many. Here only what
enters a block is kept, and the block runs again when its turn comes (Chen et al. 2016): about one
forward pass more a product, memory near the square root. J·v runs on dual numbers, which need no
activations at all.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from eigenexp.errors import ModelError

__all__ = ["recomputing", "segments"]


def segments(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are run again as one, none inside another.

    They are members of ``nn.Sequential`` or ``nn.ModuleList`` with modules of their own, of the
    depth at which their number comes nearest to the square root of that of all layers, where the
    inputs of all and the activations of one take the least together. An ``nn.Sequential`` of plain
    layers is one itself, and cut up when it runs.
    """
    cut = _cut_blocks(model)
    found: dict[int, tuple[nn.Module, int]] = {}

    def visit(module: nn.Module, depth: int, listed: bool) -> None:
        is_block = listed and any(True for _ in module.children()) and id(module) not in cut
        if is_block and id(module) not in found:
            found[id(module)] = (module, depth)
        is_list = isinstance(module, (nn.Sequential, nn.ModuleList))
        for child in module.children():
            visit(child, depth + is_block, is_list)

    visit(model, 0, False)
    leaves = sum(not any(True for _ in m.children()) for m in model.modules())
    levels = sorted({depth for _, depth in found.values()})
    choices = [_level(found, level) for level in levels]
    choices += [[m for m in model.modules() if _is_plain(m) and id(m) not in cut]]
    usable = [choice for choice in choices if choice]
    if not usable:
        return []
    wanted = math.sqrt(leaves)
    return min(usable, key=lambda choice: abs(math.log(_pieces(choice) / wanted)))


def _level(found: dict[int, tuple[nn.Module, int]], level: int) -> list[nn.Module]:
    """Return the blocks of one depth, and those above it that hold no others."""
    blocks = []
    for module, depth in found.values():
        holds = any(id(m) in found for m in module.modules() if m is not module)
        if depth == level or (depth < level and not holds):
            blocks.append(module)
    return blocks


def _is_plain(module: nn.Module) -> bool:
    children = list(module.children())
    plain = all(not any(True for _ in child.children()) for child in children)
    return isinstance(module, nn.Sequential) and len(children) >= 4 and plain


def _pieces(blocks: list[nn.Module]) -> float:
    return float(sum(math.isqrt(len(list(m.children()))) if _is_plain(m) else 1 for m in blocks))


def _cut_blocks(model: nn.Module) -> set[int]:
    """Return the ids of modules a forward pass may end inside of: they never run as one."""
    from eigenexp.models.layers import LayerOutput

    cut = set()
    for module in model.modules():
        if isinstance(module, LayerOutput):
            names = module.layer.split(".")
            for length in range(len(names)):
                cut.add(id(module.model.get_submodule(".".join(names[:length]))))
    return cut


@contextlib.contextmanager
def recomputing(model: Callable[..., Any]) -> Iterator[None]:
    """Let the graphs of forward passes in here keep the inputs of blocks only.

    Raises
    ------
    ModelError
        When the model is no module, or has no blocks to be found.
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"recompute: expected a torch.nn.Module, whose blocks can be found, got "
            f"{type(model).__name__}; pass the module, or leave recompute out"
        )
    blocks = segments(module)
    if not blocks:
        raise ModelError(
            f"recompute: expected blocks in nn.Sequential or nn.ModuleList, found none in "
            f"{type(module).__name__}; use torch.utils.checkpoint in its forward"
        )
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = _rerun(block)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = forward


def _rerun(block: nn.Module) -> Callable[..., Any]:
    if not _is_plain(block):
        return functools.partial(_checkpoint, block.forward)
    layers = list(block.children())
    size = math.ceil(len(layers) / max(1, math.isqrt(len(layers))))
    pieces = [nn.Sequential(*layers[i : i + size]) for i in range(0, len(layers), size)]

    def forward(x: Any) -> Any:
        for piece in pieces:
            x = _checkpoint(piece, x)
        return x

    return forward


def _checkpoint(function: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*inputs, **named)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
