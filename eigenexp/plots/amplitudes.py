"""True d′ of distortions over their amplitude, beside the line that F predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eigenexp.errors import InputError
from eigenexp.plots.curves import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["amplitude_curves", "amplitude_figure"]


def amplitude_curves(pair: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return what is drawn of a pair: ``+e``, ``−e`` and ``α√λ``, points with both values above 0.

    Parameters
    ----------
    pair
        One of the ``pairs`` of :meth:`eigenexp.analysis.Amplitude.as_record`; numbers that a
        foreign one lacks are left out.
    """
    found: dict[str, list[tuple[float, float]]] = {"+e": [], "−e": [], "α√λ": []}
    points = pair.get("curve")
    threshold: Any = pair.get("threshold")
    for point in points if isinstance(points, Sequence) else ():
        if not (isinstance(point, Sequence) and len(point) == 3 and _is_number(point[0])):
            continue
        alpha = float(point[0])
        linear = alpha / float(threshold) if _is_number(threshold) else None
        for name, value in zip(found, (point[1], point[2], linear), strict=True):
            if _is_number(value) and alpha > 0:
                found[name].append((alpha, float(value)))
    return found


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and value > 0


def amplitude_figure(
    amplitude: Any,
    *,
    pairs: Sequence[int] = (0, -1),
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Show true d′ of ±αe (filled +, open −) over α, and α√λ (line), on logarithmic axes.

    A vertical dotted line marks the validity radius of each pair.

    Parameters
    ----------
    amplitude
        From :func:`eigenexp.amplitude`, or its record.
    pairs
        Places in the list of pairs, negative from the end.
    title
        Above the axes.
    ax
        Axes to draw in; a new figure otherwise.

    Raises
    ------
    InputError
        When there is no such pair.
    """
    record = amplitude if isinstance(amplitude, Mapping) else amplitude.as_record()
    given = list(record["pairs"])
    count = len(given)
    wrong = [place for place in pairs if not -count <= place < count]
    if wrong:
        raise InputError(f"pairs: expected places in {count} pairs, got {wrong[0]}")
    figure, ax = new_axes(ax)
    for colour, place in enumerate(dict.fromkeys(place % count for place in pairs)):
        pair = given[place]
        name = f"C{colour}"
        curves = amplitude_curves(pair)
        for sign, fill in (("+e", name), ("−e", "none")):
            if curves[sign]:
                x, y = zip(*curves[sign], strict=True)
                label = f"index {pair['index']}, {sign}"
                ax.plot(x, y, "o", markersize=4, color=name, mfc=fill, label=label)
        if curves["α√λ"]:
            x, y = zip(*curves["α√λ"], strict=True)
            ax.plot(x, y, color=name, linewidth=1)
        if _is_number(pair.get("validity_radius")):
            ax.axvline(pair["validity_radius"], color=name, linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("α, amplitude (dotted: the validity radius)")
    ax.set_ylabel("d′   (line: α√λ)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
    if title is not None:
        ax.set_title(title)
    return figure
