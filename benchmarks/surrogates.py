"""Products with each surrogate of F, on networks of many kinds, beside the yardstick's.

    python benchmarks/surrogates.py [--problems …] [--seeds 3] [--out table.json]

The thresholds in ``eigenexp/eigensolvers/surrogates.py`` are read off this table: ``choice`` is the
solver as it is, the other columns force one surrogate, whether it fits or not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from solver_cells import measure
from solver_problems import MODELS, Cell, PictureOperator, Problem, einstein
from torch import Tensor, nn
from yardstick import least_products

import eigenexp as ee
from eigenexp.eigensolvers import surrogates

SIDE, COLOUR_SIDE = 32, 18
FORCED = {
    "choice": {},
    "convolution": {"CONVOLUTION_FITS": 1e9},
    "frame": {"CONVOLUTION_FITS": 0.0, "FRAME_FITS": 1e9},
    "rows": {"CONVOLUTION_FITS": 0.0, "FRAME_FITS": 0.0, "ROWS_FIT": 1e9},
    "none": {"CONVOLUTION_FITS": 0.0, "FRAME_FITS": 0.0, "ROWS_FIT": 0.0},
}


class Attention(nn.Module):
    """One block of a transformer on patches of 4×4 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = self.block(self.patches(x).flatten(2).mT)
        return tokens


class Residual(nn.Module):
    """x + convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x + self.body(x)


def _c(*arguments: int, **settings: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **settings)


def _b(channels: int) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(channels)


def _made(layers: list[Callable[[], nn.Module]], seed: int, channels: int) -> nn.Module:
    """Return a network with random weights, its batch statistics those of noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(*(layer() for layer in layers))
        for _ in range(3):
            network(torch.rand(8, channels, SIDE, SIDE))
    return network.double().eval().requires_grad_(False)


POOL, MEAN = (lambda: nn.MaxPool2d(2)), (lambda: nn.AvgPool2d(2))
GRAY: dict[str, list[Callable[[], nn.Module]]] = {
    "softplus": [_c(1, 8, 5, padding=2), nn.Softplus, _c(8, 8, 5, stride=2), nn.Softplus],
    "relu pool": [_c(1, 8, 5), nn.ReLU, POOL, _c(8, 16, 3), nn.ReLU, POOL],
    "bn gelu mean": [
        _c(1, 16, 5, padding=2),
        _b(16),
        nn.GELU,
        MEAN,
        _c(16, 32, 3, stride=2, padding=1),
        _b(32),
        nn.GELU,
    ],
    "bn relu pool": [
        _c(1, 32, 5, stride=2, padding=2),
        _b(32),
        nn.ReLU,
        POOL,
        _c(32, 64, 3, stride=2, padding=1),
        _b(64),
        nn.ReLU,
    ],
    "softplus flat": [_c(1, 8, 5, padding=2), nn.Softplus, _c(8, 4, 3, padding=1), nn.Softplus],
    "tanh stride": [_c(1, 16, 5, stride=2, padding=2), nn.Tanh, _c(16, 8, 3, padding=1), nn.Tanh],
    "softplus mean": [
        _c(1, 8, 5, padding=2),
        nn.Softplus,
        MEAN,
        _c(8, 16, 3, padding=1),
        nn.Softplus,
    ],
    "gelu patches": [_c(1, 32, 4, stride=4), nn.GELU, _c(32, 32, 3, padding=1), nn.GELU],
    "leaky": [
        _c(1, 8, 5, padding=2),
        lambda: nn.LeakyReLU(0.1),
        _c(8, 8, 5, stride=2),
        lambda: nn.LeakyReLU(0.1),
    ],
    "relu stride": [_c(1, 16, 5, stride=2, padding=2), nn.ReLU, _c(16, 16, 3, padding=1), nn.ReLU],
    "relu flat": [_c(1, 8, 5, padding=2), nn.ReLU, _c(8, 8, 3, padding=1), nn.ReLU],
    "silu residual": [_c(1, 8, 3, stride=2, padding=1), lambda: Residual(8), nn.SiLU],
    "elu deep": [
        _c(1, 8, 3, padding=1),
        nn.ELU,
        _c(8, 16, 3, stride=2, padding=1),
        nn.ELU,
        _c(16, 32, 3, stride=2, padding=1),
        nn.ELU,
    ],
    "softplus pool": [
        _c(1, 8, 5, padding=2),
        nn.Softplus,
        POOL,
        _c(8, 16, 3, padding=1),
        nn.Softplus,
    ],
    "alex": [_c(1, 48, 7, stride=4, padding=3), nn.ReLU, POOL, _c(48, 64, 3, padding=1), nn.ReLU],
    "attention": [lambda: Attention(32)],
    "dense": [nn.Flatten, lambda: nn.Linear(SIDE * SIDE, SIDE * SIDE), nn.Softplus],
    "sigmoid big": [
        _c(1, 12, 9, stride=3, padding=4),
        nn.Sigmoid,
        _c(12, 12, 3, padding=1),
        nn.Sigmoid,
    ],
}
COLOUR: dict[str, list[Callable[[], nn.Module]]] = {
    "rgb softplus": [
        _c(3, 16, 3, padding=1),
        nn.Softplus,
        _c(16, 16, 3, stride=2, padding=1),
        nn.Softplus,
    ],
    "rgb relu pool": [_c(3, 16, 3, padding=1), nn.ReLU, POOL, _c(16, 16, 3, padding=1), nn.ReLU],
    "rgb bn gelu": [
        _c(3, 32, 3, stride=2, padding=1),
        _b(32),
        nn.GELU,
        _c(32, 32, 3, padding=1),
        _b(32),
        nn.GELU,
    ],
    "rgb softplus flat": [_c(3, 8, 3, padding=1), nn.Softplus, _c(8, 8, 3, padding=1), nn.Softplus],
}
FRONT_ENDS = ("OnOff", "LG", "LGG", "LN", "Gaussian")
PROBLEMS = (*GRAY, *COLOUR, *FRONT_ENDS)


def problem(name: str) -> Problem:
    """Return a problem with its dense F, order 972 or 1024."""
    if name in FRONT_ENDS:
        model, picture = MODELS[name]().double().eval().requires_grad_(False), einstein(SIDE)
    elif name in COLOUR:
        model = _made(COLOUR[name], 0, 3)
        gray = einstein(3 * COLOUR_SIDE)
        picture = torch.cat([gray[..., i::3, i::3] for i in range(3)], dim=1)
    else:
        model, picture = _made(GRAY[name], 0, 1), einstein(SIDE)
    operator = ee.FisherOperator(model, picture)
    jacobian = operator.jacobian.to_dense()
    return Problem.of(name, PictureOperator.of(jacobian, picture))


@contextlib.contextmanager
def forced(kind: str) -> Iterator[None]:
    """Use one surrogate whether it fits or not."""
    saved = {name: getattr(surrogates, name) for name in FORCED[kind]}
    vars(surrogates).update(FORCED[kind])
    try:
        yield
    finally:
        vars(surrogates).update(saved)


def rows(
    truth: Problem, seeds: int, kinds: list[str], pairs: list[int], tol: float
) -> Iterator[dict[str, Any]]:
    """Yield one row for each number of pairs at the bottom."""
    goals = [Cell("bottom", k, tol) for k in pairs]
    yards = [
        least_products(truth.fisher.__matmul__, truth.n, seed, goals, truth.values)
        for seed in range(seeds)
    ]
    for cell in goals:
        row: dict[str, Any] = {"problem": truth.name, "cell": cell.name}
        row["yardstick"] = [yard[cell] for yard in yards]
        for kind in kinds:
            with forced(kind):
                runs = [
                    # Ends unconverged at twice the yardstick, or at 510 products.
                    measure(truth, "davidson", cell, seed, max(1, yards[seed][cell] // 5 - 50))
                    for seed in range(seeds)
                ]
            row[kind] = [int(run["products"]) for run in runs]
            row[f"{kind} proof"] = [run["verify"] for run in runs]
            row[f"{kind} wrong"] = sum(len(run["wrong"]) for run in runs)
            row[f"{kind} ends"] = [run["stop_reason"] for run in runs]
            row[f"{kind} by"] = runs[0]["notes"][0] if runs[0]["notes"] else ""
        yield row


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--kinds", nargs="+", default=list(FORCED), choices=list(FORCED))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pairs", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = []
    for name in options.problems:
        for row in rows(problem(name), options.seeds, options.kinds, options.pairs, options.tol):
            table.append(row)
            counts = "  ".join(f"{kind} {row[kind]}" for kind in options.kinds)
            by = row[f"{options.kinds[0]} by"].removeprefix("preconditioned by ")
            print(
                f"{name}, {row['cell']}: yardstick {row['yardstick']}  {counts}  ({by})", flush=True
            )
    if options.out is not None:
        options.out.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
