"""Products of whole blocks of columns from products of single vectors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from eigenexp.operators.route import Route

__all__ = ["Blocks", "out_of_memory"]

Function = Callable[[Tensor], tuple[Tensor, ...]]

# Bytes of the largest intermediate result over all columns of a batch. On a CPU a batch pays while
# it stays in the cache (it saves the cost of calling, not of computing): measured on small OnOffs
# and convolutional nets, half to a fifth of the time a column. An accelerator wants much at once.
CPU_BATCH_BYTES = 2**20
ACCELERATOR_BATCH_BYTES = 2**28


class Blocks:
    """Applies functions of one vector to the rows of a batch, several at once where it pays.

    Parameters
    ----------
    route
        Where the products come from.
    vector, cotangent
        Examples of what ``push`` and ``pull`` take.
    chunk_size
        Rows at once; ``None`` to choose by the size of the intermediate results. One by one
        whatever is asked where the operations of this model cannot be batched.

    Attributes
    ----------
    chunk_size
        Rows at once; when memory runs out it is halved until they fit, which one warning says.
    num_products
        Products spent on finding out whether batches work.
    """

    def __init__(
        self, route: Route, vector: Tensor, cotangent: Tensor, chunk_size: int | None
    ) -> None:
        self._route = route
        self.chunk_size = 1
        self.num_products = 0
        if route.width == 0:
            return
        on_cpu = vector.device.type == "cpu"
        budget = CPU_BATCH_BYTES if on_cpu else ACCELERATOR_BATCH_BYTES
        column = route.width * vector.element_size()
        wanted = max(1, budget // column) if chunk_size is None else chunk_size
        if wanted > 1:
            self.num_products = 6
            if _batches(route, route.push, vector) and _batches(route, route.pull, cotangent):
                self.chunk_size = wanted

    def apply(self, function: Function, rows: Tensor) -> tuple[Tensor, ...]:
        """Return ``function`` of each row of ``rows`` ``(b, ...)`` as columns: ``(size, b)`` each.

        The columns are contiguous: strides decide which kernels a solver's own arithmetic runs by,
        and with them its last bits.
        """
        parts = list(self.iterate(function, len(rows), lambda start, stop: rows[start:stop]))
        with torch.inference_mode(False), torch.no_grad():
            return tuple(
                torch.cat(results).reshape(len(rows), -1).T.contiguous()
                for results in zip(*parts, strict=True)
            )

    def iterate(
        self, function: Function, count: int, rows: Callable[[int, int], Tensor]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the results of one chunk after the other; ``rows(start, stop)`` makes a chunk."""
        done, too_many = 0, 0
        while done < count:
            size = min(self.chunk_size, count - done)
            try:
                with self._route.running():
                    chunk = rows(done, done + size)
                    results = call(function, chunk.clone() if chunk.is_inference() else chunk)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                too_many = max(too_many, size)
                self.chunk_size = size // 2
                continue
            if too_many:
                warnings.warn(
                    f"memory ran out with {too_many} columns at once; going on with {size} (pass "
                    f"chunk_size={size} to start there)",
                    stacklevel=2,
                )
                too_many = 0
            done += size
            yield results


def call(function: Function, chunk: Tensor) -> tuple[Tensor, ...]:
    """Return ``function`` of every row of ``chunk``, at once where there are several."""
    if len(chunk) > 1:
        batched: tuple[Tensor, ...] = torch.func.vmap(function)(chunk)
        return batched
    return tuple(result.detach()[None] for result in function(chunk[0]))


def _batches(route: Route, product: Callable[[Tensor], Tensor], vector: Tensor) -> bool:
    """Whether ``product`` gives the same, up to rounding, for two rows at once."""
    rows = torch.stack([vector, vector.flip(0) - 2 * vector])
    try:
        with route.running(), _no_slow_batches():
            together = torch.func.vmap(product)(rows)
            apart = torch.stack([product(row) for row in rows])
    except RuntimeError:
        return False
    slack = 1e4 * torch.finfo(apart.dtype).eps
    return bool((together - apart).norm() <= slack * apart.norm())


@contextlib.contextmanager
def _no_slow_batches() -> Iterator[None]:
    """Let operations that can only be batched by a slow loop raise instead of warn.

    torch has no public switch for it.
    """
    functorch: Any = torch._C._functorch
    enabled = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(enabled)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, here or on a device."""
    exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return exhausted or "can't allocate memory" in str(error)
