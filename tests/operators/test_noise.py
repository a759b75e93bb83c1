"""Noise models against Kay's formula, ideal observers and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn import functional

import eigenexp as ee
from eigenexp.errors import InputError, InputTypeError, ModelError
from eigenexp.operators.noise import Noise

N, M = 12, 8


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(seed))


WEIGHT = _randn(M, N)
PICTURE = torch.rand(1, 1, 3, 4, dtype=torch.float64, generator=_generator(1))
ROOT = _randn(M, M, seed=2)
SIGMA = ROOT @ ROOT.T + torch.eye(M, dtype=torch.float64)
COMMON = _randn(M, 2, seed=3)
STD = 0.5 + torch.rand(M, dtype=torch.float64, generator=_generator(4))


def rates(pictures: Tensor) -> Tensor:
    """Positive responses, each picture of a batch apart."""
    return functional.softplus(pictures.flatten(1) @ WEIGHT.T) + 0.1


def logits(pictures: Tensor) -> Tensor:
    return 2 * torch.sin(pictures.flatten(1) @ WEIGHT.T)


def probabilities(pictures: Tensor) -> Tensor:
    return torch.softmax(logits(pictures), dim=1)


def diagonal_std(f: Tensor) -> Tensor:
    return 1 + f.square()


def coupled_std(f: Tensor) -> Tensor:
    return 1 + f + 0.5 * f.mean()


def wide(f: Tensor) -> Tensor:
    return torch.diag(1 + f.square()) + 0.1 * torch.outer(f, f)


def constant(f: Tensor) -> Tensor:
    return SIGMA.to(f)


def kay(covariance: Callable[[Tensor], Tensor], *, mean_only: bool = False) -> Tensor:
    """Kay 1993, eq. 3.31, entry by entry, of ``rates`` with a covariance C(f)."""
    x = PICTURE.flatten()
    mean = jacobian(lambda y: rates(y[None]).flatten(), x)
    slopes = jacobian(lambda y: covariance(rates(y[None]).flatten()), x)
    inverse = torch.linalg.inv(covariance(rates(x[None]).flatten()))
    fisher = mean.T @ inverse @ mean
    if mean_only:
        return fisher
    parts = torch.einsum("ab,bci->aci", inverse, slopes)
    return fisher + 0.5 * torch.einsum("abi,baj->ij", parts, parts)


NOISES: dict[str, tuple[Noise, Callable[[Tensor], Tensor], bool]] = {
    "gaussian": (ee.noise.Gaussian(2.0), lambda f: 4 * torch.eye(M).to(f), False),
    "gaussian each": (ee.noise.Gaussian(STD), lambda f: torch.diag(STD**2), False),
    "covariance matrix": (ee.noise.GaussianCovariance(SIGMA), constant, False),
    "low rank": (
        ee.noise.LowRank(COMMON, 0.3),
        lambda f: 0.3 * torch.eye(M).to(f) + COMMON @ COMMON.T,
        False,
    ),
    "low rank each": (
        ee.noise.LowRank(COMMON, STD),
        lambda f: torch.diag(STD) + COMMON @ COMMON.T,
        False,
    ),
    "fano": (ee.noise.Fano(1.3), lambda f: torch.diag(1.3 * f), False),
    "fano, mean": (ee.noise.Fano(1.3, mean_only=True), lambda f: torch.diag(1.3 * f), True),
    "multiplicative": (ee.noise.Multiplicative(0.5), lambda f: torch.diag((0.5 * f) ** 2), False),
    "multiplicative, mean": (
        ee.noise.Multiplicative(0.5, mean_only=True),
        lambda f: torch.diag((0.5 * f) ** 2),
        True,
    ),
    "state": (
        ee.noise.StateDependent(diagonal_std),
        lambda f: torch.diag(diagonal_std(f) ** 2),
        False,
    ),
    "state, coupled": (
        ee.noise.StateDependent(coupled_std),
        lambda f: torch.diag(coupled_std(f) ** 2),
        False,
    ),
    "state, mean": (
        ee.noise.StateDependent(coupled_std, mean_only=True),
        lambda f: torch.diag(coupled_std(f) ** 2),
        True,
    ),
    "covariance": (ee.noise.Covariance(wide), wide, False),
    "covariance, mean": (ee.noise.Covariance(wide, mean_only=True), wide, True),
    "covariance, constant": (ee.noise.Covariance(constant), constant, False),
}


@pytest.mark.parametrize("name", NOISES)
def test_gaussian_families_are_kays_formula(name: str) -> None:
    noise, covariance, mean_only = NOISES[name]
    truth = kay(covariance, mean_only=mean_only)
    operator = ee.FisherOperator(rates, PICTURE, noise=noise)
    scale = float(truth.abs().max())
    assert float((operator.to_dense() - truth).abs().max()) <= 1e-12 * scale
    block = _randn(N, 3, seed=5)
    torch.testing.assert_close(operator @ block, truth @ block, rtol=1e-11, atol=1e-11 * scale)
    assert operator.rank_bound == M
    assert operator.problem.noise == str(noise)


ANY: dict[str, tuple[Noise, Callable[[Tensor], Tensor]]] = {
    **{name: (noise, rates) for name, (noise, _, _) in NOISES.items()},
    "poisson": (ee.noise.Poisson(), rates),
    "poisson, dark": (ee.noise.Poisson(0.7), rates),
    "negative binomial": (ee.noise.NegativeBinomial(0.7, 0.2), rates),
    "categorical": (ee.noise.Categorical(), logits),
    "categorical, twice": (ee.noise.Categorical(classes=4), logits),
    "categorical, probabilities": (ee.noise.Categorical("probabilities"), probabilities),
    "bernoulli": (ee.noise.Bernoulli(), logits),
    "bernoulli, probabilities": (ee.noise.Bernoulli("probabilities"), probabilities),
}


@pytest.mark.parametrize("name", ANY)
def test_each_is_the_jacobian_of_its_response(name: str) -> None:
    noise, model = ANY[name]
    at = model(PICTURE).flatten()
    g = jacobian(lambda y: noise.transform(model(y).flatten(), at), PICTURE).reshape(-1, N)
    truth = g.T @ g
    found = ee.FisherOperator(model, PICTURE, noise=noise).to_dense()
    assert float((found - truth).abs().max()) <= 1e-12 * float(truth.abs().max())


@pytest.mark.parametrize("name", ANY)
def test_pictures_of_a_batch_and_of_a_mean_have_it_each_at_its_own_response(name: str) -> None:
    noise, model = ANY[name]
    pictures = [
        torch.rand(1, 1, 3, 4, dtype=torch.float64, generator=_generator(s)) for s in range(3)
    ]
    alone = [ee.FisherOperator(model, picture, noise=noise) for picture in pictures]
    batch = ee.BatchedFisherOperator(model, pictures, one_pass=True, noise=noise)
    blocks = {i: _randn(N, 2, seed=i) for i in range(3)}
    for i, (product, response) in batch.apply(blocks).items():
        torch.testing.assert_close(product, alone[i] @ blocks[i])
        assert response is not None
        assert response.shape == (alone[i].jacobian.shape[0], 2)
    assert batch.at(1).problem.rank_bound == alone[1].rank_bound
    assert batch.at(1).problem.noise == str(noise)
    mean = ee.AverageFisherOperator(model, pictures, noise=noise)
    truth = torch.stack([operator.to_dense() for operator in alone]).mean(0)
    torch.testing.assert_close(mean.to_dense(), truth)
    torch.testing.assert_close(mean.jacobian.to_dense().T @ mean.jacobian.to_dense(), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ANY)
def test_products_of_float32_are_those_of_float64(name: str, dtype: torch.dtype) -> None:
    noise, model = ANY[name]

    def cast(pictures: Tensor) -> Tensor:
        return model(pictures.double()).to(pictures.dtype)

    truth = ee.FisherOperator(model, PICTURE, noise=noise).to_dense()
    plain = cast if dtype == torch.float64 else (lambda p: _single(model, p))
    operator = ee.FisherOperator(plain, PICTURE.to(dtype), noise=noise)
    assert operator.dtype == dtype
    error = float((operator.to_dense().double() - truth).abs().max()) / float(truth.abs().max())
    assert error <= (1e-12 if dtype == torch.float64 else 1e-5)


def _single(model: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    weight = WEIGHT.to(pictures.dtype)
    drive = pictures.flatten(1) @ weight.T
    if model is rates:
        return functional.softplus(drive) + 0.1
    response = 2 * torch.sin(drive)
    return response if model is logits else torch.softmax(response, dim=1)


# -- numbers --------------------------------------------------------------------------------------


def test_the_root_of_a_rate_has_a_quarter_of_its_information() -> None:
    poisson = ee.FisherOperator(rates, PICTURE, noise=ee.noise.Poisson()).to_dense()
    root = ee.FisherOperator(lambda p: rates(p).sqrt(), PICTURE).to_dense()
    torch.testing.assert_close(root, poisson / 4, rtol=1e-12, atol=1e-14)


def test_webers_law_at_one_half_is_six_times_the_logarithm() -> None:
    weber = ee.FisherOperator(rates, PICTURE, noise=ee.noise.Multiplicative(0.5)).to_dense()
    log = ee.FisherOperator(lambda p: rates(p).log(), PICTURE).to_dense()
    torch.testing.assert_close(weber, 6 * log, rtol=1e-12, atol=1e-13)


def test_a_modulated_count_without_modulation_is_poisson() -> None:
    few = ee.FisherOperator(rates, PICTURE, noise=ee.noise.NegativeBinomial(1e-6)).to_dense()
    none = ee.FisherOperator(rates, PICTURE, noise=ee.noise.Poisson()).to_dense()
    torch.testing.assert_close(few, none, rtol=1e-10, atol=1e-12)


def test_an_answer_of_ten_leaves_all_but_nine_directions() -> None:
    n, classes = 36, 10
    weight = _randn(classes, n, seed=7)

    def model(p: Tensor) -> Tensor:
        return torch.tanh(p.flatten(1) @ weight.T)

    picture = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=_generator(8))
    operator = ee.FisherOperator(model, picture, noise=ee.noise.Categorical())
    assert operator.rank_bound == classes - 1
    fisher = operator.to_dense()
    values = torch.linalg.eigvalsh(fisher)
    assert int((values < 1e-12 * values[-1]).sum()) == n - 9
    p = torch.softmax(model(picture).flatten(), dim=0)
    slopes = jacobian(lambda y: torch.softmax(model(y).flatten(), dim=0), picture).reshape(-1, n)
    expected = (slopes.square().sum(1) / p).sum()
    torch.testing.assert_close(fisher.trace(), expected, rtol=1e-12, atol=0)
    found = ee.solve(operator, k=3, which="bottom", tol=1e-6)
    assert found.null_space_dimension == n - 9
    assert found.known == ("0 (null space)",) * 3


@pytest.mark.parametrize("gap", [50.0, 200.0])
def test_answers_that_are_sure_stay_finite_in_float32(gap: float) -> None:
    weight = _randn(4, 9, seed=9).float()
    offset = torch.tensor([gap, 0.0, 0.0, -gap])
    picture = torch.rand(1, 1, 3, 3, generator=_generator(10))

    def model(p: Tensor) -> Tensor:
        return p.flatten(1) @ weight.T + offset

    for noise in (ee.noise.Categorical(), ee.noise.Bernoulli()):
        fisher = ee.FisherOperator(model, picture, noise=noise, allow_zero=True).to_dense()
        assert bool(torch.isfinite(fisher).all())
        at = model(picture).flatten()
        changed = noise.transform(at + 1, at)
        assert bool(torch.isfinite(changed).all())


def test_noise_before_the_model_bends_the_eigenvalues_alone() -> None:
    plain = ee.FisherOperator(rates, PICTURE).to_dense()
    noise = ee.noise.InputNoise(0.3, 0.5)
    found = ee.FisherOperator(rates, PICTURE, noise=noise).to_dense()
    values, vectors = torch.linalg.eigh(plain)
    truth = vectors @ torch.diag(noise.eigenvalues(values)) @ vectors.T
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    assert "mean_only=True" in str(noise)


@pytest.mark.parametrize(
    "inner", [ee.noise.Gaussian(), ee.noise.Poisson(), ee.noise.Covariance(wide)]
)
def test_an_observer_who_sees_the_pixels_adds_the_same_to_each_eigenvalue(inner: Noise) -> None:
    plain = ee.FisherOperator(rates, PICTURE, noise=inner)
    floor = ee.FisherOperator(rates, PICTURE, noise=ee.noise.PixelFloor(0.2, inner))
    truth = plain.to_dense() + 0.2 * torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(floor.to_dense(), truth, rtol=1e-12, atol=1e-13)
    assert floor.rank_bound == N
    found = ee.solve(floor, k=2, tol=1e-9)
    expected = torch.linalg.eigvalsh(truth).flip(0)
    torch.testing.assert_close(found.eigenvalues, expected[[0, 1, -2, -1]])
    assert bool(found.converged.all())


# -- ideal observers ------------------------------------------------------------------------------


def _likelihood(noise: str, r: Tensor, mean: Tensor) -> Tensor:
    if noise == "gaussian":
        return -0.5 * (r - mean).square().sum(1)
    if noise == "poisson":
        return (r * mean.log() - mean).sum(1)
    if noise == "bernoulli":
        return (r * mean.log() + (1 - r) * (1 - mean).log()).sum(1)
    variance = 1.5 * mean if noise == "fano" else 0.04 * mean.square()
    return (-0.5 * (r - mean).square() / variance - 0.5 * variance.log()).sum(1)


def _sample(noise: str, mean: Tensor, trials: int, generator: torch.Generator) -> Tensor:
    rows = mean.expand(trials, len(mean))
    if noise == "poisson":
        return torch.poisson(rows, generator=generator)
    if noise == "bernoulli":
        return torch.bernoulli(rows, generator=generator)
    drawn = torch.randn(rows.shape, dtype=torch.float64, generator=generator)
    if noise == "gaussian":
        return rows + drawn
    return rows + drawn * ((1.5 * rows).sqrt() if noise == "fano" else 0.2 * rows)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "multiplicative", "fano"])
def test_an_ideal_observer_is_right_as_often_as_d_prime_says(name: str) -> None:
    _check_observer(name, 60_000, 0.006)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "poisson", "multiplicative", "fano", "bernoulli"])
def test_an_ideal_observer_is_right_to_three_thousandths(name: str) -> None:
    # The share's standard deviation is 0.0009; 0.0012 for yes or no, of which more are drawn.
    _check_observer(name, 120_000 if name == "bernoulli" else 240_000, 0.003)


def _check_observer(name: str, trials: int, slack: float) -> None:
    # A yes or no tells so little that its d′ adds up to that of F over many of them alone.
    m = 300 if name == "bernoulli" else 50
    generator = _generator(11)
    drawn = torch.rand(m, dtype=torch.float64, generator=generator)
    base = 0.3 + 0.4 * drawn if name == "bernoulli" else 300 + 200 * drawn
    noise = {
        "gaussian": ee.noise.Gaussian(),
        "poisson": ee.noise.Poisson(),
        "multiplicative": ee.noise.Multiplicative(0.2),
        "fano": ee.noise.Fano(1.5),
        "bernoulli": ee.noise.Bernoulli(of="probabilities"),
    }[name]
    operator = ee.FisherOperator(lambda x: base * (1 + x), torch.zeros(1, m).double(), noise=noise)
    direction = functional.normalize(_randn(m, seed=12), dim=0)
    alpha = 1 / float(direction @ (operator @ direction)) ** 0.5  # d′ = 1
    means = base, base * (1 + alpha * direction)
    right, count = 0, 20_000
    for _ in range(trials // count):
        ratios = [
            _likelihood(name, r, means[1]) - _likelihood(name, r, means[0])
            for r in (_sample(name, mean, count, generator) for mean in means)
        ]
        right += int((ratios[1] > ratios[0]).sum())
    expected = 0.5 * (1 + math.erf(0.5))  # Φ(1/√2)
    assert expected == pytest.approx(0.7602, abs=5e-5)
    assert right / trials == pytest.approx(expected, abs=slack)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "model", "match"),
    [
        (ee.noise.Poisson(), logits, r"rate above 0.*got -\S+ at response \d+ \(\d+ of 8"),
        (ee.noise.NegativeBinomial(0.5), logits, "rate above 0"),
        (ee.noise.Fano(), logits, "rate above 0"),
        (ee.noise.Multiplicative(0.5), logits, "rate above 0"),
        (ee.noise.StateDependent(torch.sin), logits, "standard deviation above 0.*at response"),
        (ee.noise.StateDependent(torch.sum), rates, "one standard deviation a response"),
        (
            ee.noise.StateDependent(lambda f: f @ f.T @ torch.ones(3)),
            rates,
            "noise state_dependent",
        ),
        (ee.noise.Covariance(torch.diag), logits, "positive definite"),
        (ee.noise.Covariance(torch.sin), rates, r"shape \(8, 8\), got \(8,\)"),
        (ee.noise.Categorical("probabilities"), logits, "probabilities above 0.*at response"),
        (ee.noise.Categorical("probabilities"), rates, "probabilities of sum 1, got"),
        (ee.noise.Categorical(classes=3), logits, "expected 3 values an answer"),
        (ee.noise.Bernoulli("probabilities"), rates, "between 0 and 1.*at response"),
        (ee.noise.Gaussian(torch.ones(5)), rates, "response of 5 values, got 8"),
        (ee.noise.GaussianCovariance(torch.eye(5)), rates, "response of 5 values, got 8"),
        (ee.noise.LowRank(torch.ones(5, 1)), rates, "response of 5 values, got 8"),
    ],
)
def test_a_response_that_does_not_fit_is_named_in_a_line(
    noise: Noise, model: Any, match: str
) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        ee.FisherOperator(model, PICTURE, noise=noise)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ee.noise.Gaussian(0.0), "std: expected a finite number above 0, got 0"),
        (lambda: ee.noise.Gaussian(float("nan")), "std"),
        (lambda: ee.noise.Gaussian([1.0, -1.0]), "std: expected numbers above 0"),
        (lambda: ee.noise.GaussianCovariance([[1.0, 0.5], [0.4, 1.0]]), "symmetric"),
        (lambda: ee.noise.GaussianCovariance([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda: ee.noise.LowRank([[1.0], [2.0]], [1.0]), "variance"),
        (lambda: ee.noise.Poisson(-1.0), "dark: expected a finite number at least 0"),
        (lambda: ee.noise.NegativeBinomial(0.0), "sigma"),
        (lambda: ee.noise.Categorical("odds"), "of: expected 'logits' or 'probabilities'"),
        (lambda: ee.noise.Categorical(classes=1), "classes: expected at least 2"),
        (lambda: ee.noise.PixelFloor(0.0), "kappa"),
    ],
)
def test_a_parameter_that_cannot_be_is_named_in_a_line(make: Any, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_is_no_noise_is_refused() -> None:
    for make in (
        lambda: ee.FisherOperator(rates, PICTURE, noise="poisson"),  # type: ignore[arg-type]
        lambda: ee.noise.StateDependent(3.0),  # type: ignore[arg-type]
        lambda: ee.noise.PixelFloor(0.1, "poisson"),  # type: ignore[arg-type]
        lambda: ee.Eigendistortion(PICTURE, rates, noise="poisson"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputTypeError, match="expected"):
            make()


def test_noise_is_the_same_where_its_description_is() -> None:
    assert ee.noise.Poisson(0.1) == ee.noise.Poisson(0.1) != ee.noise.Poisson(0.2)
    assert ee.noise.GaussianCovariance(SIGMA) == ee.noise.GaussianCovariance(SIGMA.clone())
    assert ee.noise.GaussianCovariance(SIGMA) != ee.noise.GaussianCovariance(2 * SIGMA)
    assert len({ee.noise.Gaussian(), ee.noise.Gaussian(1), ee.noise.Gaussian(2)}) == 2
    assert str(ee.noise.PixelFloor(0.2, ee.noise.Poisson(0.5))) == (
        "pixel_floor(kappa=0.2, noise=poisson(dark=0.5))"
    )


def test_gaussian_noise_of_one_leaves_every_bit_as_it_was() -> None:
    block = _randn(N, 2, seed=13)
    plain, named = (ee.FisherOperator(rates, PICTURE, noise=n) for n in (None, ee.noise.Gaussian()))
    assert torch.equal(plain @ block, named @ block)
