"""Random noise, model and perturbations together against dense float64."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn import functional

import eigenexp as ee
from eigenexp.operators.noise import Noise
from eigenexp.operators.perturbations import Perturbations

P, N = ee.perturbations, ee.noise
SIDE, PIXELS = 6, 36


def _model(chance: random.Random, generator: torch.Generator, m: int) -> Callable[[Tensor], Tensor]:
    """A positive response of m values: dense, or filtered and pooled."""
    weight = torch.randn(m, PIXELS, dtype=torch.float64, generator=generator) / 6
    kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64, generator=generator)
    kind = chance.choice(("dense", "filtered", "divided"))

    def respond(x: Tensor) -> Tensor:
        if kind == "filtered":
            x = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), kernel)
        drive = x.flatten(1) @ weight.T
        if kind == "divided":
            drive = drive / (1 + drive.square().mean())
        return functional.softplus(drive) + 0.2

    return respond


def _noise(chance: random.Random, generator: torch.Generator, m: int) -> Noise:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    root = draw(m, m)
    made: Noise = chance.choice(
        [
            N.Gaussian(0.5 + chance.random()),
            N.Gaussian(0.5 + draw(m).square()),
            N.GaussianCovariance(root @ root.T + torch.eye(m)),
            N.LowRank(draw(m, 2), 0.5 + draw(m).square()),
            N.Poisson(chance.random()),
            N.NegativeBinomial(0.1 + chance.random(), chance.random()),
            N.Fano(0.5 + chance.random(), mean_only=chance.random() < 0.5),
            N.Multiplicative(0.1 + chance.random(), mean_only=chance.random() < 0.5),
            N.StateDependent(lambda f: 0.5 + f.square()),
            N.StateDependent(lambda f: 0.5 + f + f.mean()),
            N.Covariance(lambda f: torch.diag(0.5 + f) + 0.1 * torch.outer(f, f)),
            N.Categorical(),
            N.Bernoulli(),
        ]
    )
    return N.PixelFloor(0.1 + chance.random(), made) if chance.random() < 0.2 else made


def _perturbations(chance: random.Random, generator: torch.Generator) -> Perturbations | None:
    mask = torch.rand(SIDE, SIDE, generator=generator) > 0.4
    shown = torch.randn(2, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    subspaces: list[Perturbations] = [
        P.Mask(mask),
        P.Mask(border=1),
        P.Band(0.1, 0.4),
        P.Band(0.0, 0.5, 45.0, 100.0),
    ]
    rest: list[Perturbations] = [P.ZeroMean(), P.Orthogonal(shown)]
    metrics: list[Perturbations] = [
        P.Taper(2),
        P.Metric(0.2 + shown[0].square()),
        P.LinearLight(),
        P.ContrastSensitivity(8.0),
    ]
    subspace = chance.choice(subspaces)
    return chance.choice(
        [
            None,
            subspace,
            chance.choice(rest),
            chance.choice(metrics),
            subspace & chance.choice(rest),
            chance.choice(metrics) @ subspace,
            chance.choice(metrics) @ (subspace & chance.choice(rest)),
        ]
    )


def _check(seed: int) -> None:
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    m = chance.randint(3, 50)
    picture = torch.rand(1, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    model = _model(chance, generator, m)
    noise, considered = _noise(chance, generator, m), _perturbations(chance, generator)
    at = model(picture).flatten()
    g = jacobian(lambda x: noise.transform(model(x).flatten(), at), picture).reshape(-1, PIXELS)
    truth = g.T @ g + noise.floor * torch.eye(PIXELS, dtype=torch.float64)
    if considered is not None:
        coordinates = considered.at(picture[0])
        b = coordinates.pictures(torch.eye(coordinates.size, dtype=torch.float64)).flatten(1).mT
        truth = b.T @ truth @ b
    operator = ee.FisherOperator(model, picture, noise=noise, perturbations=considered)
    values = torch.linalg.eigvalsh(truth).flip(0)
    scale, told = float(values[0]), f"seed {seed}: {noise}, {considered}, m = {m}"
    assert float((operator.to_dense() - truth).abs().max()) <= 1e-9 * scale, told
    found = ee.solve(operator, k=1, tol=1e-9)
    wanted = values[[0, -1]] if len(values) > 1 else values
    assert float((found.eigenvalues - wanted).abs().max()) <= 1e-9 * scale, told
    assert int((values > 1e-10 * scale).sum()) <= operator.rank_bound, told


@pytest.mark.parametrize("tens", range(5))
def test_random_problems(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        _check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundreds", range(10))
def test_a_thousand_random_problems(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        _check(seed)
