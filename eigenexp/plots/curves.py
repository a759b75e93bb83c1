"""Curves: the spectrum with its certificate, convergence, and sensitivity along a distortion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.operators.responses import response_values
from eigenexp.plots.pixels import Array, select, to_float
from eigenexp.plots.series import PRODUCTS_TITLE, RESIDUAL_TITLE, residual_series
from eigenexp.spectrum import PairStatus, Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["convergence_figure", "new_axes", "sensitivity", "sensitivity_figure", "spectrum_figure"]

LOWEST_RESIDUAL = 1e-16

STATUS_STYLE: dict[PairStatus, tuple[str, dict[str, Any]]] = {
    PairStatus.CONVERGED: ("converged", {"marker": "o", "color": "C0"}),
    PairStatus.UNVERIFIED: ("unverified", {"marker": "o", "color": "C1", "mfc": "none"}),
    PairStatus.UNCONVERGED: ("unconverged", {"marker": "x", "color": "C3"}),
}


def spectrum_figure(
    spectrum: Spectrum, *, title: str | None = None, ax: Axes | None = None
) -> Figure:
    """Show eigenvalues with their error bounds over their index, marked by status.

    The index axis skips the pairs that were not asked for (a dotted line marks the gap). The
    eigenvalue axis is logarithmic where values span more than a factor of 30; a value of zero then
    sits below a linear stretch at its foot.

    Parameters
    ----------
    spectrum
        At least one pair.
    title
        Above the axes.
    ax
        Axes to draw in; a new figure otherwise.

    Returns
    -------
    figure
        The figure of the axes drawn in.

    Raises
    ------
    InputError
        When the spectrum is empty.
    """
    if len(spectrum) == 0:
        raise InputError("spectrum: expected at least one pair, got none")
    figure, ax = new_axes(ax)
    values, bounds = to_float(spectrum.eigenvalues), to_float(spectrum.error_bounds)
    index = spectrum.eigenindex.tolist()
    places = np.arange(len(values))
    _scale_eigenvalues(ax, values, spectrum.scale)
    for status, (label, style) in STATUS_STYLE.items():
        held = np.array([s is status for s in spectrum.status])
        if held.any():
            ax.errorbar(
                places[held], values[held], yerr=np.where(np.isfinite(bounds), bounds, 0.0)[held],
                linestyle="none", markersize=5, capsize=2, label=label, **style,
            )  # fmt: skip
    for gap in np.flatnonzero(np.diff(index) > 1):
        ax.axvline(gap + 0.5, color="0.7", linestyle=":")
    shown = sorted({int(p) for p in np.linspace(0, len(index) - 1, min(len(index), 8)).round()})
    ax.set_xticks(shown, [str(index[p]) for p in shown])
    ax.set_xlim(-0.5, len(index) - 0.5)
    ax.set_xlabel("index in the whole spectrum")
    ax.set_ylabel("eigenvalue of JᵀJ")
    ax.legend(fontsize="small")
    if ax.get_yscale() == "log":
        # 1/√λ, and back: its own inverse but for the power.
        thresholds = ax.secondary_yaxis("right", functions=(_threshold, _eigenvalue))
        thresholds.set_ylabel("amplitude at d′ = 1")
    if title is not None:
        ax.set_title(title)
    return figure


def _threshold(values: Any) -> Any:
    return np.power(np.clip(values, 1e-300, None), -0.5)


def _eigenvalue(values: Any) -> Any:
    return np.power(np.clip(values, 1e-150, None), -2.0)


def _scale_eigenvalues(ax: Axes, values: Array, scale: float) -> None:
    positive = values[values > 0]
    if not positive.size or positive.max() <= 30 * positive.min():
        return
    if positive.size == values.size:
        ax.set_yscale("log")
        return
    ax.set_yscale("symlog", linthresh=max(float(positive.min()) / 10, 1e-12 * max(scale, 1e-300)))


def convergence_figure(
    history: Mapping[str, Any], *, title: str | None = None, ax: Axes | None = None
) -> Figure:
    """Show the residual of every wanted pair over the products spent, and the tolerance.

    The axis ends at 1e-16: what lies below is an estimate that no product of that precision bears
    out.

    Parameters
    ----------
    history
        Plain lists: ``"products"`` (T numbers, not decreasing), ``"residuals"`` (T rows of one
        ‖Fv − θv‖/λmax a pair, or a mapping of a pair's label to its T values; ``nan`` or ``None``
        where there is none yet), and, if at hand, ``"tol"`` (one number) and ``"eigenindex"`` (one
        label a pair).
    title
        Above the axes.
    ax
        Axes to draw in; a new figure otherwise.

    Returns
    -------
    figure
        The figure of the axes drawn in.

    Raises
    ------
    InputError
        When keys are missing or lengths differ.
    """
    missing = [key for key in ("products", "residuals") if key not in history]
    if missing:
        raise InputError(
            "history: expected the keys 'products' and 'residuals', "
            f"got no {' and no '.join(missing)}"
        )
    figure, ax = new_axes(ax)
    curves = residual_series(history)
    for curve in curves:
        ax.plot(
            curve.products, curve.values, marker=".", markersize=3, linewidth=1, label=curve.label
        )
    if history.get("tol") is not None:
        ax.axhline(float(history["tol"]), color="0.3", linestyle="--", linewidth=1, label="tol")
    ax.set_yscale("log")
    if min((y for curve in curves for y in curve.values), default=1.0) < LOWEST_RESIDUAL:
        ax.set_ylim(bottom=LOWEST_RESIDUAL)
    ax.set_xlabel(PRODUCTS_TITLE)
    ax.set_ylabel(RESIDUAL_TITLE)
    if curves:
        ax.legend(fontsize="small", ncols=2 if len(curves) > 5 else 1)
    if title is not None:
        ax.set_title(title)
    return figure


def sensitivity(
    model: Callable[[Tensor], Any], image: Tensor, vector: Tensor, alphas: Sequence[float] | Tensor
) -> Tensor:
    """Return how far the response moves along a distortion: ‖f(x + αe) − f(x)‖ for each α.

    For small α this is α√λ, where λ = ‖Je‖² is the eigenvalue of the unit vector e. Where it
    leaves that line, the local (Fisher) picture of the model's sensitivity ends.

    Parameters
    ----------
    model
        From a picture to a tensor, or a tuple, list or dict of tensors.
    image
        The picture x, as the model takes it.
    vector
        The distortion e, as many values as the picture; used as given (not normalised).
    alphas
        ``(a,)`` distances α.

    Returns
    -------
    distances
        ``(a,)``, in the units of the response, float64 on the CPU.

    Raises
    ------
    InputError
        When the distortion does not fit the picture.
    """
    if vector.numel() != image.numel():
        raise InputError(
            f"vector: expected {image.numel()} values, as the picture has, got {vector.numel()}"
        )
    e = vector.detach().reshape(image.shape).to(image)
    x = image.detach()
    with torch.no_grad():
        base = _flat_response(model(x))
        steps = [torch.linalg.vector_norm(_flat_response(model(x + float(a) * e)) - base)
                 for a in alphas]  # fmt: skip
    return torch.stack(steps) if steps else torch.zeros(0, dtype=torch.float64)


def _flat_response(response: Any) -> Tensor:
    return response_values(response).to(device="cpu", dtype=torch.float64)


def sensitivity_figure(
    model: Callable[[Tensor], Any],
    image: Tensor,
    spectrum: Spectrum,
    alphas: Sequence[float] | Tensor | None = None,
    *,
    pairs: Sequence[int] = (0, -1),
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Show ‖f(x + αe) − f(x)‖ (dots) beside its prediction α√λ (line) for some distortions.

    Where dots come near it, a dotted line marks the rounding of the response, eps·‖f(x)‖: below it
    nothing can be seen; a float64 picture and model see further.

    Parameters
    ----------
    model, image
        See :func:`sensitivity`.
    spectrum
        Eigenpairs of the model at the picture.
    alphas
        Positive distances; by default 17 from 0.01 to 100, in equal ratios.
    pairs
        Places in the spectrum's list, negative from the end.
    title
        Above the axes.
    ax
        Axes to draw in; a new figure otherwise.

    Returns
    -------
    figure
        The figure of the axes drawn in.

    Raises
    ------
    InputError
        When there is no such pair, or a distance is not positive.
    """
    distances = np.logspace(-2, 2, 17) if alphas is None else np.asarray([float(a) for a in alphas])
    if not (distances > 0).all():
        raise InputError("alphas: expected positive distances (both axes are logarithmic)")
    figure, ax = new_axes(ax)
    chosen = list(dict.fromkeys(i % len(spectrum) if -len(spectrum) <= i < 0 else i for i in pairs))
    with torch.no_grad():
        response = _flat_response(model(image.detach()))
    floor = torch.finfo(image.dtype).eps * float(torch.linalg.vector_norm(response))
    lowest = math.inf
    for color, i in enumerate(chosen):
        moved = to_float(sensitivity(model, image, select(spectrum, i), distances.tolist()))
        value = max(float(spectrum.eigenvalues[i]), 0.0)
        label = f"index {int(spectrum.eigenindex[i])}, λ = {spectrum.known[i]}"
        seen = moved > 0
        lowest = min(lowest, *moved[seen]) if seen.any() else 0.0
        ax.plot(distances[seen], moved[seen], "o", markersize=4, color=f"C{color}", label=label)
        if value > 0:
            ax.plot(distances, distances * value**0.5, color=f"C{color}", linewidth=1)
    if lowest < 10 * floor:
        ax.axhline(floor, color="0.5", linestyle=":", linewidth=1, label="rounding of f(x)")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("α, 2-norm of the distortion")
    ax.set_ylabel("‖f(x + αe) − f(x)‖   (line: α√λ)")
    ax.legend(fontsize="small")
    if title is not None:
        ax.set_title(title)
    return figure


def new_axes(ax: Axes | None) -> tuple[Figure, Axes]:
    """Return ``ax`` with its figure, or a new figure with one axes."""
    if ax is not None:
        given: Any = ax.get_figure(root=True)
        return given, ax
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    return figure, figure.subplots()
