"""What eigensolvers are measured on: problems, and the judge of a result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

import eigenexp as ee

SIDE = 32


@dataclass(frozen=True, order=True)
class Cell:
    """One question: ``k`` pairs at an end, to a residual of ``tol · λmax``."""

    which: str
    k: int
    tol: float

    @property
    def name(self) -> str:
        """``top1`` and the like."""
        return f"{self.which}{self.k}"

    def wanted(self, n: int) -> list[int]:
        """Return the places asked for in the whole spectrum, 0 the largest."""
        top = range(self.k) if self.which != "bottom" else range(0)
        bottom = range(n - self.k, n) if self.which != "top" else range(0)
        return sorted({*top, *bottom})


NAMES = ("top1", "top5", "bottom1", "bottom5", "both1", "both5")
TOLERANCES = (1e-3, 1e-6)


def cells(names: Iterable[str] = NAMES, tolerances: Iterable[float] = TOLERANCES) -> list[Cell]:
    """Return the cells, single ends first."""
    return [Cell(name[:-1], int(name[-1]), tol) for name in names for tol in tolerances]


class PictureOperator(ee.DenseOperator):
    """F = JᵀJ from a dense J, with what a ``FisherOperator`` tells a solver about its picture."""

    @classmethod
    def of(cls, jacobian: Tensor, picture: Tensor) -> Self:
        """Return the operator of ``jacobian`` (m, n) at ``picture`` (1, C, H, W)."""
        self = cls.from_jacobian(jacobian)
        self.image_shape = tuple(picture.shape[1:])
        flat = picture.reshape(-1, 1).to(jacobian)
        self._hints = torch.cat([flat, torch.ones_like(flat)], dim=1)
        return self

    @property
    def start(self) -> Tensor:
        """The picture and the constant, ``(n, 2)``."""
        return self._hints


def count(operator: ee.DenseOperator | ee.FisherOperator) -> float:
    """Return the products made so far: one is a J·v and a Jᵀ·u, whoever asked for them."""
    jacobian = operator.jacobian
    return (jacobian.num_jvp + jacobian.num_vjp) / 2


@dataclass(frozen=True, eq=False)
class Problem:
    """An operator, its F in float64, and the true eigenvalues, decreasing."""

    name: str
    operator: ee.DenseOperator
    fisher: Tensor
    values: Tensor

    @classmethod
    def of(cls, name: str, operator: ee.DenseOperator) -> Self:
        """Decompose in float64; eigenvalues from singular values, zeros completed."""
        jacobian = operator.jacobian.to_dense().double()
        found = torch.linalg.svdvals(jacobian).square()
        values = torch.zeros(operator.shape[0], dtype=torch.float64)
        values[: len(found)] = found
        return cls(name, operator, jacobian.T @ jacobian, values)

    @property
    def n(self) -> int:
        """Order of F."""
        return self.operator.shape[0]

    @property
    def scale(self) -> float:
        """λmax."""
        return float(self.values[0])

    def single(self) -> Problem:
        """Return the problem of J rounded to float32, with the truth of that J."""
        operator = self.operator
        jacobian = operator.jacobian.to_dense().float()
        picture = operator.start[:, 0].float().reshape(1, *operator.image_shape)
        return Problem.of(self.name, PictureOperator.of(jacobian, picture))


# -- pictures and models -----------------------------------------------------------------------


@functools.cache
def einstein(side: int) -> Tensor:
    """Return plenoptic's einstein, cropped, ``(1, 1, side, side)`` float64 in [0, 1]."""
    import plenoptic

    first = min(100, 256 - side)
    crop: Tensor = plenoptic.data.einstein()[..., first : first + side, first : first + side]
    return crop.double()


def _net(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(*(layer() for layer in layers))

    return make


relu_net = _net(
    lambda: nn.Conv2d(1, 8, 5),
    nn.ReLU,
    lambda: nn.MaxPool2d(2),
    lambda: nn.Conv2d(8, 16, 3),
    nn.ReLU,
    lambda: nn.MaxPool2d(2),
)
softplus_net = _net(
    lambda: nn.Conv2d(1, 8, 5, padding=2),
    nn.Softplus,
    lambda: nn.Conv2d(8, 8, 5, stride=2),
    nn.Softplus,
)

MODELS: dict[str, Callable[[], nn.Module]] = {
    "OnOff": ee.models.OnOff,
    "LN": ee.models.LinearNonlinear,
    "LG": ee.models.LuminanceGainControl,
    "LGG": ee.models.LuminanceContrastGainControl,
    "Gaussian": lambda: ee.models.Gaussian(31, 1.0),
    "ReLU net": relu_net,
    "softplus net": softplus_net,
}


def fisher(model: str, side: int, dtype: torch.dtype = torch.float64) -> ee.FisherOperator:
    """Return the matrix-free operator of a model at a crop of einstein."""
    made = MODELS[model]().to(dtype).eval().requires_grad_(False)
    return ee.FisherOperator(made, einstein(side).to(dtype))


def problem(model: str) -> Problem:
    """Return a model's problem at 32×32, its dense J computed once."""
    operator = fisher(model, SIDE)
    jacobian = operator.jacobian.to_dense()
    return Problem.of(model, PictureOperator.of(jacobian, operator.jacobian.image))


# -- prescribed spectra ------------------------------------------------------------------------


def _ulp(n: int) -> Tensor:
    values = torch.linspace(1, 0.1, n, dtype=torch.float64)
    for first in (0, n // 2, n - 6):
        for i in range(first, first + 5):
            values[i + 1] = torch.nextafter(values[i], values.new_zeros(()))
    return values


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "repeated": lambda n: torch.linspace(1, 0.01, -(-n // 3)).double().repeat_interleave(3)[:n],
    "clustered": lambda n: torch.cat(
        [c + 1e-5 * torch.linspace(1, 0, len(s)).double() for c, s in _clusters(n)]
    ),
    "one ulp apart": _ulp,
    "half zero": lambda n: torch.cat([torch.linspace(1, 0.01, n - n // 2), torch.zeros(n // 2)]),
    "one zero": lambda n: torch.cat([torch.linspace(1, 0.2, n - 1), torch.zeros(1)]),
    "rank 3": lambda n: torch.cat([torch.tensor([1.0, 1.0, 0.5]), torch.zeros(n - 3)]),
    "geometric": lambda n: torch.logspace(0, -12, n),
    "identity": torch.ones,
    "all zero": torch.zeros,
}


def _clusters(n: int) -> list[tuple[float, Tensor]]:
    return list(zip((1.0, 0.5, 0.2, 1e-3), torch.arange(n).chunk(4), strict=True))


def prescribed(kind: str, seed: int) -> Problem:
    """Return a problem of order 60 to 193 with that spectrum in a random basis."""
    n = 60 + 7 * (seed % 20)
    generator = torch.Generator().manual_seed(1000 + seed)
    values = SPECTRA[kind](n).double()
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    left = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    jacobian = left * values.sqrt() @ basis.T
    if kind == "identity":
        jacobian = torch.eye(n, dtype=torch.float64)
    return Problem(kind, ee.DenseOperator.from_jacobian(jacobian), jacobian.T @ jacobian, values)


# -- the judge ---------------------------------------------------------------------------------


def wrong_pairs(
    truth: Problem, cell: Cell, index: Sequence[int], values: Tensor, vectors: Tensor
) -> list[str]:
    """Say which wanted pairs are missed or wrong, one sentence a pair.

    A pair is right when its eigenvalue lies within ``2 · tol · λmax`` of the true one of its index,
    its true residual is at most that too, and its vector is not one already returned.
    """
    limit = 2 * cell.tol * truth.scale + 1e-300
    values = values.double().cpu()
    vectors = vectors.reshape(len(values), -1).double().cpu()
    found = []
    place_of = {int(i): place for place, i in enumerate(index)}
    earlier: list[Tensor] = []
    for i in cell.wanted(truth.n):
        if i not in place_of:
            found.append(f"pair {i} is missing")
            continue
        value, vector = values[place_of[i]], vectors[place_of[i]]
        vector = vector / vector.norm()
        residual = float((truth.fisher @ vector - value * vector).norm())
        error = abs(float(value - truth.values[i]))
        rest = vector
        for other in earlier:
            rest = rest - other * (other @ rest)
        if not error <= limit:
            found.append(f"pair {i}: eigenvalue off by {error / truth.scale:.1e} λmax")
        elif not residual <= limit:
            found.append(f"pair {i}: residual {residual / truth.scale:.1e} λmax")
        elif not float(rest.norm()) > 0.5:
            found.append(f"pair {i}: returned twice")
        if float(rest.norm()) > 0:
            earlier.append(rest / rest.norm())
    return found
