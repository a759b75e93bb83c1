"""``auto``: the method that needs the fewest products for the problem at hand, and why."""

from __future__ import annotations

from typing import Any

from eigenexp.eigensolvers.base import Eigensolver
from eigenexp.eigensolvers.davidson import Davidson
from eigenexp.eigensolvers.exact import Exact
from eigenexp.eigensolvers.lanczos import Lanczos
from eigenexp.eigensolvers.null_space import NullSpace
from eigenexp.eigensolvers.settings import Settings

__all__ = ["auto", "choose_method"]

CROWDED = 8
"""A pair of an end costs about this many products or more: with n / 8 wanted, J is cheaper."""
SMALLEST_PICTURE = 8
"""Side in pixels below which frequencies are too few to tell anything."""

_KINDS: dict[str, type[Eigensolver]] = {
    kind.name: kind for kind in (Lanczos, Davidson, Exact, NullSpace)
}


def choose_method(settings: Settings) -> tuple[str, str]:
    """Return the method for a problem and the reason, a sentence.

    Parameters
    ----------
    settings
        What is asked; ``image_shape`` tells a picture from a bare vector, ``rank_bound`` a null
        space.
    """
    n, shape = settings.n, settings.image_shape or (settings.n,)
    wanted = len(settings.wanted)
    null = n - min(n, settings.rank_bound or n)
    if settings.which == "bottom" and settings.k <= null:
        return "null_space", (
            f"the model has fewer responses than the picture has values: {null} dimensions are "
            "null, whose vectors need no search"
        )
    if wanted * CROWDED >= n:
        return "exact", f"{wanted} of {n} eigenpairs are wanted: the dense Jacobian costs less"
    if settings.which == "top":
        return "lanczos", "only the top is wanted, where a Krylov space needs the fewest products"
    if len(shape) >= 2 and min(shape[-2:]) >= SMALLEST_PICTURE:
        return "davidson", (
            "the bottom is wanted, where eigenvalues crowd, and F of a picture can be "
            "preconditioned"
        )
    return "lanczos", "the input is no picture, so nothing is known to precondition F with"


def auto(n: int, **settings: Any) -> Eigensolver:
    """Return a solver by the method that serves the problem best.

    :func:`choose_method` decides from n, m, k, the ends and the picture's shape before the first
    product; ``davidson`` then decides from its products how far to trust its preconditioner. The
    choice and its reason are the first of the spectrum's ``notes``.

    Parameters
    ----------
    n, settings
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`.
    """
    asked = {
        name: settings[name]
        for name in ("k", "which", "image_shape", "rank_bound")
        if name in settings
    }
    embedding = settings.get("embedding")
    if embedding is not None:
        asked["image_shape"] = embedding.picture_shape
    chosen, reason = choose_method(Settings(n=n, **asked))
    solver = _KINDS[chosen](n, **settings)
    solver.choice = f"auto chose {chosen}: {reason}"
    return solver
