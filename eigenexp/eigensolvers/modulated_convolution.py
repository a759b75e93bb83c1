"""A surrogate of F for preconditioning: a convolution, a gain at each pixel, the convolution again.

Vision models filter a picture and then scale the result from place to place (gain control,
rectification), so that J ≈ diag(g)^½ K with a convolution K, and

    F ≈ A = Kᵀ G K,    K = B diag(c) B⁻¹,    G = diag(g),

where the columns of B are cosines or sinusoids. A is estimated from pairs (V, F V) that a solver
has anyway, and A⁻¹ costs a few small transforms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from eigenexp.eigensolvers.corrections import dominant, refine

__all__ = ["BASES", "ModulatedConvolution", "fit_surrogate"]

BASES = ("mirrored", "cosine", "fourier")
"""``mirrored``: cosines about the outer pixels (DCT-I), the eigenvectors of a symmetric filter with
reflected borders; ``cosine``: cosines about the edges (DCT-II), those of one with repeated borders;
``fourier``: sinusoids, those of any filter with periodic borders."""

ITERATIONS = 20
"""Of L-BFGS in the basis chosen; a quarter in each to choose, a half to improve an estimate."""
LARGE, FEW_ITERATIONS, FEW_PAIRS = 2**14, 6, 3
"""Size of a picture beyond which an iteration costs as much as several products; how many are made
then, a third of them in each basis to choose; and the pairs that choose. The first guess is better
there, as an average over more frequencies."""
SMOOTHED = 64
"""Pixels along the shorter side for which the first guess is averaged over a frequency more."""


class Transform:
    """B, its inverse and their transposes, on stacks of pictures ``(p, C, H, W)``."""

    def __init__(self, basis: str, height: int, width: int, like: Tensor) -> None:
        self.basis = basis
        self.size = (height, width)
        if basis != "fourier":
            make = _mirrored if basis == "mirrored" else _cosine
            axes = [make(height), make(width)]
            # B = B_height ⊗ B_width; the inverse is taken once, in float64.
            self._down, self._across = (b.to(like) for b, _ in axes)
            self._down_inverse, self._across_inverse = (inverse.to(like) for _, inverse in axes)

    def analyse(self, z: Tensor) -> Tensor:
        """B⁻¹ z: the coefficients of ``z``."""
        if self.basis == "fourier":
            coefficients: Tensor = torch.fft.rfft2(z, norm="ortho")
            return coefficients
        return self._down_inverse @ z @ self._across_inverse.mT

    def project(self, y: Tensor) -> Tensor:
        """Bᵀ y: the products of ``y`` with the columns of B."""
        if self.basis == "fourier":
            products: Tensor = torch.fft.rfft2(y, norm="ortho")
            return products
        return self._down.mT @ y @ self._across

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """B ĉ: the picture with these coefficients."""
        if self.basis == "fourier":
            picture: Tensor = torch.fft.irfft2(coefficients, s=self.size, norm="ortho")
            return picture
        return self._down @ coefficients @ self._across.mT

    def unproject(self, products: Tensor) -> Tensor:
        """B⁻ᵀ ŷ: the picture with these products."""
        if self.basis == "fourier":
            picture: Tensor = torch.fft.irfft2(products, s=self.size, norm="ortho")
            return picture
        return self._down_inverse.mT @ products @ self._across_inverse


def _mirrored(size: int) -> tuple[Tensor, Tensor]:
    """DCT-I: cos(π k x / (N − 1)); not orthogonal, its columns are in a weighted product."""
    k = torch.arange(size, dtype=torch.float64)
    b = torch.cos(math.pi * k[:, None] * k[None] / max(size - 1, 1))
    # BᵀWB = D with W halving the two ends, hence B⁻¹ = D⁻¹BᵀW.
    weight = torch.ones(size, dtype=torch.float64)
    if size > 1:
        weight[0] = weight[-1] = 0.5
    norms = (b * b * weight[:, None]).sum(0)
    b = b / norms.sqrt()
    return b, (b * weight[:, None]).mT.contiguous()


def _cosine(size: int) -> tuple[Tensor, Tensor]:
    """DCT-II, orthonormal: cos(π k (x + ½) / N)."""
    k = torch.arange(size, dtype=torch.float64)
    b = torch.cos(math.pi * (k[:, None] + 0.5) * k[None] / size) * math.sqrt(2 / size)
    b[:, 0] /= math.sqrt(2)
    return b, b.mT.contiguous()


@dataclass(frozen=True)
class ModulatedConvolution:
    """A = Kᵀ G K, symmetric and positive definite.

    Attributes
    ----------
    basis
        One of :data:`BASES`.
    gain
        ``(C, H, W)``: g, at each pixel of each mixed channel.
    response
        c for each channel and frequency, ``(C, H, W)`` or ``(C, H, W // 2 + 1)``.
    mixing
        ``(C, C)``, orthogonal: the channels are mixed first, so that F hardly couples them.
    misfit
        ‖A^(−½)(F V − A V)‖² / tr(Vᵀ F V) of the pairs it was made from; 0 where A = F.
    """

    basis: str
    gain: Tensor
    response: Tensor
    mixing: Tensor
    misfit: float

    @property
    def transform(self) -> Transform:
        """The transform of the basis, on the device and in the dtype of the gain."""
        cached: Transform | None = self.__dict__.get("_transform")
        if cached is None:
            cached = Transform(self.basis, self.gain.shape[1], self.gain.shape[2], like=self.gain)
            self.__dict__["_transform"] = cached
        return cached

    def solve(self, vectors: Tensor) -> Tensor:
        """Return A⁻¹ V = K⁻¹ G⁻¹ K⁻ᵀ V, ``(n, b)``.

        Parameters
        ----------
        vectors
            ``(n, b)``.
        """
        t = self.transform
        y = t.project(self._pictures(vectors)) / self.response
        x = t.unproject(y) / self.gain
        x = t.synthesise(t.analyse(x) / self.response)
        return self._vectors(x)

    def apply(self, vectors: Tensor) -> Tensor:
        """Return A V = Kᵀ G K V, ``(n, b)``."""
        t = self.transform
        x = t.synthesise(self.response * t.analyse(self._pictures(vectors))) * self.gain
        return self._vectors(t.unproject(self.response * t.project(x)))

    def starts(self, random: Tensor, count: int) -> Tensor:
        """Return approximate eigenvectors of A at the bottom, outermost first, ``(n, count)``."""
        return dominant(self.solve, random, count, 30 + 4 * count)

    @property
    def note(self) -> str:
        """What it is, for a spectrum's notes."""
        return f"a modulated convolution in the {self.basis} basis, misfit {self.misfit:.2g}"

    def correction(
        self, end: str, residual: Tensor, value: float, locked: Tensor, steps: int
    ) -> Tensor:
        """Solve the correction equation for a residual ``(n, 1)``, see :func:`refine`."""
        return refine(self.apply, self.solve, end, residual, value, locked, steps)

    def _pictures(self, vectors: Tensor) -> Tensor:
        pictures = vectors.mT.reshape(-1, *self.gain.shape)
        return _mix(self.mixing, pictures)

    def _vectors(self, pictures: Tensor) -> Tensor:
        vectors: Tensor = _mix(self.mixing.mT, pictures).reshape(len(pictures), -1).mT
        return vectors

    def state(self) -> dict[str, Any]:
        """Return plain containers and tensors, for a checkpoint."""
        return {
            "basis": self.basis,
            "gain": self.gain.clone(),
            "response": self.response.clone(),
            "mixing": self.mixing.clone(),
            "misfit": self.misfit,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], like: Tensor) -> ModulatedConvolution:
        """Return what :meth:`state` described, on the device and in the dtype of ``like``."""
        gain, response, mixing = (state[name].to(like) for name in ("gain", "response", "mixing"))
        return cls(str(state["basis"]), gain, response, mixing, float(state["misfit"]))


def _mix(mixing: Tensor, pictures: Tensor) -> Tensor:
    if len(mixing) == 1:
        return pictures
    return torch.einsum("ij,pjhw->pihw", mixing, pictures)


def fit_surrogate(
    vectors: Tensor,
    products: Tensor,
    image_shape: tuple[int, ...],
    previous: ModulatedConvolution | None = None,
) -> ModulatedConvolution | None:
    """Estimate A from pairs, in the basis that explains them best.

    A minimises Σ ‖A^(−½)(w − A v)‖² = Σ wᵀA⁻¹w + vᵀA v − 2 vᵀw over the pairs, a distance in which
    small and large eigenvalues weigh alike. Where F is of this form the minimum is 0 and A = F.

    Parameters
    ----------
    vectors, products
        ``(n, p)``: V and F V; a handful of pairs is enough, their contents must span all
        frequencies (random vectors do).
    image_shape
        ``(C, H, W)``, ``(H, W)`` or ``(n,)``.
    previous
        An estimate to improve on, in its own basis; None to compare all bases.

    Returns
    -------
    ModulatedConvolution or None
        None where F vanishes on the pairs.
    """
    channels, height, width = _sizes(image_shape)
    z = vectors.mT.reshape(-1, channels, height, width)
    y = products.mT.reshape(z.shape)
    if previous is None:
        # The matrix M of channels with y ≈ M z at every pixel; its eigenvectors decouple them.
        across = torch.einsum("pihw,pjhw->ij", y, z).double().cpu()
        within = torch.einsum("pihw,pjhw->ij", z, z).double().cpu()
        coupling = torch.linalg.pinv(within, hermitian=True) @ across.mT
        mixing = torch.linalg.eigh((coupling + coupling.mT) / 2).eigenvectors.mT.to(z)
    else:
        mixing = previous.mixing
    z, y = _mix(mixing, z), _mix(mixing, y)
    scale = float(y.norm() / z.norm())
    energy = float((z * y).sum().clamp(min=0)) / scale if scale > 0 else 0.0
    if energy <= 0 or not math.isfinite(scale):
        return None
    y = y / scale
    if previous is None:
        large = z[0].numel() > LARGE
        few, pairs, many = (
            (FEW_ITERATIONS // 3, min(FEW_PAIRS, len(z)), FEW_ITERATIONS)
            if large
            else (ITERATIONS // 4, len(z), ITERATIONS)
        )
        rough = {basis: _fit(basis, z[:pairs], y[:pairs], few) for basis in BASES}
        basis = min(BASES, key=lambda name: rough[name][2])
        gain, response, distance = _fit(basis, z, y, many, rough[basis][1])
    else:
        basis = previous.basis
        gain, response, distance = _fit(basis, z, y, ITERATIONS // 2, previous.response)
    return ModulatedConvolution(basis, gain * scale, response, mixing, distance / energy)


def _sizes(image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(image_shape) == 1:
        return 1, 1, image_shape[0]
    *channels, height, width = image_shape
    return math.prod(channels), height, width


def _fit(
    basis: str, z: Tensor, y: Tensor, iterations: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return g, c and the distance; ``y`` is scaled to the size of ``z``.

    With u = K z and v = K⁻ᵀ y the best gain is g² = Σ v² / Σ u² at each pixel, which leaves
    2 Σ √(Σ v² Σ u²) − 2 Σ zᵀy to be minimised over log c (L-BFGS).
    """
    transform = Transform(basis, z.shape[-2], z.shape[-1], like=z)
    zh, yh = transform.analyse(z), transform.project(y)
    tiny = torch.finfo(z.dtype).tiny ** 0.5
    cross = float((z * y).sum())

    def energies(c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, v = transform.synthesise(c * zh), transform.unproject(yh / c)
        return u, v, u.square().sum(0) + tiny, v.square().sum(0) + tiny

    best = np.inf, np.empty(0)

    def distance(logarithm: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the distance and its gradient; a frequency counts for its negative too."""
        c = torch.from_numpy(logarithm).reshape(first.shape).to(first).exp()
        u, v, along, against = energies(c)
        value = float((along * against).sqrt().double().sum()) * 2 / abs(cross)
        nonlocal best
        if value < best[0]:  # a search cut short may end on a worse point than it has seen
            best = value, logarithm.copy()
        ratio = (against / along).sqrt()
        gradient = _energy(c * zh, transform.project(u * ratio))
        gradient -= _energy(yh / c, transform.analyse(v / ratio))
        gradient *= 2 / abs(cross)
        if basis == "fourier":
            twice = slice(1, (z.shape[-1] + 1) // 2)
            gradient[..., twice] *= 2
        return value, gradient.double().cpu().numpy().ravel()

    if start is None:
        first = ((_smooth(_energy(yh)) + tiny) / (_smooth(_energy(zh)) + tiny)).log() / 4
    else:
        first = start.log()
    minimize(
        distance,
        first.double().cpu().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": iterations + iterations // 4 + 1},
    )
    found = torch.from_numpy(best[1]).reshape(first.shape).to(first) if len(best[1]) else first
    # Frequencies that leave no trace are bounded, or A⁻¹ would blow up what rounding put there.
    floor = 10 * torch.finfo(z.dtype).eps ** 0.5
    c = found.exp()
    c = c.clamp(min=floor * float(c.max()))
    _, _, along, against = energies(c)
    g = (against / along).sqrt()
    g = g.clamp(min=floor * float(g.max()))
    remaining = float((against / g + g * along).double().sum()) - 2 * cross
    return g, c, max(remaining, 0.0)


def _smooth(energy: Tensor) -> Tensor:
    """Average over neighbouring frequencies, more of them the more there are: ``(C, H, W)``."""
    beside = energy.shape[-2] // SMOOTHED
    if not 0 < beside < energy.shape[-1]:
        return energy
    padded = functional.pad(energy[None], (beside,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * beside + 1, stride=1)[0]


def _energy(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Σ over the pairs of Re(ā b), for each channel and frequency."""
    b = a if b is None else b
    return (a.conj() * b).real.sum(0) if a.is_complex() else (a * b).sum(0)
