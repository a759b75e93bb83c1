"""A surrogate of F for networks with strides and pooling: windows that all look alike, nearly.

A network that steps over its picture by s pixels has a Jacobian of repeated windows,

    F ≈ A = Σ_o J_oᵀ J_o,    J_o = g_o K + E_o,

where o runs over windows of d×d pixels at stride s (also over the border), K holds R kernels that
all windows share, g_o is the gain of a window and E_o its own small deviation. A is positive
semidefinite whatever the numbers, so that an error δ in J costs only δ² where F is smallest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenexp.eigensolvers.corrections import dominant, olsen
from eigenexp.eigensolvers.windows import Geometry, Windows, fit_windows

__all__ = ["StridedFrame", "finish_frame", "fit_budget", "fit_frame", "reach"]

KINDS = ((2, 8), (4, 32), (1, 4))
"""Stride and kernels that are tried, in this order."""
SETTLED = 0.2
"""Misfit of held-out pairs below which no further kind is tried."""
HELD_OUT = 2
"""Pairs that judge a kind; they are fitted too once it is chosen."""
TRIAL, SHARED, OWN, AGAIN = (6, 10), (15, 40), (4, 25), (3, 25)
"""Steps of Gauss-Newton, and of conjugate gradients in each, for a trial, for K and g of the kind
chosen, for E, and to improve an estimate."""
WEIGHT = 3.0
"""Of a vector from the search, over a random one: the bottom is what A is for."""
REFIT = 12
"""Products between two such improvements, at the least."""
LATEST = 48
"""Vectors from the search, the last ones, that an estimate is improved with."""
SHIFT = 1e-5
"""Added to A, over λmax: below it A tells nothing."""
FIT_WORK, FACTOR_WORK = 1e11, 1e10
"""Multiplications that a fit and a factorisation may take; nothing is begun beyond."""
SAVED, CALLED, FASTER = 100, 1e7, 4
"""Products that a frame is taken to save: its fit may cost as much, and its refits a quarter of
what products do. A product costs this many multiplications at least, as operations must be called;
those of a fit, in a few large products of matrices, are this much faster."""
SEEN = 1e-3
"""Size of an entry of F e, over the largest, that counts as reached."""
HOPELESS = 0.5
"""Misfit of a trial from which nothing is fitted further."""
LARGEST = 24
"""Side of the largest window."""


@dataclass(frozen=True)
class StridedFrame:
    """A + shift, with its Cholesky factor.

    Attributes
    ----------
    geometry, windows
        See there.
    shift
        Added to the diagonal.
    misfit
        ‖A V − F V‖ / ‖F V‖ of pairs that were held out, when the kind was chosen.
    known
        Vectors of the search space when A was first fitted; later ones weigh more.
    """

    geometry: Geometry
    windows: Windows
    shift: float
    misfit: float
    known: int

    def apply(self, vectors: Tensor) -> Tensor:
        """Return A V, ``(n, b)``."""
        stacked = self.windows.stacked().to(vectors)
        cut = self.geometry.cut(vectors)
        return self.geometry.paste(torch.bmm(torch.bmm(cut, stacked.mT), stacked))

    @property
    def factor(self) -> NDArray[np.float64]:
        """The banded Cholesky factor of A + shift, pixels row by row and channels innermost."""
        cached: NDArray[np.float64] | None = self.__dict__.get("_factor")
        if cached is None:
            cached = scipy.linalg.cholesky_banded(
                self._band(), overwrite_ab=True, lower=True, check_finite=False
            )
            self.__dict__["_factor"] = cached
        return cached

    def _band(self) -> NDArray[np.float64]:
        """Return the lower diagonals of A + shift."""
        geometry = self.geometry
        channels, height, width = geometry.shape
        n, half = channels * height * width, geometry.half_bandwidth
        order = torch.arange(1, n + 1, dtype=torch.float64).reshape(height, width, channels)
        # Where each number of a window lies; 0 beyond the border.
        at = geometry.cut(order.permute(2, 0, 1).reshape(-1, 1))[:, 0].long() - 1
        stacked = self.windows.stacked().double().cpu()
        band = torch.zeros((half + 1) * n, dtype=torch.float64)
        step = max(1, 2**22 // geometry.pixels**2)
        for first in range(0, geometry.windows, step):
            part = stacked[first : first + step]
            rows = at[first : first + step, :, None]
            columns = at[first : first + step, None, :]
            below = (rows >= columns) & (columns >= 0)
            place = (columns * (half + 1) + rows - columns)[below]
            band.index_add_(0, place, torch.bmm(part.mT, part)[below])
        band = band.reshape(n, half + 1)
        band[:, 0] += self.shift
        # In LAPACK's order and in torch's memory, which is aligned: LAPACK works in place, and
        # ends in the same bits every time.
        return band.numpy().T

    def solve(self, vectors: Tensor) -> Tensor:
        """Return (A + shift)⁻¹ V, ``(n, b)``."""
        channels, b = self.geometry.shape[0], vectors.shape[1]
        inner = vectors.double().cpu().mT.reshape(b, channels, -1).mT.reshape(b, -1)
        # Memory of torch's own, in LAPACK's order: NumPy's is aligned by chance, on which the last
        # bits of BLAS depend.
        inner = inner.clone(memory_format=torch.contiguous_format)
        solved = scipy.linalg.cho_solve_banded(
            (self.factor, True), inner.numpy().T, overwrite_b=True, check_finite=False
        )
        inner = torch.from_numpy(solved).mT.reshape(b, -1, channels).mT.reshape(b, -1)
        return inner.mT.clone(memory_format=torch.contiguous_format).to(vectors)

    def starts(self, random: Tensor, count: int) -> Tensor:
        """Return approximate eigenvectors of A at the bottom, outermost first, ``(n, count)``."""
        return dominant(self.solve, random, count, 20 + 2 * count)

    def correction(
        self, end: str, residual: Tensor, value: float, locked: Tensor, steps: int
    ) -> Tensor:
        """Solve (A + shift) t = r orthogonally to ``locked``: Olsen's correction."""
        return olsen(self.solve, end, residual, locked)

    def refit(self, vectors: Tensor, products: Tensor) -> StridedFrame:
        """Improve E by all vectors of a search space, ``(n, j)``, and their products."""
        later = max(self.known, vectors.shape[1] - LATEST)
        weight = torch.cat(
            [torch.ones(self.known), torch.full((vectors.shape[1] - later,), WEIGHT)]
        ).to(vectors)
        v, w = (
            (torch.cat([a[:, : self.known], a[:, later:]], dim=1) * weight).float()
            for a in (vectors, products)
        )
        outer, inner = AGAIN
        windows = fit_windows(
            self.geometry, self.windows, v, w, outer=outer, inner=inner, deviate=True
        )
        return replace(self, windows=windows)

    def refit_interval(self, work: int | None) -> int:
        """Return after how many products :meth:`refit` is worth its cost."""
        if work is None:
            return REFIT
        kernels = len(self.windows.kernels)
        cost = _fit_work(self.geometry, kernels, self.known + LATEST, AGAIN) / _fit_worth(work)
        return max(REFIT, math.ceil(4 * cost))

    @property
    def note(self) -> str:
        """What it is, for a spectrum's notes."""
        return (
            f"a strided frame, stride {self.geometry.stride}, windows of "
            f"{self.geometry.width} pixels, misfit {self.misfit:.2g}"
        )

    def state(self) -> dict[str, Any]:
        """Return plain containers and tensors, for a checkpoint."""
        windows = self.windows
        return {
            "kind": "frame",
            "shape": list(self.geometry.shape),
            "stride": self.geometry.stride,
            "width": self.geometry.width,
            "kernels": windows.kernels.clone(),
            "gains": windows.gains.clone(),
            "deviations": None if windows.deviations is None else windows.deviations.clone(),
            "shift": self.shift,
            "misfit": self.misfit,
            "known": self.known,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], like: Tensor) -> StridedFrame:
        """Return what :meth:`state` described, on the device of ``like``."""
        channels, height, width = map(int, state["shape"])
        geometry = Geometry((channels, height, width), int(state["stride"]), int(state["width"]))
        kernels, gains = (state[name].to(like.device) for name in ("kernels", "gains"))
        own = state["deviations"]
        windows = Windows(kernels, gains, None if own is None else own.to(like.device))
        shift, misfit = float(state["shift"]), float(state["misfit"])
        return cls(geometry, windows, shift, misfit, int(state["known"]))


def reach(column: Tensor, pixel: int, shape: tuple[int, int, int]) -> int:
    """Return how far F e lies from the pixel of e, in pixels along either axis.

    Parameters
    ----------
    column
        F e, ``(n,)``.
    pixel
        Place of the 1 in e.
    shape
        ``(C, H, W)``.
    """
    channels, height, width = shape
    size = column.abs().reshape(channels, height, width).amax(0)
    y, x = divmod(pixel % (height * width), width)
    rows, columns = torch.nonzero(size > SEEN * size.max(), as_tuple=True)
    if not len(rows):  # the pixel is not felt at all
        return 0
    return int(max((rows - y).abs().max(), (columns - x).abs().max()))


def fit_frame(
    vectors: Tensor,
    products: Tensor,
    shape: tuple[int, int, int],
    width: int,
    scale: float,
    budget: float = FIT_WORK,
) -> StridedFrame | None:
    """Estimate A from pairs of random vectors.

    Parameters
    ----------
    vectors, products
        ``(n, p)``: V and F V of random vectors of unit norm.
    shape
        ``(C, H, W)``.
    width
        Pixels that a window must hold along its side.
    scale
        λmax, roughly.
    budget
        Multiplications that the fit may take.

    Returns
    -------
    StridedFrame or None
        None where it would cost too much, or F vanishes on the pairs.
    """
    v, w = vectors.float(), products.float()
    kept = v.shape[1] - HELD_OUT
    if kept < 2 or not float(w.norm()) > 0:
        return None
    best: tuple[float, Geometry, Windows] | None = None
    for stride, kernels in KINDS:
        # How far one pixel reaches depends on where it lies within a stride: half of one more.
        geometry = Geometry(shape, stride, stride * -(-(width + stride // 2) // stride))
        if not _affordable(geometry, kernels, v.shape[1], budget):
            continue
        start = _first(geometry, kernels, v[:, :kept], w[:, :kept])
        outer, inner = TRIAL
        windows = fit_windows(geometry, start, v[:, :kept], w[:, :kept], outer=outer, inner=inner)
        trial = StridedFrame(geometry, windows, 0.0, 0.0, 0)
        misfit = _unexplained(trial, v[:, kept:], w[:, kept:])
        if best is None or misfit < best[0]:
            best = misfit, geometry, windows
        if misfit < SETTLED:
            break
    if best is None:
        return None
    misfit, geometry, windows = best
    shift = SHIFT * scale
    if misfit < HOPELESS:
        # A few steps tell the kinds apart, not how well the best one explains F in the end.
        outer, inner = SHARED
        longer = fit_windows(geometry, windows, v[:, :kept], w[:, :kept], outer=outer, inner=inner)
        tried = StridedFrame(geometry, longer, shift, 0.0, 0)
        left = _unexplained(tried, v[:, kept:], w[:, kept:])
        if left < misfit:
            misfit, windows = left, longer
    return StridedFrame(geometry, windows, shift, misfit, vectors.shape[1])


def _unexplained(frame: StridedFrame, vectors: Tensor, products: Tensor) -> float:
    """Return ‖A V − F V‖ / ‖F V‖."""
    return float((frame.apply(vectors) - products).norm() / products.norm())


def finish_frame(frame: StridedFrame, vectors: Tensor, products: Tensor) -> StridedFrame:
    """Fit a trial fully: K and g to all pairs, then E."""
    v, w = vectors.float(), products.float()
    windows, geometry = frame.windows, frame.geometry
    for deviate, (outer, inner) in ((False, SHARED), (True, OWN)):
        windows = fit_windows(geometry, windows, v, w, outer=outer, inner=inner, deviate=deviate)
    return replace(frame, windows=windows)


def _first(geometry: Geometry, kernels: int, vectors: Tensor, products: Tensor) -> Windows:
    """Return random kernels of the right size; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(kernels, geometry.pixels, generator=generator).to(vectors)
    windows = Windows(k, k.new_ones(geometry.windows), None)
    image = StridedFrame(geometry, windows, 0.0, 0.0, 0).apply(vectors)
    return replace(windows, kernels=k * float(products.norm() / image.norm()) ** 0.5)


def fit_budget(work: int | None) -> float:
    """Return the multiplications that a fit may take, given those of a product where known.

    Counts decide, not the clock, so that a run can be repeated.
    """
    return FIT_WORK if work is None else min(FIT_WORK, SAVED * _fit_worth(work))


def _fit_worth(work: int) -> float:
    """Return the multiplications of a fit that take as long as one product, to a factor of √2.

    A batch counts a little otherwise than its pictures one by one, and must decide alike.
    """
    return FASTER * 2.0 ** round(math.log2(max(work, CALLED)))


def _fit_work(geometry: Geometry, kernels: int, pairs: int, *stages: tuple[int, int]) -> float:
    """Return the multiplications of stages of a fit."""
    steps = sum(outer * inner for outer, inner in stages)
    return 6.0 * steps * geometry.windows * geometry.pixels * kernels * pairs


def _affordable(geometry: Geometry, kernels: int, pairs: int, budget: float) -> bool:
    """Whether fit and factorisation stay within their work."""
    fit = _fit_work(geometry, kernels, pairs, TRIAL, SHARED, OWN)
    factor = math.prod(geometry.shape) * float(geometry.half_bandwidth) ** 2
    return geometry.width <= LARGEST and fit <= budget and factor <= min(FACTOR_WORK, budget)
