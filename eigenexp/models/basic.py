"""Linear models: the identity, a Gaussian blur, a difference of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eigenexp.errors import ModelError
from eigenexp.models.filters import check_picture, gaussian_bank, pair, positive

__all__ = ["CenterSurround", "Gaussian", "Identity"]


class Identity(nn.Module):
    """f(x) = x. Every image change is felt equally: all eigenvalues of F are 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a new tensor equal to ``x``, any shape."""
        return 1 * x


class Gaussian(nn.Module):
    """Blur by a truncated, normalised circular Gaussian with reflected borders.

    Parameters
    ----------
    kernel_size
        Side of the square kernel in pixels, or ``[height, width]``. Its cost hardly depends on it.
    std
        Standard deviation in pixels.

    Raises
    ------
    ModelError
        When an argument is not positive or, on a call, the picture is no float ``(B, C, H, W)``
        tensor or smaller than half the kernel.

    Examples
    --------
    >>> import torch
    >>> Gaussian(kernel_size=7, std=1.0)(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(self, kernel_size: int | Sequence[int] = 31, std: float = 3.0) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size, "Gaussian")
        self.std = positive(std, "Gaussian", "std")

    def forward(self, x: Tensor) -> Tensor:
        """Blur ``(B, C, H, W)``, gray or colour; every channel alike."""
        check_picture(x, self.kernel_size, "Gaussian", gray=False)
        channels = x.flatten(0, 1).unsqueeze(1)
        return gaussian_bank(channels, self.kernel_size, [self.std]).view(x.shape)

    def extra_repr(self) -> str:
        """Name the parameters."""
        return f"kernel_size={self.kernel_size}, std={self.std}"


class CenterSurround(nn.Module):
    """Difference of two Gaussian blurs: ±amplitude_ratio · (centre − surround).

    Parameters
    ----------
    kernel_size
        Side of the square kernel in pixels, or ``[height, width]``.
    center_std, surround_std
        Standard deviations in pixels. Each Gaussian is normalised to sum 1, so that a constant
        picture gives 0.
    amplitude_ratio
        Factor of the whole difference, at least 1.
    on_center
        ``True``: centre − surround (on-centre); ``False``: surround − centre (off-centre).

    Raises
    ------
    ModelError
        As for :class:`Gaussian`, and when ``amplitude_ratio`` is below 1.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 31,
        center_std: float = 1.0,
        surround_std: float = 4.0,
        amplitude_ratio: float = 1.25,
        on_center: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = pair(kernel_size, name)
        self.center_std = positive(center_std, name, "center_std")
        self.surround_std = positive(surround_std, name, "surround_std")
        self.amplitude_ratio = check_ratio(amplitude_ratio, name)
        self.on_center = bool(on_center)

    def forward(self, x: Tensor) -> Tensor:
        """Filter ``(B, C, H, W)``, gray or colour; every channel alike."""
        check_picture(x, self.kernel_size, type(self).__name__, gray=False)
        channels = x.flatten(0, 1).unsqueeze(1)
        blurred = gaussian_bank(channels, self.kernel_size, [self.center_std, self.surround_std])
        gain = self.amplitude_ratio if self.on_center else -self.amplitude_ratio
        return (gain * (blurred[:, 0] - blurred[:, 1])).view(x.shape)

    def extra_repr(self) -> str:
        """Name the parameters."""
        return (
            f"kernel_size={self.kernel_size}, center_std={self.center_std}, "
            f"surround_std={self.surround_std}, amplitude_ratio={self.amplitude_ratio}, "
            f"on_center={self.on_center}"
        )


def check_ratio(value: float, name: str) -> float:
    """Return the amplitude ratio, which must be at least 1."""
    ratio = positive(value, name, "amplitude_ratio")
    if ratio < 1:
        raise ModelError(f"{name}: amplitude_ratio: expected at least 1, got {value!r}")
    return ratio
