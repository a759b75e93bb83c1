"""Going on with a solve in another precision: a fresh search that starts from the vectors found.

A search space of float32 vectors is neither orthogonal nor closed under F to float64's rounding, so
its state cannot be continued; its best vectors can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from eigenexp.eigensolvers import Eigensolver, FisherLike, make_solver
from eigenexp.errors import CheckpointError

__all__ = ["recast_solver", "state_dtype"]

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}


def recast_solver(
    operator: FisherLike, settings: Mapping[str, Any], state: Mapping[str, Any]
) -> Eigensolver:
    """Return a solver in the operator's dtype that starts from the vectors of a saved state.

    Products told before count on, so that budgets and curves do.

    Parameters
    ----------
    operator
        What the new solver is driven with.
    settings
        As for :func:`~eigenexp.eigensolvers.make_solver`.
    state
        ``state_dict()`` of a solver with the same settings in another dtype.

    Raises
    ------
    CheckpointError
        When the state is of another size or method.
    """
    dtype = state_dtype(state)
    problem = operator.problem
    before = make_solver(replace(problem, dtype=dtype), **settings)
    before.load_state_dict(state)
    before.embedding = None  # coordinates are gone on from, not pictures
    found = before.result().eigenvectors.flatten(1).mT
    start = found.to(dtype=problem.dtype, device=problem.device)
    if problem.start is not None:
        start = torch.cat([start, problem.start], dim=1)
    solver = make_solver(replace(problem, start=start), **settings)
    solver.load_state_dict(_counted(solver.state_dict(), _inner(state)))
    return solver


def state_dtype(state: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype a solver's state was saved in.

    Raises
    ------
    CheckpointError
        When it says none.
    """
    name = _inner(state).get("dtype")
    dtype = _DTYPES.get(str(name))
    if dtype is None:
        raise CheckpointError(
            f"state: expected the dtype torch.float32 or torch.float64, got {name!r}; use a "
            "checkpoint written by eigenexp"
        )
    return dtype


def _inner(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of the method that ``auto`` chose, or the state itself."""
    chosen = state.get("chosen", state)
    return chosen if isinstance(chosen, Mapping) else state


def _counted(fresh: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fresh state that counts on from an earlier one."""
    counts = {key: before[key] for key in ("num_products", "num_verification_products")}
    if "chosen" in fresh:
        return {**fresh, "chosen": {**fresh["chosen"], **counts}}
    return {**fresh, **counts}
