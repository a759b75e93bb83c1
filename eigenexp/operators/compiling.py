"""Products through ``torch.compile``, believed only when they equal those without it."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eigenexp.errors import summary

if TYPE_CHECKING:
    from eigenexp.operators.route import Route

__all__ = ["compile_route"]


def compile_route(route: Route, vector: Tensor, cotangent: Tensor, slack: float) -> Route:
    """Return the route with both products compiled, or as it was, with a warning why.

    Parameters
    ----------
    route
        A taped route; others run foreign code, which is left alone.
    vector, cotangent
        What the compiled products are checked with.
    slack
        Relative difference allowed to the products that are not compiled.
    """
    try:
        if not route.taped:
            raise _NotCompiledError(f"route {route.name!r} has no tape")
        compiled = replace(
            route,
            push=torch.compile(_apart(route.push), fullgraph=True),
            pull=torch.compile(_apart(route.pull), fullgraph=True),
            width=0,  # a compiled function is not batched by a transform
        )
        for name, given in (("push", vector), ("pull", cotangent)):
            with route.running():
                eager = getattr(route, name)(given)
                fast = getattr(compiled, name)(given)
                again = getattr(compiled, name)(given)
            if not bool((eager - fast).norm() <= slack * eager.norm()):
                raise _NotCompiledError(f"{name} differs from the product without it")
            if not torch.equal(fast, again):
                raise _NotCompiledError(f"{name} computed twice differs")
        return compiled
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in every way there is
        reason = str(error) if isinstance(error, _NotCompiledError) else summary(error)
    warnings.warn(f"compile: not used, going on without it ({reason})", stacklevel=4)
    return route


def _apart(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the product as a function with a code object of its own.

    The compiler keeps what it made by code object, and gives up after eight that differ. Tapes of
    one class share theirs: the fifth picture of a study would run without it.
    """

    def replay(vector: Tensor) -> Tensor:
        return product(vector)

    return types.FunctionType(replay.__code__.replace(), globals(), closure=replay.__closure__)


class _NotCompiledError(Exception):
    """Compiled products that cannot be used."""
