"""Windows that all look alike, nearly: how pictures are cut into them, and how they are fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Geometry", "Windows", "fit_windows"]

DAMPING = 1e-3
"""Of Gauss-Newton at the first step, over the mean square of the products."""
PRIOR = 1e-6
"""Weight of ‖E‖² beside it."""
DEVIATION = 0.3
"""Size of a deviation, over the size of the windows, that costs as much as a gain off by one."""
EXACT = 1e-4
"""Misfit below which nothing is left to fit."""


@dataclass(frozen=True)
class Geometry:
    """Where the windows lie, and how pictures are cut into them.

    Attributes
    ----------
    shape
        ``(C, H, W)`` of the picture.
    stride
        s.
    width
        d, a multiple of s.
    """

    shape: tuple[int, int, int]
    stride: int
    width: int

    @property
    def across(self) -> int:
        """Cells of s×s pixels along the side of a window."""
        return self.width // self.stride

    @property
    def grid(self) -> tuple[int, int]:
        """Windows down and across: all that touch the picture."""
        _, height, width = self.shape
        down, right = (-(-size // self.stride) + self.across - 1 for size in (height, width))
        return down, right

    @property
    def windows(self) -> int:
        """Number m of windows."""
        return math.prod(self.grid)

    @property
    def pixels(self) -> int:
        """Numbers in a window, k = C d²."""
        return self.shape[0] * self.width**2

    @property
    def half_bandwidth(self) -> int:
        """Diagonals of A below the main one, channels innermost."""
        channels, height, width = self.shape
        furthest = (min(self.width, height) - 1) * width + min(self.width, width)
        return min(channels * furthest, channels * height * width) - 1

    def cut(self, vectors: Tensor) -> Tensor:
        """Return the windows of pictures ``(n, p)``, zero beyond the border: ``(m, p, k)``."""
        channels, height, width = self.shape
        s, a, (down, right) = self.stride, self.across, self.grid
        p = vectors.shape[1]
        rows, columns = -(-height // s), -(-width // s)
        padded = vectors.new_zeros(channels, rows * s, columns * s, p)
        padded[:, :height, :width] = vectors.reshape(channels, height, width, p)
        inner = padded.reshape(channels, rows, s, columns, s, p).permute(1, 3, 5, 0, 2, 4)
        # Cells of s×s pixels, with a − 1 empty ones around.
        cells = vectors.new_zeros(rows + 2 * (a - 1), columns + 2 * (a - 1), p, channels * s * s)
        cells[a - 1 : a - 1 + rows, a - 1 : a - 1 + columns] = inner.reshape(rows, columns, p, -1)
        windows = vectors.new_empty(down, right, p, a, a, channels * s * s)
        for y in range(a):
            for x in range(a):
                windows[:, :, :, y, x] = cells[y : y + down, x : x + right]
        return windows.reshape(self.windows, p, self.pixels)

    def paste(self, windows: Tensor) -> Tensor:
        """Return the sum of windows ``(m, p, k)``, each at its place: the transpose of a cut."""
        channels, height, width = self.shape
        s, a, (down, right) = self.stride, self.across, self.grid
        p = windows.shape[1]
        rows, columns = -(-height // s), -(-width // s)
        parts = windows.reshape(down, right, p, a, a, channels * s * s)
        cells = windows.new_zeros(rows + 2 * (a - 1), columns + 2 * (a - 1), p, channels * s * s)
        for y in range(a):
            for x in range(a):
                cells[y : y + down, x : x + right] += parts[:, :, :, y, x]
        inner = cells[a - 1 : a - 1 + rows, a - 1 : a - 1 + columns]
        inner = inner.reshape(rows, columns, p, channels, s, s).permute(3, 0, 4, 1, 5, 2)
        pictures = inner.reshape(channels, rows * s, columns * s, p)[:, :height, :width]
        return pictures.reshape(-1, p)


@dataclass(frozen=True)
class Windows:
    """K ``(R, k)``, g ``(m,)`` and E ``(m, R, k)``, or None before there are deviations."""

    kernels: Tensor
    gains: Tensor
    deviations: Tensor | None

    def stacked(self) -> Tensor:
        """J_o of every window, ``(m, R, k)``."""
        stacked = self.gains[:, None, None] * self.kernels
        return stacked if self.deviations is None else stacked + self.deviations


@dataclass(frozen=True)
class _Linearised:
    """Σ_o J_oᵀJ_o at some windows, and how it moves with them.

    A step is [κ, γ] or [κ, γ, ε]: K moves by k κ, g by γ, E by e ε, with the sizes k and e, so that
    a step of 1 is large in each.
    """

    geometry: Geometry
    at: Windows
    cut: Tensor
    deviate: bool

    @cached_property
    def stacked(self) -> Tensor:
        """J, ``(m, R, k)``."""
        return self.at.stacked()

    @cached_property
    def seen(self) -> Tensor:
        """J V, ``(m, p, R)``."""
        return torch.bmm(self.cut, self.stacked.mT)

    @cached_property
    def image(self) -> Tensor:
        """A V, ``(n, p)``."""
        return self.geometry.paste(torch.bmm(self.seen, self.stacked))

    @cached_property
    def sizes(self) -> tuple[float, float]:
        """How far a step of 1 goes: k and e."""
        own = DEVIATION * float(self.stacked.square().mean().sqrt()) if self.deviate else 0.0
        return float(self.at.kernels.square().mean().sqrt()), own

    def forward(self, step: list[Tensor]) -> Tensor:
        """Return the change of A V along a step."""
        moved = self.sizes[0] * step[0] * self.at.gains[:, None, None]
        moved += self.at.kernels * step[1][:, None, None]
        if self.deviate:
            moved += self.sizes[1] * step[2]
        left = torch.cat([self.seen, torch.bmm(self.cut, moved.mT)], dim=2)
        return self.geometry.paste(torch.bmm(left, torch.cat([moved, self.stacked], dim=1)))

    def backward(self, rest: Tensor) -> list[Tensor]:
        """Return the transpose of :meth:`forward` applied to ``(n, p)``."""
        rest = self.geometry.cut(rest)
        against = torch.bmm(rest, self.stacked.mT)
        g = torch.baddbmm(torch.bmm(self.seen.mT, rest), against.mT, self.cut)
        shared = self.sizes[0] * (g * self.at.gains[:, None, None]).sum(0)
        gains = (g * self.at.kernels).sum((1, 2))
        return [shared, gains, self.sizes[1] * g] if self.deviate else [shared, gains]

    def moved(self, step: list[Tensor], share: float) -> _Linearised:
        """Return this at a share of a step."""
        kernels = self.at.kernels + share * self.sizes[0] * step[0]
        own = self.at.deviations
        if self.deviate:
            change = share * self.sizes[1] * step[2]
            own = change if own is None else own + change
        windows = Windows(kernels, self.at.gains + share * step[1], own)
        return _Linearised(self.geometry, windows, self.cut, self.deviate)


def fit_windows(
    geometry: Geometry,
    start: Windows,
    vectors: Tensor,
    products: Tensor,
    *,
    outer: int,
    inner: int,
    deviate: bool = False,
) -> Windows:
    """Improve windows by Gauss-Newton on Σ ‖A v − F v‖², conjugate gradients inside.

    Parameters
    ----------
    start
        Where to begin.
    vectors, products
        ``(n, p)``; larger vectors weigh more.
    outer, inner
        Steps of either.
    deviate
        Let E move too.
    """
    now = _Linearised(geometry, start, geometry.cut(vectors), deviate)
    size = float(products.norm())
    weight, damping = size * size / len(vectors), DAMPING
    rest = products - now.image
    old = float(rest.norm())
    for turn in range(outer):
        if old <= EXACT * size:
            break
        ridge = [weight * damping, weight * damping, weight * (damping + PRIOR)]
        gradient = now.backward(rest)
        if deviate and now.at.deviations is not None:
            gradient[2] -= PRIOR * weight / now.sizes[1] * now.at.deviations
        step = _solve(now, gradient, ridge[: len(gradient)], inner)
        share = 1.0
        for _ in range(5):
            tried = now.moved(step, share)
            rest = products - tried.image
            new = float(rest.norm())
            if new < old:
                break
            share *= 0.4
        else:
            break
        now = tried
        damping *= 0.3 if share == 1.0 else 3.0
        stalled, old = new > 0.995 * old and turn > 2, new
        if stalled:
            break
    return now.at


def _solve(at: _Linearised, gradient: list[Tensor], ridge: list[float], steps: int) -> list[Tensor]:
    """Solve (DᵀD + ridge) x = gradient by conjugate gradients, D the linear map at a point."""
    x = [torch.zeros_like(part) for part in gradient]
    rest = direction = gradient
    square = first = _dot(rest, rest)
    if not square > 0:
        return x
    for _ in range(steps):
        image = at.forward(direction)
        curvature = float((image * image).sum())
        curvature += sum(r * _dot([d], [d]) for r, d in zip(ridge, direction, strict=True))
        length = square / curvature
        x = [a + length * d for a, d in zip(x, direction, strict=True)]
        back = at.backward(image)
        rest = [
            g - length * (b + r * d)
            for g, b, r, d in zip(rest, back, ridge, direction, strict=True)
        ]
        before, square = square, _dot(rest, rest)
        if square < 1e-6 * first:
            break
        direction = [g + (square / before) * d for g, d in zip(rest, direction, strict=True)]
    return x


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
