"""Named inputs that a proof has been wrong about, and what solves may cost, proof included."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from proof_problems import SPECTRA, Truth, colour, of_fisher, of_jacobian
from torch import Tensor, nn

import eigenexp as ee

__all__ = ["NAMED", "Named"]


@dataclass(frozen=True)
class Named:
    """One input under many seeds.

    Attributes
    ----------
    seeds
        Solves in a full run.
    most
        Products that the median solve may take at the most, or ``None``.
    """

    make: Callable[[int], Truth]
    seeds: int
    settings: dict[str, Any] = field(default_factory=dict)
    most: int | None = None


def _basis(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def _random(kind: str, n: int, shape: tuple[int, ...] | None = None) -> Callable[[int], Truth]:
    """Return the maker of F with that spectrum and random eigenvectors: bare, or of a picture."""

    def make(seed: int) -> Truth:
        values, basis = SPECTRA[kind](n).double(), _basis(n, seed)
        if shape is None:
            matrix = (basis * values) @ basis.T
            return of_fisher((matrix + matrix.T) / 2)
        return of_jacobian(values.clamp(min=0).sqrt()[:, None] * basis.T, shape)

    return make


@functools.cache
def _diagonal() -> Truth:
    values = torch.cat([torch.tensor([1e6]), torch.linspace(0, 1, 63)]).double()
    return of_fisher(torch.diag(values))


def _front_end(
    make: Callable[[], nn.Module], picture: Callable[[], Tensor]
) -> Callable[[int], Truth]:
    """Return the maker of a matrix-free F whose truth comes from its dense J, channel by channel.

    Linear models answer to each channel alike, so one channel's values are everybody's, thrice.
    """

    @functools.cache
    def truth() -> Truth:
        x = picture().double()
        model = make().double().eval().requires_grad_(False)
        operator = ee.FisherOperator(model, x)
        single = ee.FisherOperator(model, x[:, :1]) if x.shape[1] > 1 else operator
        exact = of_jacobian(single.jacobian.to_dense(), tuple(x[:, :1].shape[1:]))
        values = exact.values.repeat_interleave(x.shape[1])
        counted = ee.FisherOperator(model, x)
        return Truth(operator, values, lambda v: counted.apply(v)[0], exact.slack)

    return lambda seed: truth()


def _crop() -> Tensor:
    return ee.load_picture("camera", crop=[120, 220, 32, 32]).tensor


TOP, BOTTOM = {"which": "top"}, {"which": "bottom"}

NAMED: dict[str, Named] = {
    "Gaussian(7, 1), colour 32², top 3": Named(
        _front_end(lambda: ee.models.Gaussian(7, 1.0), lambda: colour(32)),
        20,
        {**TOP, "k": 3, "tol": 1e-4},
    ),
    "Gaussian(31, 5), colour 16², top 20": Named(
        _front_end(lambda: ee.models.Gaussian(31, 5.0), lambda: colour(16)),
        40,
        {**TOP, "method": "lanczos", "k": 20, "tol": 1e-2},
        most=40,
    ),
    "0.3^i thrice, n = 100, top 8": Named(
        _random("0.3^i thrice", 100), 100, {**TOP, "k": 8, "tol": 1e-2}, most=26
    ),
    "bottom pair, 6×6, bottom 2": Named(
        _random("bottom pair", 36, (1, 6, 6)), 20, {**BOTTOM, "k": 2, "tol": 1e-6}
    ),
    "bottom pair, 4×4, bottom 8": Named(
        _random("bottom pair", 16, (1, 4, 4)),
        100,
        {**BOTTOM, "method": "lanczos", "k": 8, "tol": 1e-6},
    ),
    "diag(1e6, 0 … 1), bottom 1": Named(
        lambda seed: _diagonal(), 20, {**BOTTOM, "k": 1, "tol": 1e-2}
    ),
    "top double, n = 100, top 2": Named(
        _random("top double", 100), 40, {**TOP, "k": 2, "tol": 1e-3}
    ),
    "OnOff 32², top 5": Named(
        _front_end(ee.models.OnOff, _crop), 5, {**TOP, "k": 5, "tol": 1e-4}, most=75
    ),
    "LGG 32², top 5": Named(
        _front_end(ee.models.LuminanceContrastGainControl, _crop),
        5,
        {**TOP, "k": 5, "tol": 1e-4},
        most=40,
    ),
    "Gaussian(7, 1), colour 24², top 3": Named(
        _front_end(lambda: ee.models.Gaussian(7, 1.0), lambda: colour(24)),
        10,
        {**TOP, "k": 3, "tol": 1e-4},
        most=130,
    ),
    "OnOff 32², both ends 2": Named(
        _front_end(ee.models.OnOff, _crop), 5, {"which": "both", "k": 2, "tol": 1e-4}
    ),
}
