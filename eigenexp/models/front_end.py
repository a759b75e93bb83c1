"""The four models of the eye's front end of Berardino et al. 2017: LN, LG, LGG and OnOff.

Stages, each present from one model to the next:

    l = ±ratio · (G_centre − G_surround) ∗ x                 linear filter
    a = l / (1 + s_lum · G_lum ∗ x)                          luminance gain control
    b = a / (1 + s_con · (√(G_con ∗ a²) + 1e-6))             contrast gain control
    y = softplus(b)

Sources: A. Berardino, J. Ballé, V. Laparra, E. P. Simoncelli, "Eigen-distortions of hierarchical
representations", NeurIPS 2017 (https://arxiv.org/abs/1710.02266); the parameters are those fitted
to human judgements of distortion in A. Berardino's thesis (NYU 2018), table 2, page 149.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from eigenexp.models.basic import check_ratio
from eigenexp.models.filters import (
    check_picture,
    constants,
    gaussian_bank,
    pair,
    pairwise,
    positive,
)

__all__ = ["LinearNonlinear", "LuminanceContrastGainControl", "LuminanceGainControl", "OnOff"]


class _FrontEnd(nn.Module):
    """What the four models share: f channels of gain-controlled centre-surround responses.

    Parameters hold one entry a channel; a stage without parameters is left out.
    """

    def __init__(self, kernel_size: int | Sequence[int], amplitude_ratio: float) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = pair(kernel_size, name)
        self.amplitude_ratio = check_ratio(amplitude_ratio, name)

    def _respond(
        self,
        x: Tensor,
        signs: Sequence[float],
        center: Sequence[float],
        surround: Sequence[float],
        luminance: Sequence[tuple[float, float]] = (),
        contrast: Sequence[tuple[float, float]] = (),
    ) -> Tensor:
        """Return the response ``(B, f, H, W)``; luminance and contrast are (scalar, std) pairs."""
        check_picture(x, self.kernel_size, type(self).__name__, gray=True)
        f = len(signs)
        stds = [*center, *surround, *(std for _, std in luminance)]
        blurred = torch.split(gaussian_bank(x, self.kernel_size, stds), f, dim=1)
        gain = constants([sign * self.amplitude_ratio for sign in signs], x).view(f, 1, 1)
        response = gain * (blurred[0] - blurred[1])
        if luminance:
            scalar = constants([scalar for scalar, _ in luminance], x).view(f, 1, 1)
            response = response / (1 + scalar * blurred[2])
        if contrast:
            stds = [std for _, std in contrast]
            power = gaussian_bank(response.square(), self.kernel_size, stds)
            # √ has slope ∞ at 0, which autograd turns into 0·∞ = NaN for a dark or constant
            # picture. a·√(G∗a²) is differentiable there with slope 0; the clamp gives that slope
            # and changes no value, being lost beside 1e-6.
            local = power.clamp_min(torch.finfo(x.dtype).tiny).sqrt() + 1e-6
            scalar = constants([scalar for scalar, _ in contrast], x).view(f, 1, 1)
            response = response / (1 + scalar * local)
        return softplus(response)


class LinearNonlinear(_FrontEnd):
    """LN: centre-surround filter and softplus.

    Takes gray pictures ``(B, 1, H, W)`` in [0, 1], sides at least ``kernel_size // 2 + 1`` pixels,
    float32 or float64; gives ``(B, 1, H, W)``. Holds no trainable parameter.

    Parameters
    ----------
    kernel_size
        Side of the square kernels in pixels, or ``[height, width]``.
    center_std, surround_std
        Standard deviations of the centre and the surround, in pixels.
    amplitude_ratio
        Factor of the centre-surround difference, at least 1.
    on_center
        ``False`` turns the sign of the filter.

    Raises
    ------
    ModelError
        For an argument out of range, or a picture the model cannot filter.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 31,
        center_std: float = 0.5339,
        surround_std: float = 6.148,
        amplitude_ratio: float = 1.25,
        on_center: bool = True,
    ) -> None:
        super().__init__(kernel_size, amplitude_ratio)
        name = type(self).__name__
        self.center_std = positive(center_std, name, "center_std")
        self.surround_std = positive(surround_std, name, "surround_std")
        self.on_center = bool(on_center)

    def forward(self, x: Tensor) -> Tensor:
        """Return the response ``(B, 1, H, W)`` to gray pictures ``(B, 1, H, W)``."""
        return self._respond(x, [self._sign], [self.center_std], [self.surround_std])

    @property
    def _sign(self) -> float:
        return 1.0 if self.on_center else -1.0

    def extra_repr(self) -> str:
        """Name the parameters."""
        return _describe(self)


class LuminanceGainControl(LinearNonlinear):
    """LG: centre-surround filter, division by the local luminance, softplus.

    Pictures and errors as for :class:`LinearNonlinear`.

    Parameters
    ----------
    kernel_size, center_std, surround_std, amplitude_ratio, on_center
        As for :class:`LinearNonlinear`.
    luminance_scalar
        Strength of the division; picture values in [0, 1].
    luminance_std
        Standard deviation of the Gaussian that measures luminance, in pixels.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 31,
        center_std: float = 1.962,
        surround_std: float = 4.235,
        luminance_scalar: float = 14.95,
        luminance_std: float = 4.235,
        amplitude_ratio: float = 1.25,
        on_center: bool = True,
    ) -> None:
        super().__init__(kernel_size, center_std, surround_std, amplitude_ratio, on_center)
        name = type(self).__name__
        self.luminance_scalar = positive(luminance_scalar, name, "luminance_scalar")
        self.luminance_std = positive(luminance_std, name, "luminance_std")

    def forward(self, x: Tensor) -> Tensor:
        """Return the response ``(B, 1, H, W)`` to gray pictures ``(B, 1, H, W)``."""
        return self._respond(
            x,
            [self._sign],
            [self.center_std],
            [self.surround_std],
            [(self.luminance_scalar, self.luminance_std)],
        )


class LuminanceContrastGainControl(LuminanceGainControl):
    """LGG: centre-surround filter, luminance and contrast gain control, softplus.

    Pictures and errors as for :class:`LinearNonlinear`.

    Parameters
    ----------
    kernel_size, center_std, surround_std, amplitude_ratio, on_center
        As for :class:`LinearNonlinear`.
    luminance_scalar, luminance_std
        As for :class:`LuminanceGainControl`.
    contrast_scalar
        Strength of the division by the local contrast.
    contrast_std
        Standard deviation of the Gaussian that measures contrast, in pixels.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 31,
        center_std: float = 0.7363,
        surround_std: float = 48.37,
        luminance_scalar: float = 2.94,
        luminance_std: float = 170.99,
        contrast_scalar: float = 34.03,
        contrast_std: float = 2.658,
        amplitude_ratio: float = 1.25,
        on_center: bool = True,
    ) -> None:
        super().__init__(
            kernel_size,
            center_std,
            surround_std,
            luminance_scalar,
            luminance_std,
            amplitude_ratio,
            on_center,
        )
        name = type(self).__name__
        self.contrast_scalar = positive(contrast_scalar, name, "contrast_scalar")
        self.contrast_std = positive(contrast_std, name, "contrast_std")

    def forward(self, x: Tensor) -> Tensor:
        """Return the response ``(B, 1, H, W)`` to gray pictures ``(B, 1, H, W)``."""
        return self._respond(
            x,
            [self._sign],
            [self.center_std],
            [self.surround_std],
            [(self.luminance_scalar, self.luminance_std)],
            [(self.contrast_scalar, self.contrast_std)],
        )


class OnOff(_FrontEnd):
    """OnOff: LGG twice, for an on-centre and an off-centre channel.

    Takes gray pictures ``(B, 1, H, W)`` in [0, 1], sides at least ``kernel_size // 2 + 1`` pixels,
    float32 or float64; gives ``(B, 2, H, W)``, on first. Holds no trainable parameter.

    Parameters
    ----------
    kernel_size
        Side of the square kernels in pixels, or ``[height, width]``.
    center_std, surround_std, luminance_std, contrast_std
        Standard deviations in pixels, ``[on, off]``.
    luminance_scalar, contrast_scalar
        Strengths of the divisions, ``[on, off]``.
    amplitude_ratio
        Factor of both centre-surround differences, at least 1.

    Raises
    ------
    ModelError
        For an argument out of range, or a picture the model cannot filter.

    Examples
    --------
    >>> import torch
    >>> OnOff()(torch.rand(1, 1, 32, 48)).shape
    torch.Size([1, 2, 32, 48])
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 31,
        center_std: Sequence[float] = (1.237, 0.3233),
        surround_std: Sequence[float] = (30.12, 2.184),
        luminance_scalar: Sequence[float] = (3.2637, 14.3961),
        luminance_std: Sequence[float] = (76.4, 2.184),
        contrast_scalar: Sequence[float] = (7.3405, 16.7423),
        contrast_std: Sequence[float] = (7.49, 2.43),
        amplitude_ratio: float = 1.25,
    ) -> None:
        super().__init__(kernel_size, amplitude_ratio)
        name = type(self).__name__
        self.center_std = pairwise(center_std, name, "center_std")
        self.surround_std = pairwise(surround_std, name, "surround_std")
        self.luminance_scalar = pairwise(luminance_scalar, name, "luminance_scalar")
        self.luminance_std = pairwise(luminance_std, name, "luminance_std")
        self.contrast_scalar = pairwise(contrast_scalar, name, "contrast_scalar")
        self.contrast_std = pairwise(contrast_std, name, "contrast_std")

    def forward(self, x: Tensor) -> Tensor:
        """Return the response ``(B, 2, H, W)`` to gray pictures ``(B, 1, H, W)``."""
        return self._respond(
            x,
            [1.0, -1.0],
            self.center_std,
            self.surround_std,
            list(zip(self.luminance_scalar, self.luminance_std, strict=True)),
            list(zip(self.contrast_scalar, self.contrast_std, strict=True)),
        )

    def extra_repr(self) -> str:
        """Name the parameters."""
        return _describe(self)


def _describe(model: nn.Module) -> str:
    public = (item for item in vars(model).items() if not item[0].startswith("_"))
    return ", ".join(f"{name}={value}" for name, value in public if name != "training")
