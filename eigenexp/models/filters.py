"""Gaussian filters as small matrices: the picture X is blurred by A_h · X · A_wᵀ.

A truncated, normalised circular Gaussian is the outer product of two one-dimensional ones, so a
blur acts on rows and columns apart. Each side is one small dense matrix with the reflected border
folded in; forward, forward-mode derivative and backward then cost the same few matrix products,
where the backward pass of a large two-dimensional convolution costs several forward passes.

The matrices are built in every forward pass (a few percent of its time) and never cached or
changed in place: nothing goes stale under ``.to()``, nothing is pickled, and ``torch.func``
transforms and tracers see pure functions only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from eigenexp.errors import ModelError

__all__ = ["gaussian_bank", "gaussian_taps"]

# Longest side filtered by whole matrices, whose cost a pixel grows with the side; longer ones are
# cut into blocks. F·v of OnOff on one core, whole / in blocks, ms: float32 256² 12 / 20, 384² 36 /
# 31, 512² 82 / 66, 1024² 620 / 350; float64 512² 260 / 110. (One-dimensional convolutions: 200 at
# 512², as their backward passes cost several forwards.)
DENSE_LIMIT = 320
BLOCK = 64


def gaussian_taps(kernel_size: int, std: float) -> tuple[float, ...]:
    """Return the ``kernel_size`` weights of a centred Gaussian of ``std`` pixels, summing to 1."""
    centre = (kernel_size - 1) / 2
    taps = [math.exp(-((t - centre) ** 2) / (2 * std**2)) for t in range(kernel_size)]
    total = math.fsum(taps)
    return tuple(tap / total for tap in taps)


def gaussian_bank(x: Tensor, kernel_size: tuple[int, int], stds: Sequence[float]) -> Tensor:
    """Blur by several Gaussians at once.

    Parameters
    ----------
    x
        ``(B, 1, H, W)``, which every filter blurs, or ``(B, f, H, W)``, a channel to each filter.
    kernel_size
        Height and width of the filters, in pixels, at most 2·H − 1 and 2·W − 1.
    stds
        Standard deviations of the f filters, in pixels.

    Returns
    -------
    Tensor
        ``(B, f, H, W)``; borders are reflected without repeating the edge.
    """
    down = constants([gaussian_taps(kernel_size[0], std) for std in stds], x)
    across = constants([gaussian_taps(kernel_size[1], std) for std in stds], x)
    (batch, channels, height, width), f = x.shape, len(stds)
    if max(height, width) > DENSE_LIMIT:
        return _filter_in_blocks(_filter_in_blocks(x.mT, down).mT, across)
    a_h = blur_matrices(down, height)
    square = height == width and kernel_size[0] == kernel_size[1]
    a_w = a_h if square else blur_matrices(across, width)
    if channels == 1:
        # All filters meet the one picture in a single product (f·H, H) · (H, W).
        half = (a_h.reshape(f * height, height) @ x).view(batch, f, height, width)
    else:
        half = a_h @ x
    return half @ a_w.mT


def constants(values: Sequence[float] | Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return the numbers in the dtype and on the device of ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def blur_matrices(taps: Tensor, n: int) -> Tensor:
    """Return the matrices A ``(f, n, n)`` that filter n pixels with reflected borders.

    (A x)_i = Σ_t taps_t · x_{i+t−l} with l = (k − 1)//2, and x_{−j} = x_j, x_{n−1+j} = x_{n−1−j}.

    Parameters
    ----------
    taps
        ``(f, k)`` weights of f filters; k//2 must be below n.
    n
        Pixels along the axis.
    """
    k = taps.shape[-1]
    left = (k - 1) // 2
    right = k - 1 - left
    band = _band(taps, n, n + k - 1)  # on the padded pixels
    matrix = band[..., left : left + n]
    # Only the first rows reach over the left border, and only the last over the right one.
    before = pad(band[:, :left, :left].flip(-1), (1, n - 1 - left))
    after = pad(band[:, n - right :, left + n :].flip(-1), (n - 1 - right, 1))
    if left > n - right:  # rows in the middle reach over both
        return matrix + pad(before, (0, 0, 0, n - left)) + pad(after, (0, 0, n - right, 0))
    top, middle, bottom = matrix[:, :left], matrix[:, left : n - right], matrix[:, n - right :]
    return torch.cat([top + before, middle, bottom + after], dim=1)


def _filter_in_blocks(x: Tensor, taps: Tensor) -> Tensor:
    """Filter the last axis of ``(B, 1 or f, h, n)`` by taps ``(f, k)``; give ``(B, f, h, n)``.

    A block of outputs needs its own pixels and the next block's only, so that every block is the
    same small matrix times two neighbouring blocks.
    """
    n, k = x.shape[-1], taps.shape[-1]
    left = (k - 1) // 2
    right = k - 1 - left
    size = max(BLOCK, k - 1)
    count = -(-n // size)
    after = pad(x[..., n - 1 - right : n - 1].flip(-1), (0, (count + 1) * size - n - left - right))
    padded = torch.cat([x[..., 1 : left + 1].flip(-1), x, after], dim=-1)
    blocks = padded.view(*x.shape[:-1], count + 1, size)
    windows = torch.cat([blocks[..., :-1, :], blocks[..., 1:, :]], dim=-1).flatten(2, 3)
    matrix = _band(taps, size, 2 * size)
    return (windows @ matrix.mT).view(x.shape[0], len(taps), -1, count * size)[..., :n]


def _band(taps: Tensor, rows: int, columns: int) -> Tensor:
    """Return ``(f, rows, columns)`` with the taps in row i moved right by i."""
    # Rows cut from the taps repeated with a period one longer than a row.
    period = pad(taps.unsqueeze(1).expand(-1, rows, -1), (0, columns + 1 - taps.shape[-1]))
    return period.flatten(1)[:, : rows * columns].view(-1, rows, columns)


def pair(kernel_size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Return (height, width) of a kernel given as one size or two."""
    sizes = list(kernel_size) if isinstance(kernel_size, Sequence) else [kernel_size] * 2
    if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise ModelError(
            f"{name}: kernel_size: expected a positive whole number of pixels or [height, width], "
            f"got {kernel_size!r}"
        )
    return sizes[0], sizes[1]


def positive(value: float, name: str, what: str) -> float:
    """Return the value as a float, refusing what is no finite number above zero."""
    number = _finite(value, name, what)
    if number <= 0:
        raise ModelError(f"{name}: {what}: expected a number above 0, got {value!r}")
    return number


def _finite(value: float, name: str, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ModelError(f"{name}: {what}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ModelError(f"{name}: {what}: expected a finite number, got {value!r}")
    return number


def pairwise(values: Sequence[float], name: str, what: str) -> tuple[float, float]:
    """Return two positive numbers, for the on and the off channel."""
    try:
        on, off = values
    except (TypeError, ValueError):
        raise ModelError(
            f"{name}: {what}: expected two numbers, [on, off], got {values!r}"
        ) from None
    return positive(on, name, what), positive(off, name, what)


def check_picture(x: Tensor, kernel_size: tuple[int, int], name: str, gray: bool) -> None:
    """Refuse, in one line, what a model cannot filter."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ModelError(f"{name}: expected a floating point tensor (B, C, H, W), got {got}")
    if x.ndim != 4:
        raise ModelError(
            f"{name}: expected pictures of shape (B, C, H, W), got {tuple(x.shape)}; "
            "load_picture(...).tensor has it"
        )
    if gray and x.shape[1] != 1:
        raise ModelError(
            f"{name}: expected a gray picture (B, 1, H, W), got {x.shape[1]} channels; "
            "load it with channels='gray'"
        )
    least = (kernel_size[0] // 2 + 1, kernel_size[1] // 2 + 1)
    if x.shape[-2] < least[0] or x.shape[-1] < least[1]:
        raise ModelError(
            f"{name}: its {kernel_size[0]}x{kernel_size[1]} kernel with reflected borders needs "
            f"pictures of at least {least[0]}x{least[1]} pixels, got {x.shape[-2]}x{x.shape[-1]}; "
            "take a larger crop, enlarge it (resize), or choose a smaller kernel_size"
        )
