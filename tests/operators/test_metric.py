"""Full-reference measures: their curvature at the picture is F."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.errors import EigenexpError, InputError, InputTypeError, ModelError


def picture(side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 1, side, side, generator=generator, dtype=torch.float64)


class Features(nn.Module):
    """A small perceptual distance: squared differences of two layers' features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(1, 3, 3, padding=1).double()
        self.second = nn.Conv2d(3, 2, 3, padding=1).double()

    def features(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.first(x))
        return torch.cat([a.reshape(-1), self.second(a).reshape(-1)])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.features(x) - self.features(y)).square().sum()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """1 − SSIM over 4×4 blocks, a smooth measure that is no sum of squares."""

    def blocks(z: Tensor) -> Tensor:
        return nn.functional.unfold(z, 4, stride=2)

    a, b = blocks(x), blocks(y)
    ma, mb = a.mean(dim=1), b.mean(dim=1)
    va, vb = a.var(dim=1, correction=0), b.var(dim=1, correction=0)
    cov = ((a - ma[:, None]) * (b - mb[:, None])).mean(dim=1)
    c, d = 1e-4, 9e-4
    return 1 - ((2 * ma * mb + c) * (2 * cov + d) / ((ma**2 + mb**2 + c) * (va + vb + d))).mean()


def test_squared_feature_distances_give_gauss_newton_exactly() -> None:
    distance, x = Features(), picture()
    operator = ee.FisherOperator.from_metric(distance, x)
    jacobian = ee.JacobianOperator(distance.features, x).to_dense()
    expected = jacobian.T @ jacobian
    assert torch.allclose(operator.to_dense(), expected, rtol=1e-10, atol=1e-12)
    spectrum = ee.solve(operator, k=2, which="both", tol=1e-6)
    values = torch.linalg.eigvalsh(expected).flip(0)
    chosen = values[spectrum.eigenindex]
    assert bool(((spectrum.eigenvalues - chosen).abs() <= 1e-5 * values[0]).all())
    assert all(distance.first.weight.requires_grad for _ in (0,))  # the caller's, as it was


def test_another_smooth_measure_gives_half_its_hessian() -> None:
    x = picture()
    operator = ee.FisherOperator.from_metric(ssim, x)
    expected = torch.autograd.functional.hessian(lambda z: ssim(z, x), x).reshape(64, 64) / 2
    assert torch.allclose(operator.to_dense(), expected, rtol=1e-8, atol=1e-10)
    # d of a small change is the quadratic form.
    e = ee.solve(operator, k=1, which="top", tol=1e-6).eigenvectors.reshape(x.shape)
    form = float(e.reshape(-1) @ expected @ e.reshape(-1))
    assert float(ssim(x + 1e-4 * e, x)) == pytest.approx(1e-8 * form, rel=1e-2)


def test_perturbations_are_considered() -> None:
    distance, x = Features(), picture()
    mask = ee.perturbations.Mask(border=2)
    operator = ee.FisherOperator.from_metric(distance, x, perturbations=mask)
    whole = ee.FisherOperator.from_metric(distance, x).to_dense().reshape(8, 8, 8, 8)
    inside = whole[2:6, 2:6, 2:6, 2:6].reshape(16, 16)
    assert torch.allclose(operator.to_dense(), inside, rtol=1e-10, atol=1e-12)
    assert ee.spectrum_card(operator).trace.value == pytest.approx(float(inside.trace()))


def norm(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x - y)


def rooted(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y).square().sum() + 0.0).sqrt()


BAD: list[tuple[Callable[..., Any], str]] = [
    (rooted, "square of a distance"),
    (norm, "square of a distance"),
    (lambda x, y: (x - y).abs().sum(), "twice differentiable"),
    (lambda x, y: -(x - y).square().sum(), "one minus a similarity"),
    (lambda x, y: (x - y).square(), "one floating-point number"),
    (lambda x, y: 3.0, "one floating-point number"),
    (lambda x, y: (x.detach() - y).square().sum(), "without gradient"),
    (lambda x, y: (y * y).sum(), "without gradient"),
    (lambda x, y: x @ y.reshape(3, 3), "expected a number for two pictures"),
]


@pytest.mark.parametrize(("metric", "told"), BAD)
def test_a_measure_without_curvature_is_refused_in_a_line(
    metric: Callable[..., Any], told: str
) -> None:
    with pytest.raises(EigenexpError, match=told) as raised:
        ee.FisherOperator.from_metric(metric, picture())
    assert isinstance(raised.value, ModelError)
    assert "\n" not in str(raised.value)


def test_what_is_no_measure_or_has_no_j_is_refused() -> None:
    with pytest.raises(InputTypeError, match="function of two pictures"):
        ee.FisherOperator.from_metric(3, picture())  # type: ignore[arg-type]
    operator = ee.FisherOperator.from_metric(Features(), picture())
    with pytest.raises(InputError, match="metric's"):
        operator.apply(torch.zeros(64, 1, dtype=torch.float64), "jacobian")
    generator = ee.perturbations.Latent(lambda z: z)
    with pytest.raises(InputError, match="generator into the metric"):
        ee.FisherOperator.from_metric(Features(), picture(), perturbations=generator)
    with pytest.raises(InputTypeError, match="float32 or"):
        ee.FisherOperator.from_metric(Features(), torch.ones(1, 1, 8, 8, dtype=torch.int64))
