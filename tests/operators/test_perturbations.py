"""Perturbations against dense BᵀFB, closed forms and each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import eigenexp as ee
from eigenexp.errors import InputError, InputTypeError, ModelError
from eigenexp.operators.perturbations import Perturbations

P = ee.perturbations
SIDE, N, M = 12, 144, 60


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(seed))


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=_generator(seed))


WEIGHT = _randn(M, N)
PICTURE = _rand(1, 1, SIDE, SIDE, seed=1)
SPECKLED = _rand(SIDE, SIDE, seed=2) > 0.5
SHOWN = _randn(3, 1, SIDE, SIDE, seed=3)


def rates(pictures: Tensor) -> Tensor:
    return functional.softplus(pictures.flatten(1) @ WEIGHT.T) + 0.1


def matrix(perturbations: Perturbations, image: Tensor = PICTURE) -> Tensor:
    """B, column by column."""
    coordinates = perturbations.at(image[0])
    eye = torch.eye(coordinates.size, dtype=torch.float64)
    return coordinates.pictures(eye).flatten(1).mT


CASES: dict[str, tuple[Perturbations, int]] = {
    "mask": (P.Mask(SPECKLED), int(SPECKLED.sum())),
    "border": (P.Mask(border=3), 36),
    "band": (P.Band(0.1, 0.3), 32),
    "oriented band": (P.Band(0.1, 0.3, 45.0, 40.0), 8),
    "zero mean": (P.ZeroMean(), N - 1),
    "orthogonal": (P.Orthogonal(SHOWN), N - 3),
    "orthogonal to copies": (P.Orthogonal(torch.cat([SHOWN, SHOWN])), N - 3),
    "taper": (P.Taper(3), N),
    "metric": (P.Metric(0.1 + _rand(SIDE, SIDE, seed=4)), N),
    "linear light": (P.LinearLight(), N),
    "whitening": (P.Whitening(_rand(5, 1, SIDE, SIDE, seed=5)), N),
    "contrast sensitivity": (P.ContrastSensitivity(20.0), N),
    "mask of zero mean": (P.Mask(SPECKLED) & P.ZeroMean(), int(SPECKLED.sum()) - 1),
    "two masks": (P.Mask(SPECKLED) & P.Mask(border=2), int(SPECKLED[2:-2, 2:-2].sum())),
    "two bands": (P.Band(0.1, 0.4) & P.Band(0.2, 0.5, 0.0), 12),
    "band of zero mean": (P.Band(0.0, 0.2) & P.ZeroMean() & P.Orthogonal(SHOWN), 17),
    "tapered band": (P.Taper(3) @ P.Band(0.1, 0.3), 32),
    "masked band": (P.Mask(border=2) @ P.Band(0.1, 0.3), 32),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", [None, ee.noise.Poisson(0.2), ee.noise.PixelFloor(0.3)])
def test_the_problem_is_that_of_b(name: str, noise: ee.noise.Noise | None) -> None:
    perturbations, size = CASES[name]
    everything = ee.FisherOperator(rates, PICTURE, noise=noise).to_dense()
    b = matrix(perturbations)
    truth = b.T @ everything @ b
    operator = ee.FisherOperator(rates, PICTURE, noise=noise, perturbations=perturbations)
    scale = float(truth.abs().max())
    assert operator.shape == (size, size)
    assert operator.problem.n == size
    assert operator.image_shape == operator.problem.picture_shape == (1, SIDE, SIDE)
    torch.testing.assert_close(operator.to_dense(), truth, rtol=0, atol=1e-12 * scale)
    block = _randn(size, 3, seed=6)
    torch.testing.assert_close(operator @ block, truth @ block, rtol=0, atol=1e-11 * scale)
    assert operator.rank_bound >= int(torch.linalg.matrix_rank(truth, hermitian=True))
    assert operator.problem.perturbations == str(perturbations)


@pytest.mark.parametrize("name", CASES)
def test_b_its_adjoint_and_its_inverse_belong_together(name: str) -> None:
    perturbations, size = CASES[name]
    coordinates, b = perturbations.at(PICTURE[0]), matrix(perturbations)
    eye = torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(coordinates.adjoints(eye), b.T)
    gram = b.T @ b
    if coordinates.orthonormal:
        torch.testing.assert_close(gram, torch.eye(size, dtype=torch.float64))
    if "masked band" not in name:  # a projection of another map has no inverse
        identity = coordinates.coordinates(b)
        torch.testing.assert_close(identity, torch.eye(size, dtype=torch.float64))
        duals = coordinates.duals(torch.eye(size, dtype=torch.float64))
        torch.testing.assert_close(duals.T @ b, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", ["top", "bottom"])
def test_pairs_are_those_of_what_is_considered(name: str, which: str) -> None:
    perturbations, size = CASES[name]
    everything = ee.FisherOperator(rates, PICTURE).to_dense()
    b = matrix(perturbations)
    values = torch.linalg.eigvalsh(b.T @ everything @ b).flip(0)
    operator = ee.FisherOperator(rates, PICTURE, perturbations=perturbations)
    found = ee.solve(operator, k=2, which=which, tol=1e-7)
    wanted = [0, 1] if which == "top" else [-2, -1]
    bound = 1e-7 * float(values[0])
    torch.testing.assert_close(found.eigenvalues, values[wanted], rtol=0, atol=bound)
    assert bool(found.converged.all())
    assert found.order == size
    assert found.eigenindex.tolist() == [range(size)[i] for i in wanted]
    assert found.eigenvectors.shape == (2, 1, SIDE, SIDE)
    vectors = found.eigenvectors.flatten(1)
    # λ is that of the picture shown, and that lies where it may.
    quotients = ((vectors @ everything) * vectors).sum(1)
    torch.testing.assert_close(quotients, values[wanted], rtol=0, atol=bound)
    inside = b @ torch.linalg.lstsq(b, vectors.T).solution
    torch.testing.assert_close(inside.T, vectors, rtol=0, atol=1e-9)
    if size > M:
        assert found.null_space_dimension == size - M
        assert which == "top" or found.known == ("0 (null space)",) * 2


def test_a_band_of_a_circular_blur_has_the_transfer_function_of_it() -> None:
    f = torch.fft.fftfreq(SIDE, dtype=torch.float64)
    radius = (f[:, None].square() + f[None].square()).sqrt()
    transfer = torch.exp(-2 * torch.pi**2 * 1.5**2 * radius.square())

    def blur(pictures: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(pictures) * transfer).real

    operator = ee.FisherOperator(blur, PICTURE, perturbations=P.Band(0.1, 0.25))
    inside = (radius >= 0.1 - 1e-12) & (radius <= 0.25 + 1e-12)
    expected = transfer[inside].square().sort(descending=True).values
    found = torch.linalg.eigvalsh(operator.to_dense()).flip(0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_a_mask_of_the_identity_has_an_eigenvalue_one_a_pixel() -> None:
    operator = ee.FisherOperator(lambda x: x, PICTURE, perturbations=P.Mask(SPECKLED))
    expected = torch.eye(int(SPECKLED.sum()), dtype=torch.float64)
    torch.testing.assert_close(operator.to_dense(), expected)


def test_a_mask_and_a_band_share_no_vector() -> None:
    mask, band = matrix(P.Mask(SPECKLED)), matrix(P.Band(0.1, 0.3))
    assert float(torch.linalg.matrix_norm(mask.T @ band, 2)) < 1 - 1e-6
    with pytest.raises(InputError, match="share none; compose them with @"):
        P.Mask(SPECKLED) & P.Band(0.1, 0.3)


class Decoder(nn.Module):
    """A linear generator of pictures from codes."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * _randn(N, 7, seed=8))

    def forward(self, code: Tensor) -> Tensor:
        return (code @ self.weight.T).reshape(-1, 1, SIDE, SIDE)


def test_a_linear_generator_has_the_information_of_its_pictures() -> None:
    decoder = Decoder(0.1)
    code = _randn(1, 7, seed=9)
    operator = ee.FisherOperator(rates, code, perturbations=P.Latent(decoder))
    pictures = ee.FisherOperator(rates, decoder(code).detach()).to_dense()
    g = decoder.weight.detach()
    torch.testing.assert_close(operator.to_dense(), g.T @ pictures @ g, rtol=1e-10, atol=1e-12)
    some = P.Latent(decoder) @ P.Orthogonal(_randn(1, 7, seed=10))
    assert ee.FisherOperator(rates, code, perturbations=some).shape == (6, 6)
    with pytest.raises(ModelError, match="zero Jacobian"):
        ee.FisherOperator(rates, code, perturbations=P.Latent(Decoder(0.0)))


@pytest.mark.parametrize(
    ("perturbations", "shape"),
    [
        (P.Colour("luminance"), (1, 8, 8)),
        (P.Colour("red-green", "blue-yellow"), (2, 8, 8)),
        (P.Colour("luminance", "red-green") & P.Colour("red-green"), (1, 8, 8)),
        (P.Colour("red-green") & P.Band(0.1, 0.3) & P.ZeroMean(), (20,)),
        (P.Colour("luminance") & P.Mask(border=2), (1, 4, 4)),
        (P.ZeroMean(), (189,)),
    ],
)
def test_colours_of_a_picture(perturbations: Perturbations, shape: tuple[int, ...]) -> None:
    weight = _randn(300, 192, seed=11)
    picture = _rand(1, 3, 8, 8, seed=12)

    def model(x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ weight.T)

    everything = ee.FisherOperator(model, picture).to_dense()
    operator = ee.FisherOperator(model, picture, perturbations=perturbations)
    b = matrix(perturbations, picture)
    assert operator.problem.image_shape == shape
    torch.testing.assert_close(b.T @ b, torch.eye(b.shape[1], dtype=torch.float64))
    torch.testing.assert_close(operator.to_dense(), b.T @ everything @ b)
    if isinstance(perturbations, P.Colour):
        planes = b.T.reshape(-1, 3, 64).sum(1)  # luminance alone has a sum over channels
        assert bool(planes.any()) == ("luminance" in str(perturbations))


@pytest.mark.parametrize("name", ["band", "linear light", "mask of zero mean", "tapered band"])
def test_pictures_of_a_batch_and_of_a_mean_have_it_too(name: str) -> None:
    perturbations, size = CASES[name]
    pictures = [_rand(1, 1, SIDE, SIDE, seed=s) for s in (20, 21, 22)]
    alone = [ee.FisherOperator(rates, p, perturbations=perturbations) for p in pictures]
    batch = ee.BatchedFisherOperator(rates, pictures, one_pass=True, perturbations=perturbations)
    blocks = {i: _randn(size, 2, seed=i) for i in range(3)}
    for i, (product, _) in batch.apply(blocks).items():
        torch.testing.assert_close(product, alone[i] @ blocks[i])
    found = ee.solve(batch.at(1), which="top", tol=1e-6)
    truth = torch.linalg.eigvalsh(alone[1].to_dense())[-1:]
    torch.testing.assert_close(found.eigenvalues, truth)
    if name == "linear light":
        with pytest.raises(InputError, match="depends on the picture"):
            ee.AverageFisherOperator(rates, pictures, perturbations=perturbations)
        return
    mean = ee.AverageFisherOperator(rates, pictures, perturbations=perturbations)
    truth = torch.stack([operator.to_dense() for operator in alone]).mean(0)
    torch.testing.assert_close(mean.to_dense(), truth)
    assert mean.problem.n == size


def test_a_taper_keeps_distortions_off_the_border() -> None:
    model = ee.models.Gaussian(7, 1.0).double()
    plain, tapered = (
        ee.solve(ee.FisherOperator(model, PICTURE, perturbations=p), which="top")
        for p in (None, P.Taper(4))
    )
    shares = []
    for found in (plain, tapered):
        e = found.eigenvectors[0, 0].square()
        shares.append(float(1 - e[2:-2, 2:-2].sum() / e.sum()))
    assert shares[1] < 0.5 * shares[0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: P.Mask(), "a mask or a border"),
        (lambda: P.Mask(torch.zeros(SIDE, SIDE)).at(PICTURE[0]), "got none of 144"),
        (lambda: P.Mask(border=6).at(PICTURE[0]), "got none of 144"),
        (lambda: P.Mask(torch.ones(3, 3)).at(PICTURE[0]), r"got \(3, 3\)"),
        (lambda: P.Band(0.3, 0.1), "0 ≤ low ≤ high"),
        (lambda: P.Band(0.71, 0.8).at(PICTURE[0]), "expected frequencies"),
        (lambda: P.Band(0.1, 0.2) & P.Band(0.3, 0.4), "bands that overlap"),
        (lambda: P.Taper(0), "width"),
        (lambda: P.Taper(2) & P.Band(0.1, 0.2), r"taper\(width=2\): expected a subspace"),
        (lambda: P.Latent(rates) & P.ZeroMean(), "expected a subspace to intersect, got a map"),
        (lambda: P.Taper(2) @ P.Latent(rates), "generator last"),
        (lambda: P.Metric(torch.zeros(SIDE, SIDE)), "above 0"),
        (lambda: P.Metric(torch.ones(3, 3)).at(PICTURE[0]), "expands"),
        (lambda: P.Colour("mauve"), "got 'mauve'"),
        (lambda: P.Colour("luminance").at(PICTURE[0]), "three channels"),
        (lambda: P.Colour("luminance") & P.Colour("red-green"), "a direction in both"),
        (lambda: P.Orthogonal(torch.zeros(1, 1, SIDE, SIDE)), "not all 0"),
        (lambda: P.Orthogonal(torch.ones(5)).at(PICTURE[0]), "of shape"),
        (lambda: P.Orthogonal(torch.eye(N)).at(PICTURE[0]), "leaves none of 144"),
        (lambda: P.Whitening(torch.ones(2, 1, 8, 8)), "not constant"),
        (lambda: P.Band(0.1, 0.2).at(PICTURE.flatten()), "rows and columns"),
        (lambda: P.ContrastSensitivity(0.0), "pixels_per_degree"),
        (lambda: P.LinearLight(0.0), "gamma"),
    ],
)
def test_what_leaves_nothing_or_does_not_fit_is_told_in_a_line(
    make: Callable[[], Any], match: str
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_is_no_perturbations_is_refused() -> None:
    for make in (
        lambda: ee.FisherOperator(rates, PICTURE, perturbations="band"),  # type: ignore[arg-type]
        lambda: P.Orthogonal("to"),
        lambda: P.Latent(3.0),  # type: ignore[arg-type]
        lambda: P.Mask(border=1) & "band",  # type: ignore[operator]
    ):
        with pytest.raises((InputTypeError, TypeError)):
            make()
