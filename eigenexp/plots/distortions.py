"""Pictures of distortions: alone, and added to the picture they distort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.plots.panels import Look, draw, limits_within, make_panels, own_axes
from eigenexp.plots.pixels import Range, peak, picture_range, select, show_array, to_float
from eigenexp.spectrum import PairStatus, Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["distortion_figure", "eigendistortion_imshow_all", "plot_distortion"]

ENDS = (0, -1)
"""plenoptic's default choice of distortions; after ``randomized_svd`` it means the ends found."""


class Synthesized(Protocol):
    """What figures read of an ``Eigendistortion``."""

    @property
    def image(self) -> Tensor: ...
    @property
    def spectrum(self) -> Spectrum | None: ...
    @property
    def eigendistortions(self) -> Tensor | None: ...
    @property
    def eigenvalues(self) -> Tensor | None: ...
    @property
    def eigenindex(self) -> Tensor | None: ...


def distortion_figure(
    spectrum: Spectrum,
    image: Tensor,
    *,
    pairs: Sequence[int] | None = None,
    scale: float | Sequence[float] | None = None,
    channel: int | None = None,
    title: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Show the picture, each distortion, and the picture plus each scaled distortion.

    Every distortion carries its index in the whole spectrum, its eigenvalue and its scale; one
    that is not proven carries its status too. Distortions are shown in a symmetric range (zero is
    mid-gray), sums in the range of the picture; what falls outside is clipped, and its share is
    written below.

    Parameters
    ----------
    spectrum
        ``k`` eigenpairs; eigenvectors in the picture's shape, or flat.
    image
        The picture: ``(1, C, H, W)``, ``(C, H, W)``, ``(H, W)`` or ``(n,)``. One channel is gray,
        three are colour, any other number is a mosaic of channels; 1-D pictures are drawn as lines.
    pairs
        Places in the spectrum's list, negative from the end; by default all, at most the first and
        last five.
    scale
        Factor of the unit-norm distortion in the sum, one for all or one a pair. By default one
        for all, of which the root mean square is 5 % of the picture's range.
    channel
        Show this channel alone, in gray.
    title
        Above the figure.
    axes
        ``2 · (number of pairs) + 1`` axes to draw in: the picture, then each distortion, then each
        sum.

    Returns
    -------
    figure
        Not shown and not saved.

    Raises
    ------
    InputError
        When a pair or channel does not exist, or lengths or shapes do not fit.
    """
    chosen = _default_pairs(len(spectrum)) if pairs is None else list(pairs)
    picture = to_float(image)
    for i in chosen:
        if select(spectrum, i).numel() != picture.size:
            raise InputError(
                f"image: expected {select(spectrum, i).numel()} values, as each distortion has, "
                f"got {picture.size}; give the picture solved for"
            )
    shown_range = picture_range(show_array(picture, channel))
    scales = _scales(scale, len(chosen), picture.size, shown_range)
    figure, panels = make_panels(len(chosen), axes, show_array(picture, channel))
    draw(panels[0], show_array(picture, channel), shown_range, "picture")
    for place, i in enumerate(chosen):
        plot_distortion(spectrum, i, image_shape=tuple(image.shape), channel=channel,
                        ax=panels[1 + place])  # fmt: skip
        plot_distortion(spectrum, i, image=image, scale=scales[place], channel=channel,
                        ax=panels[1 + len(chosen) + place])  # fmt: skip
    if title is not None:
        figure.suptitle(title)
    return figure


def plot_distortion(
    spectrum: Spectrum | Synthesized,
    i: int = 0,
    image: Tensor | None = None,
    *,
    scale: float | None = None,
    image_shape: Sequence[int] | None = None,
    channel: int | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    as_rgb: bool | None = None,
    cmap: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    zoom: float = 1.0,
    **imshow_options: Any,
) -> Axes:
    """Show one distortion alone, or, with ``image``, added to the picture.

    Parameters
    ----------
    spectrum, i
        A spectrum and the pair's place in its list, negative from the end; or a synthesized
        ``Eigendistortion`` and the pair's index in the whole spectrum, as for
        :func:`eigendistortion_imshow_all`.
    image
        The picture to add it to.
    scale
        Factor of the unit-norm distortion in the sum; see :func:`distortion_figure`.
    image_shape
        Shape of the picture where eigenvectors are flat and no ``image`` is given.
    channel
        Show this channel alone.
    ax
        Axes to draw in; a new figure otherwise (``ax.figure``).
    title
        In place of the index and eigenvalue.
    as_rgb
        Whether channels are colours: by default where there are three.
    cmap
        Colour map of what has no colours; gray by default.
    vmin, vmax
        Values shown as black and white.
    zoom
        Factor of the size of a new figure.
    **imshow_options
        Of matplotlib's ``imshow``.

    Returns
    -------
    ax
        The axes drawn in.

    Raises
    ------
    InputError
        When there is no such pair or channel, or shapes do not fit.
    """
    if not isinstance(spectrum, Spectrum):
        found = spectrum.spectrum
        if found is None:
            raise InputError("eigendistortion: expected a synthesized one; call synthesize() first")
        n = spectrum.image.numel()
        image_shape = tuple(spectrum.image.shape) if image_shape is None else image_shape
        (i,) = _found_places(found.eigenindex.tolist(), int(i), n)
        spectrum = found
    look = Look(channel, as_rgb, cmap, imshow_options)
    vector = select(spectrum, i)
    index = int(spectrum.eigenindex[i])
    if image is None:
        shown = look.array(vector if image_shape is None else vector.reshape(tuple(image_shape)))
        largest = peak(shown[np.isfinite(shown)])
        limits = limits_within(Range(-largest, largest), vmin, vmax)
        ax = own_axes(ax, shown, zoom)
        draw(ax, shown, limits, _pair_title(spectrum, i) if title is None else title, look=look)
        if shown.ndim > 1:
            ax.set_xlabel(f"±{largest:.2g}", fontsize="small")
        return ax
    picture = to_float(image)
    own_range = picture_range(look.array(picture))
    factor = _scales(scale, 1, picture.size, own_range)[0]
    total = look.array(picture + factor * to_float(vector.reshape(image.shape)))
    limits = limits_within(own_range, vmin, vmax)
    ax = own_axes(ax, total, zoom)
    label = f"picture + {factor:g} × e[{index}]" if title is None else title
    draw(ax, total, limits, label, under=look.array(picture), look=look)
    clipped = limits.clipped(total[np.isfinite(total)])
    if total.ndim > 1 and clipped > 0:
        ax.set_xlabel(f"{max(100 * clipped, 0.1):.2g} % clipped", fontsize="small")
    return ax


def eigendistortion_imshow_all(
    eigendistortion: Synthesized,
    eigenindex: int | Sequence[int] | Tensor = ENDS,
    channel_idx: int | None = None,
    distortion_scale: float | Sequence[float] = 5.0,
    process_image: Callable[[Tensor], Tensor] | None = None,
    process_distortion: Callable[[Tensor], Tensor] | None = None,
    suptitle: str | None = "Eigendistortions",
    suptitle_kwargs: dict[str, Any] | None = None,
    *,
    axes: Sequence[Axes] | None = None,
    vrange: tuple[float, float] | str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    zoom: float | None = None,
    title: str | Sequence[str] | None = None,
    as_rgb: bool | None = None,
    cmap: Any = None,
    **imshow_options: Any,
) -> Figure:
    """Show distortions (upper row) and the picture plus each scaled distortion (lower row).

    Parameters
    ----------
    eigendistortion
        A synthesized ``Eigendistortion``.
    eigenindex
        Which of its eigendistortions, by their index in the whole spectrum: 0 is the largest, −1
        (or n − 1) the smallest. By default 0 and −1; after ``randomized_svd``, which finds no
        small ones, 0 and k − 1.
    channel_idx
        Show this channel alone, in gray; by default three channels are shown in colour, and any
        number but one and three as a mosaic.
    distortion_scale
        Factor of the distortion in the sum, one for all or one a distortion.
    process_image, process_distortion
        Applied to what is shown in the lower and in the upper row, ``(1, C, H, W)``: undo a
        normalisation, say. A processed distortion is shown as a picture, in its own range.
    suptitle, suptitle_kwargs
        Title above all panels and matplotlib's arguments for it.
    axes
        ``2 · (number of distortions) + 1`` axes: the picture, then distortions, then sums.
    vrange
        Values shown as black and white in the lower row; by default [0, 1] for pictures inside
        it, else the picture's own range. plenoptic's names of ranges mean the default here.
    vmin, vmax
        The same, one by one.
    zoom
        Factor of the size of every panel.
    title
        In place of what is said above the panels: one for all, or one a panel, in the order of
        ``axes``.
    as_rgb
        Whether channels are colours: by default where there are three.
    cmap
        Colour map of what has no colours; gray by default.
    **imshow_options
        Of matplotlib's ``imshow``.

    Returns
    -------
    figure
        Not shown and not saved.

    Raises
    ------
    InputError
        When nothing is synthesized yet, an index was not found, or lengths differ.
    """
    vectors, values = eigendistortion.eigendistortions, eigendistortion.eigenvalues
    index = eigendistortion.eigenindex
    if vectors is None or values is None or index is None:
        raise InputError("eigendistortion: expected a synthesized one; call synthesize() first")
    image = eigendistortion.image.detach()
    chosen = _found_places(index.tolist(), eigenindex, image.numel())
    scales = _scales(distortion_scale, len(chosen), image.numel(), Range(0.0, 1.0))
    look = Look(channel_idx, as_rgb, cmap, imshow_options)
    word = "picture" if process_image is None else "processed picture"
    process = process_image or (lambda x: x)
    picture = look.array(process(image))
    limits = picture_range(picture)
    if vrange is not None and not isinstance(vrange, str):
        limits = Range(*vrange)
    limits = limits_within(limits, vmin, vmax)
    figure, panels = make_panels(len(chosen), axes, picture, 1.0 if zoom is None else zoom)
    titles = _titles(title, len(panels))
    draw(panels[0], picture, limits, titles.get(0, word), look=look)
    for place, i in enumerate(chosen):
        vector = vectors[i].reshape(image.shape)
        label = f"eigendistortion {int(index[i])}\nλ = {float(values.reshape(-1)[i]):.4g}"
        upper, lower = panels[1 + place], panels[1 + len(chosen) + place]
        if process_distortion is None:
            shown = look.array(vector)
            largest = peak(shown[np.isfinite(shown)])
            label = titles.get(1 + place, label)
            draw(upper, shown, Range(-largest, largest), label, look=look)
            if shown.ndim > 1:
                upper.set_xlabel(f"±{largest:.2g}", fontsize="small")
        else:
            shown = look.array(process_distortion(vector))
            label = titles.get(1 + place, f"processed {label}")
            draw(upper, shown, picture_range(shown), label, look=look)
        total = look.array(process(image + scales[place] * vector))
        label = f"{word} + {scales[place]:g} × e[{int(index[i])}]"
        label = titles.get(1 + len(chosen) + place, label)
        draw(lower, total, limits, label, under=picture, look=look)
    if suptitle:
        figure.suptitle(suptitle, **(suptitle_kwargs or {}))
    return figure


def _default_pairs(k: int) -> list[int]:
    return list(range(k)) if k <= 10 else [*range(5), *range(k - 5, k)]


def _titles(title: str | Sequence[str] | None, count: int) -> dict[int, str]:
    """Return the titles given, by panel."""
    if title is None:
        return {}
    titles = [title] * count if isinstance(title, str) else list(title)
    if len(titles) != count:
        raise InputError(
            f"title: expected one for all or {count}, one a panel (the picture, distortions, "
            f"sums), got {len(titles)}"
        )
    return dict(enumerate(titles))


def _found_places(found: list[int], wanted: int | Sequence[int] | Tensor, n: int) -> list[int]:
    """Return where the wanted indices of the whole spectrum (negative from its end) are held."""
    if wanted is ENDS and n - 1 not in found:
        return list(dict.fromkeys([0, len(found) - 1]))
    listed: Any = wanted.tolist() if isinstance(wanted, Tensor) else wanted
    places = []
    for i in [listed] if isinstance(listed, int) else listed:
        place = int(i) + n if i < 0 else int(i)
        if place not in found:
            held = ", ".join(str(j) for j in found[:10]) + (", ..." if len(found) > 10 else "")
            raise InputError(
                f"eigenindex: expected indices in the whole spectrum that were found ({held}; n = "
                f"{n}), got {int(i)}; synthesize it first"
            )
        places.append(found.index(place))
    return places


def _scales(scale: float | Sequence[float] | None, count: int, n: int, shown: Range) -> list[float]:
    if scale is None:
        wanted = 0.05 * shown.width * math.sqrt(n)  # root mean square: 5 % of black to white
        return [float(f"{wanted:.2g}")] * count
    if isinstance(scale, int | float):
        return [float(scale)] * count
    scales = [float(s) for s in scale]
    if len(scales) != count:
        raise InputError(
            f"scale: expected one number or {count}, one a distortion, got {len(scales)}"
        )
    return scales


def _pair_title(spectrum: Spectrum, i: int) -> str:
    index, n = int(spectrum.eigenindex[i]), spectrum.order
    place = {0: " (largest)", n - 1: " (smallest)"}.get(index, "") if n > 1 else ""
    status = spectrum.status[i]
    doubt = "" if status is PairStatus.CONVERGED else f", {status.value}"
    return f"index {index}{place}\nλ = {spectrum.known[i]}{doubt}"
