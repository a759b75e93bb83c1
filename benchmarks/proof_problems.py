"""What the proof is held against: awkward spectra and shipped models, with a dense oracle each."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import eigenexp as ee

FAMILIES = ("spectrum", "picture", "model")
"""Bare matrices, F of picture shape with random eigenvectors, models at pictures."""
_CYCLE = ("spectrum", "picture", "model", "spectrum", "picture", "spectrum", "model", "picture")


@dataclass(frozen=True, eq=False)
class Truth:
    """An operator and what is true of it, in float64.

    Attributes
    ----------
    values
        ``(n,)`` eigenvalues, decreasing.
    product
        V to F V, in float64.
    slack
        How far ``values`` may be off, over λmax: the rounding of the oracle.
    """

    operator: ee.DenseOperator | ee.FisherOperator
    values: Tensor
    product: Callable[[Tensor], Tensor]
    slack: float

    @property
    def scale(self) -> float:
        """λmax."""
        return float(self.values[0])

    @property
    def n(self) -> int:
        """Order of F."""
        return len(self.values)


@dataclass(frozen=True)
class Case:
    """One problem with one question; drawn from ``(seed, index)`` alone.

    Attributes
    ----------
    family, kind
        What F is: one of :data:`FAMILIES`, and the spectrum's or model's name.
    shape
        ``(C, H, W)`` of the picture, or ``(n,)``.
    form
        ``"jacobian"`` (square J), ``"tall"`` and ``"wide"`` (m ≠ n), ``"fisher"`` (F alone).
    """

    index: int
    family: str
    kind: str
    shape: tuple[int, ...]
    form: str
    dtype: str
    method: str
    which: str
    k: int
    tol: float
    seed: int

    @property
    def n(self) -> int:
        """Order of F."""
        return math.prod(self.shape)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``ee.solve`` is told."""
        return {
            "method": self.method,
            "which": self.which,
            "k": self.k,
            "tol": self.tol,
            "seed": self.seed,
        }


# -- prescribed spectra --------------------------------------------------------------------------


def _logspace(low: float, high: float, n: int) -> Tensor:
    return torch.logspace(low, high, n, dtype=torch.float64)


def _linspace(low: float, high: float, n: int) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


def _values(*parts: float | Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(p, dtype=torch.float64).reshape(-1) for p in parts])


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "repeated": lambda n: _linspace(1, 0.01, -(-n // 3)).repeat_interleave(3)[:n],
    "clustered": lambda n: torch.cat(
        [
            c + 1e-5 * _linspace(1, 0, len(part))
            for c, part in zip((1.0, 0.5, 0.2, 1e-3), torch.arange(n).chunk(4), strict=False)
        ]
    ),
    "0.3^i thrice": lambda n: (0.3 ** torch.arange(n).double()).repeat_interleave(3)[:n],
    "top double": lambda n: _values(1.0, 1.0, _linspace(0.97, 0.0, n - 2)),
    "bottom pair": lambda n: _values(1e-3, 1e-3, _logspace(-2, 0, n - 2)),
    "bottom triple": lambda n: _values(1e-6, 1e-6, 1e-6, _logspace(-4, 0, n - 3)),
    "one huge": lambda n: _values(1e6, _linspace(0, 1, n - 1)),
    "two huge": lambda n: _values(1e6, 1e6, _linspace(0, 1, n - 2)),
    "half zero": lambda n: _values(_linspace(1, 0.01, n - n // 2), torch.zeros(n // 2)),
    "one zero": lambda n: _values(_linspace(1, 0.2, n - 1), 0.0),
    "rank 3": lambda n: _values(1.0, 1.0, 0.5, torch.zeros(n - 3)),
    "geometric": lambda n: _logspace(0, -12, n),
    "steps of 1e-3": lambda n: 1 - 1e-3 * torch.arange(n).double(),
    "uniform": lambda n: _linspace(1, 1 / n, n),
    "crowded top": lambda n: 1 - _linspace(0, 1, n) ** 3,
    "crowded bottom": lambda n: _linspace(1, 0, n) ** 4,
    "identity": lambda n: torch.ones(n, dtype=torch.float64),
    "nearly identity": lambda n: 1 + 1e-6 * _linspace(1, 0, n),
    "zero": lambda n: torch.zeros(n, dtype=torch.float64),
}


def _orthogonal(n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


class PictureOperator(ee.DenseOperator):
    """F = JᵀJ from a dense J, with what a ``FisherOperator`` tells a solver about its picture."""

    hints: Tensor | None = None

    @classmethod
    def of(cls, jacobian: Tensor, shape: tuple[int, ...], picture: Tensor | None) -> Any:
        """Return the operator of ``jacobian`` (m, n) at ``picture``, a picture of ``shape``."""
        self = cls.from_jacobian(jacobian)
        self.image_shape = shape
        if picture is not None:
            flat = picture.reshape(-1, 1).to(jacobian)
            self.hints = torch.cat([flat, torch.ones_like(flat)], dim=1)
        return self

    @property
    def start(self) -> Tensor | None:  # type: ignore[override]
        """The picture and the constant, ``(n, 2)``."""
        return self.hints


def of_jacobian(jacobian: Tensor, shape: tuple[int, ...], picture: Tensor | None = None) -> Truth:
    """Return the truth of F = JᵀJ: eigenvalues from singular values, zeros completed."""
    exact = jacobian.double()
    found = torch.linalg.svdvals(exact).square()
    n = exact.shape[1]
    values = torch.zeros(n, dtype=torch.float64)
    values[: len(found)] = found
    operator = PictureOperator.of(jacobian, shape, picture)
    return Truth(operator, values, lambda v: exact.T @ (exact @ v), 64 * 2.3e-16)


def of_fisher(matrix: Tensor) -> Truth:
    """Return the truth of a symmetric matrix, no J at hand."""
    exact = matrix.double()
    values = torch.linalg.eigvalsh(exact).flip(0)
    return Truth(ee.DenseOperator(matrix), values, exact.__matmul__, 8 * len(exact) * 2.3e-16)


def _prescribed(case: Case) -> Truth:
    """Return F with the case's spectrum and random eigenvectors."""
    n, dtype = case.n, getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(case.index)
    values = SPECTRA[case.kind](n).clamp(min=0).sort(descending=True).values
    basis = _orthogonal(n, generator)
    if case.kind == "one huge" and case.index % 2:
        basis = torch.eye(n, dtype=torch.float64)  # diagonal, as plain as can be
    if case.form == "fisher":
        matrix = (basis * values) @ basis.T
        return of_fisher(((matrix + matrix.T) / 2).to(dtype))
    left = _orthogonal(n, generator)
    jacobian = left * values.sqrt() @ basis.T
    if case.form == "wide":  # fewer responses than values: the smallest are zero
        m = max(1, n - 1 - case.index % max(1, n // 2))
        jacobian = (
            (left[:m, :m] if m == 1 else _orthogonal(m, generator))
            * values[:m].sqrt()
            @ basis[:, :m].T
        )
    if case.form == "tall":
        jacobian = torch.cat([jacobian, torch.zeros_like(jacobian)])
        jacobian = jacobian[torch.randperm(2 * n, generator=generator)]
    return of_jacobian(jacobian.to(dtype), case.shape)


# -- models at pictures --------------------------------------------------------------------------


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.flip(-1)) / 2


def _gray(side: int) -> Tensor:
    return ee.load_picture("camera", crop=[120, 220, side, side]).tensor.double()


def colour(side: int, name: str = "coffee") -> Tensor:
    """Return a picture in colour, ``(1, 3, side, side)`` float64, by areas."""
    whole = ee.load_picture(name, channels="color").tensor.double()
    return torch.nn.functional.interpolate(whole, size=(side, side), mode="area")


PICTURES: dict[str, Callable[[int], Tensor]] = {
    "gray": _gray,
    "symmetric": lambda side: _symmetric(_gray(side)),
    "symmetric twice": lambda side: _symmetric(_symmetric(_gray(side)).mT),
    "constant": lambda side: torch.full((1, 1, side, side), 0.5, dtype=torch.float64),
    "colour": colour,
    "repeated channels": lambda side: _gray(side).expand(1, 3, side, side).contiguous(),
    "constant colour": lambda side: torch.full((1, 3, side, side), 0.5, dtype=torch.float64),
}
GRAY = ("gray", "symmetric", "symmetric twice", "constant")
COLOUR = ("colour", "repeated channels", "constant colour")


class Channelwise(nn.Module):
    """A gray model at each channel of a picture: every eigenvalue at alike channels is thrice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels' responses side by side."""
        return torch.cat([self.inner(x[:, i : i + 1]) for i in range(x.shape[1])], dim=1)


_SMALL: dict[str, Callable[[], nn.Module]] = {
    "Gaussian": lambda: ee.models.Gaussian(7, 1.0),
    "wide Gaussian": lambda: ee.models.Gaussian(11, 3.0),
    "CenterSurround": lambda: ee.models.CenterSurround(7, 1.0, 2.0),
    "LN": lambda: ee.models.LinearNonlinear(7),
    "LG": lambda: ee.models.LuminanceGainControl(7),
    "LGG": lambda: ee.models.LuminanceContrastGainControl(7),
    "OnOff": lambda: ee.models.OnOff(7),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **_SMALL,
    **{
        f"{name}, pooled": functools.partial(
            lambda make: nn.Sequential(make(), nn.AvgPool2d(2)), make
        )
        for name, make in _SMALL.items()
    },
    "LN, max pooled": lambda: nn.Sequential(ee.models.LinearNonlinear(7), nn.MaxPool2d(2)),
}
_TAKES_COLOUR = ("Gaussian", "wide Gaussian", "CenterSurround")


@functools.cache
def model_truth(model: str, picture: str, side: int, dtype: str) -> Truth:
    """Return the truth of a model at a picture; J is made once, matrix-free, in float64."""
    if dtype != "float64":
        exact = model_truth(model, picture, side, "float64")
        jacobian = exact.operator.jacobian.to_dense().to(getattr(torch, dtype))
        return of_jacobian(jacobian, exact.operator.image_shape, PICTURES[picture](side))
    x = PICTURES[picture](side)
    made = MODELS[model]()
    if x.shape[1] > 1 and model.partition(",")[0] not in _TAKES_COLOUR:
        made = Channelwise(made)
    made = made.double().eval().requires_grad_(False)
    jacobian = ee.FisherOperator(made, x).jacobian.to_dense()
    return of_jacobian(jacobian, tuple(x.shape[1:]), x)


# -- drawing -------------------------------------------------------------------------------------

_METHODS = {
    "auto": 36, "lanczos": 24, "davidson": 18, "power": 6, "randomized_svd": 10, "exact": 6,
}  # fmt: skip
_TOLERANCES = {
    "float64": (1e-2, 1e-3, 1e-4, 1e-6, 1e-8),
    "float32": (1e-2, 1e-3, 1e-4, 1e-5),
}


def draw(index: int, seed: int = 0, families: Sequence[str] = FAMILIES) -> Case:
    """Return the case of that number: the same for everybody, whichever others are run."""
    chance = random.Random(f"{seed}/{index}")
    cycle = [family for family in _CYCLE if family in families]
    family = cycle[index % len(cycle)]
    dtype = chance.choice(("float64", "float64", "float32"))
    method = chance.choices(list(_METHODS), weights=list(_METHODS.values()))[0]
    form = "jacobian"
    if family == "model":
        kind = chance.choice(list(MODELS))
        side = chance.choice((8, 8, 10, 12, 12, 16, 24))
        coloured = chance.random() < 0.4
        side = min(side, 12) if coloured else side
        picture = chance.choice(COLOUR if coloured else GRAY)
        kind = f"{kind} at {picture}"
        shape: tuple[int, ...] = (3 if coloured else 1, side, side)
    else:
        kind = chance.choice(list(SPECTRA))
        form = chance.choice(("jacobian", "jacobian", "tall", "wide", "fisher"))
        n = round(math.exp(chance.uniform(math.log(8), math.log(144))))
        shape = (n,)
        if family == "picture":
            form = form if form != "fisher" else "jacobian"
            shape = chance.choice(
                ((1, 4, 4), (1, 6, 6), (1, 8, 8), (3, 4, 4), (1, 9, 11), (3, 6, 6), (1, 12, 12))
            )
    n = math.prod(shape)
    k = min(chance.choice((1, 1, 2, 2, 3, 5, 8, max(1, n // 6))), n)
    which = chance.choice(("top", "bottom", "both"))
    tol = chance.choice(_TOLERANCES[dtype])
    if method == "power":  # a hundredth of the gap an iteration: not made for more
        tol = max(tol, 1e-4)
    if method == "randomized_svd":
        which = "top"
    return Case(
        index, family, kind, shape, form, dtype, method, which, k, tol, chance.randrange(1000)
    )


def build(case: Case) -> Truth:
    """Return the problem of a case."""
    if case.family != "model":
        return _prescribed(case)
    model, _, picture = case.kind.partition(" at ")
    return model_truth(model, picture, case.shape[-1], case.dtype)
