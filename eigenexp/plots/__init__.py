"""Figures of eigendistortions: pure functions, spectra and tensors in, matplotlib figures out.

Nothing here reads or writes a file, and nothing touches ``pyplot``: a figure is made as a plain
:class:`matplotlib.figure.Figure`, so no backend is chosen and no global state changes. Every
function takes ``ax`` or ``axes`` to draw into a figure of yours.
"""

from eigenexp.plots.amplitudes import amplitude_figure
from eigenexp.plots.cards import card_figure
from eigenexp.plots.curves import (
    convergence_figure,
    sensitivity,
    sensitivity_figure,
    spectrum_figure,
)
from eigenexp.plots.distortions import (
    distortion_figure,
    eigendistortion_imshow_all,
    plot_distortion,
)
from eigenexp.plots.pixels import distortion_image

__all__ = [
    "amplitude_figure",
    "card_figure",
    "convergence_figure",
    "distortion_figure",
    "distortion_image",
    "eigendistortion_imshow_all",
    "plot_distortion",
    "sensitivity",
    "sensitivity_figure",
    "spectrum_figure",
]
