"""Panels of pictures: how many, how large, and what is drawn in one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.plots.pixels import Array, Range, show_array, to_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LOOK", "Look", "draw", "limits_within", "make_panels", "own_axes"]

PANEL = 2.3  # inches a picture
MOST_COLUMNS = 5  # distortions beside one another before a new band of rows starts


@dataclass(frozen=True)
class Look:
    """How values are drawn.

    Attributes
    ----------
    channel
        Show this channel alone, in gray.
    as_rgb
        Whether channels are colours; None where there are three.
    cmap
        Colour map of what has no colours.
    options
        Further arguments of matplotlib's ``imshow``.
    """

    channel: int | None = None
    as_rgb: bool | None = None
    cmap: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def array(self, tensor: Tensor | Array) -> Array:
        """Return what is shown of a picture or distortion."""
        values = to_float(tensor) if isinstance(tensor, Tensor) else tensor
        return show_array(values, self.channel, as_rgb=self.as_rgb)


LOOK = Look()


def limits_within(own: Range, vmin: float | None, vmax: float | None) -> Range:
    """Return the range shown: ``own``, but for the ends given."""
    return Range(own.low if vmin is None else vmin, own.high if vmax is None else vmax)


def _size(shown: Array) -> tuple[float, float]:
    """Width and height in inches of one panel, title not counted."""
    if shown.ndim == 1:
        return 1.4 * PANEL, PANEL
    height, width = shown.shape[:2]
    ratio = min(max(width / height, 0.4), 2.5)
    return (PANEL, PANEL / ratio) if ratio >= 1 else (max(PANEL * ratio, 1.6), PANEL)


def own_axes(ax: Axes | None, shown: Array, zoom: float) -> Axes:
    """Return ``ax``, or the axes of a new figure that fits what is shown."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    width, height = _size(shown)
    size = (zoom * width * 1.3, zoom * height * 1.3 + 0.6)
    return Figure(figsize=size, layout="constrained").subplots()


def make_panels(
    count: int, axes: Sequence[Axes] | None, shown: Array, zoom: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its 1 + 2·count axes: the picture, the distortions, the sums."""
    if count < 1:
        raise InputError("pairs: expected at least one pair to show, got none")
    if axes is not None:
        given: list[Any] = list(np.asarray(axes, dtype=object).ravel())
        if len(given) != 1 + 2 * count:
            raise InputError(
                f"axes: expected {1 + 2 * count} (the picture, {count} distortions, {count} sums), "
                f"got {len(given)}"
            )
        figure: Any = given[0].get_figure(root=True)
        return figure, given
    from matplotlib.figure import Figure

    bands = math.ceil(count / MOST_COLUMNS)
    columns = math.ceil(count / bands)
    width, height = (zoom * side for side in _size(shown))
    size = ((columns + 1) * (width + 0.15), bands * 2 * (height + 0.55) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(2 * bands, columns + 1)
    first = figure.add_subplot(grid[1, 0])
    spots = [(2 * (j // columns), 1 + j % columns) for j in range(count)]
    upper = [figure.add_subplot(grid[row, column]) for row, column in spots]
    lower = [figure.add_subplot(grid[row + 1, column]) for row, column in spots]
    return figure, [first, *upper, *lower]


def draw(
    ax: Axes,
    shown: Array,
    limits: Range,
    title: str,
    under: Array | None = None,
    look: Look = LOOK,
) -> None:
    """Draw one panel: gray, colour, or a line for 1-D values (``under`` in gray behind it)."""
    ax.set_title(title, fontsize="medium")
    if shown.ndim == 1:
        if under is not None:
            ax.plot(under, color="0.6", linewidth=1)
        ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        ax.plot(shown, color="C0", linewidth=1)
        ax.margins(x=0)
        ax.set_xlabel("place", fontsize="small")
        return
    # Only what is finite is normalised: a mosaic's gaps are NaN and stay the colour of the page.
    drawn = shown if shown.ndim == 2 else limits.normalize(shown)
    options = {"interpolation": "nearest", **look.options}
    cmap = "gray" if look.cmap is None else look.cmap
    ax.imshow(drawn, cmap=cmap, vmin=limits.low, vmax=limits.high, **options)
    ax.set_xticks([])
    ax.set_yticks([])
