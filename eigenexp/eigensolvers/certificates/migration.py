"""States of version 1 in the form of today: what was found is kept, searches are made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["migrated_state"]


def migrated_state(
    method: str, state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a method's own state, and its search space or None, from a state of version 1.

    Parameters
    ----------
    method
        Its name.
    state
        What the method exported then.
    """
    return _WAYS[method](state)


def _lanczos(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    basis, candidates = state["basis"], state["candidates"]
    projected, couplings = state["projected"], state["couplings"]
    main = {
        "basis": basis,
        "projected": projected,
        "candidates": candidates,
        "couplings": couplings,
        "largest": float(state["scale"]),
    }
    if state["phase"] == "searching":
        return main, None
    # F V = V T + Q C
    products = projected.to(basis).mT @ basis + couplings.to(basis).mT @ candidates
    empty = {
        "basis": basis[:0],
        "projected": projected[:0, :0],
        "candidates": candidates[:0],
        "couplings": couplings[:0, :0],
        "largest": 0.0,
    }
    return empty, {"basis": basis, "products": products, "projected": projected}


def _davidson(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    names = ("krylov", "probes_left", "probed", "waiting", "guessed", "surrogate", "inner")
    main = {name: state[name] for name in (*names, "refits")}
    # The modulated convolution was the only surrogate.
    main |= {"pixel": None, "settled": state["surrogate"] is not None}
    return main, dict(state["space"])


def _power(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    # Products of the pairs were not kept: one more iteration brings them.
    main = {
        "following": dict(state["vectors"]),
        "values": state["values"],
        "residuals": state["residuals"],
        "shift": float(state["shift"]),
        "best": float(state["best"]),
        "since_best": int(state["since_best"]),
    }
    for name in ("samples", "since_check", "checked_best", "without_gain"):
        if name in state:
            main[name] = state[name]
    return main, None


def _sketch(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    main = {
        "block": state["block"],
        "ritz": state["ritz"],
        "rounds": int(state["rounds"]),
        "step": str(state["phase"]),
        "missed": state["missed"],
        "best": float(state["best"]),
        "since_best": int(state["since_best"]),
    }
    return main, None


_WAYS = {
    "lanczos": _lanczos,
    "davidson": _davidson,
    "power": _power,
    "stochastic": _power,
    "randomized_svd": _sketch,
}
