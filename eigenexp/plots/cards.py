"""A spectrum card as a figure: eigenvalues by their size, and the sensitivity of every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.plots.pixels import show_array, to_float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["card_figure"]


def card_figure(
    card: Any, sensitivity: Tensor | None = None, *, title: str | None = None
) -> Figure:
    """Show how many eigenvalues F has of every size, and √λ of a change of one pixel alone.

    Parameters
    ----------
    card
        From :func:`eigenexp.spectrum_card`, or its record.
    sensitivity
        The diagonal of F in the picture's shape, for a record; a card has its own.
    title
        Above the panels.

    Raises
    ------
    InputError
        When the record has no density.
    """
    from matplotlib.figure import Figure

    record = card if isinstance(card, Mapping) else card.as_record()
    if sensitivity is None and not isinstance(card, Mapping) and card.sensitivity_map is not None:
        sensitivity = card.sensitivity_map.value
    density: Any = record.get("density")
    try:
        given: Any = {key: np.asarray(value, dtype=float) for key, value in density.items()}
        edges, count, low, high = (given[key] for key in ("edges", "count", "low", "high"))
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise InputError("card: expected a density of eigenvalues, got none") from error
    with_map = sensitivity is not None and sensitivity.ndim >= 2
    figure = Figure(figsize=(10.0 if with_map else 5.5, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 2 if with_map else 1, squeeze=False)[0]
    ax = panels[0]
    ax.stairs(count, edges, color="C0", fill=True, alpha=0.5)
    middle = (edges[1:] + edges[:-1]) / 2
    off = np.clip(np.stack([count - low, high - count]), 0, None)
    ax.errorbar(middle, count, yerr=off, linestyle="none", color="C0", capsize=2, linewidth=1)
    ax.set_xlabel("log₁₀ λ (leftmost: that or smaller)")
    ax.set_ylabel("eigenvalues")
    if with_map and sensitivity is not None:
        values = np.sqrt(np.clip(to_float(sensitivity), 0, None))
        while values.ndim > 3:
            values = values[0]
        # Channels add up: a change of all of one pixel.
        shown = np.sqrt(np.square(values).sum(axis=0)) if values.ndim == 3 else show_array(values)
        drawn = panels[1].imshow(shown, cmap="magma", vmin=0)
        panels[1].set_xticks([])
        panels[1].set_yticks([])
        panels[1].set_title("sensitivity of each pixel, √diag F", fontsize="medium")
        figure.colorbar(drawn, ax=panels[1], shrink=0.8)
    if title is not None:
        figure.suptitle(title)
    return figure
