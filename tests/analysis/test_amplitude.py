"""Finite amplitudes: d′ from responses, and the radii within which F predicts it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.errors import InputError, ModelError
from eigenexp.spectrum import Spectrum


def picture(side: int = 32) -> ee.Picture:
    return ee.load_picture("camera", crop=[120, 220, side, side], dtype="float64")


def pairs_of(model: Callable[[Tensor], Any], x: Tensor, **options: Any) -> Spectrum:
    """Return both ends of F, from the dense Jacobian: a reference, and fast where small."""
    return ee.solve(ee.FisherOperator(model, x, **options), k=1, which="both", method="exact")


@functools.cache
def onoff() -> tuple[Any, ee.Picture, Spectrum]:
    model, x = ee.models.OnOff().double(), picture()
    spectrum = ee.solve(ee.FisherOperator(model, x.tensor), k=1, which="both", tol=1e-6)
    return model, x, spectrum


def test_d_prime_of_onoff_is_the_tabulated_share_of_the_linear_one() -> None:
    model, x, spectrum = onoff()
    top, bottom = ee.amplitude(model, x, spectrum)
    # (α, d′/(α√λ) at +α, at −α), with the canonical signs of e.
    known = [(top, 0.1, 0.911, 0.986), (top, 1.0, 0.634, 0.737), (top, 10.0, 0.293, 0.237),
             (bottom, 1.0, 0.935, 1.08)]  # fmt: skip
    for pair, alpha, plus, minus in known:
        for share, signed in ((plus, alpha), (minus, -alpha)):
            found = pair.d_true(signed) / pair.d_linear(signed)
            assert found == pytest.approx(share, abs=5e-4 if share < 1 else 5e-3)
    assert top.threshold == pytest.approx(float(spectrum.eigenvalues[0]) ** -0.5)


def test_radii_are_where_a_dense_scan_finds_them() -> None:
    model, x, spectrum = onoff()
    found = ee.amplitude(model, x, spectrum)
    look = ee.Discriminability(model, x)
    for place, pair in enumerate(found):
        e = spectrum.eigenvectors[place]
        root = math.sqrt(float(spectrum.eigenvalues[place]))
        assert pair.validity_radius is not None
        assert pair.clip_radius is not None

        def off(alpha: float, e: Tensor = e, root: float = root) -> float:
            return max(abs(look.along(e, s * alpha) / (alpha * root) - 1) for s in (1, -1))

        def changed(alpha: float, e: Tensor = e) -> float:
            shown = [look.along(e, s * alpha, clip=True) for s in (1, -1)]
            free = [look.along(e, s * alpha) for s in (1, -1)]
            return max(abs(a / b - 1) for a, b in zip(shown, free, strict=True))

        for radius, excess, most in (
            (pair.validity_radius, off, 0.1),
            (pair.clip_radius, changed, 0.01),
        ):
            assert excess(1.02 * radius) > most
            for share in (0.1, 0.3, 0.6, 0.8, 0.98):
                assert excess(share * radius) <= most


def test_strict_radius_and_clipped_values_are_those_of_the_pixels() -> None:
    model, x, spectrum = onoff()
    pair = ee.amplitude(model, x, spectrum)[0]
    e = spectrum.eigenvectors[0]
    assert pair.strict_radius is not None
    for share, inside in ((0.999, True), (1.001, False)):
        both = torch.cat([x.tensor[0] + s * share * pair.strict_radius * e for s in (1, -1)])
        assert bool(((both >= 0) & (both <= 1)).all()) is inside
    outside = x.tensor[0] + 5 * e
    assert pair.clipped(5.0) == int(((outside < 0) | (outside > 1)).sum()) > 0


def test_a_pixel_at_the_edge_of_the_range_leaves_no_strict_radius() -> None:
    x = picture(12).tensor
    model = ee.models.Gaussian(kernel_size=7, std=1.0).double()
    spectrum = pairs_of(model, x)  # of a linear model: of any picture
    x.view(-1)[spectrum.eigenvectors[0].abs().argmin()] = 1.0
    found = ee.amplitude(model, x, spectrum)
    assert found[0].strict_radius == 0.0
    assert found[0].clip_radius is not None
    assert found[0].clip_radius > 0


def test_a_linear_model_is_valid_at_any_amplitude() -> None:
    x = picture(12)
    model = ee.models.Gaussian(kernel_size=7, std=1.0).double()
    for pair in ee.amplitude(model, x, pairs_of(model, x.tensor)):
        assert pair.validity_radius == math.inf
        assert pair.ordering_radius == math.inf
        assert pair.d_true(3.0) == pytest.approx(pair.d_linear(3.0), rel=1e-9)
        reached = pair.alpha_at(2.0)
        if 2 * pair.threshold < pair.reach:
            assert reached == pytest.approx(2 * pair.threshold, rel=0.011)
        else:
            assert reached is None


class Bent(torch.nn.Module):
    """Two directions whose order turns at a known amplitude: r₀ = tanh(2 x₀), r₁ = x₁."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        return torch.stack([torch.tanh(2 * flat[0]), flat[1]])


def test_the_ordering_radius_is_where_the_top_falls_below_the_bottom() -> None:
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    top, bottom = ee.amplitude(Bent(), x, pairs_of(Bent(), x))
    # tanh(2α) = α at α = 0.9575.
    assert top.ordering_radius == pytest.approx(0.95750, rel=0.011)
    assert bottom.ordering_radius == top.ordering_radius
    # tanh(2α)/(2α) = 0.9 at α = 0.2917.
    assert top.validity_radius == pytest.approx(0.2917, rel=0.011)
    assert bottom.validity_radius == math.inf
    alone = ee.amplitude(Bent(), x, pairs_of(Bent(), x)[0])
    assert alone[0].ordering_radius is None
    assert any("other end" in note for note in alone[0].notes)


def test_a_null_vector_has_no_validity_radius_and_says_so() -> None:
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)

    def model(picture: Tensor) -> Tensor:
        return picture.reshape(-1)[:2].square() + 0 * picture.sum()

    pair = ee.amplitude(model, x, pairs_of(model, x))[-1]
    assert pair.threshold == math.inf
    assert pair.validity_radius is None
    assert any("λ is 0" in note for note in pair.notes)
    assert pair.d_linear(3.0) == 0.0
    assert "∞" in str(ee.amplitude(model, x, pairs_of(model, x)))


def rates(picture: Tensor) -> Tensor:
    """Return positive responses."""
    flat = picture.reshape(-1)
    return 0.2 + flat.square() + 0.3 * flat.roll(1)


NOISES = [
    ee.noise.Gaussian(0.5),
    ee.noise.GaussianCovariance(torch.eye(4) + 0.3 * torch.ones(4, 4)),
    ee.noise.LowRank(torch.ones(4, 1)),
    ee.noise.Poisson(0.1),
    ee.noise.NegativeBinomial(0.4),
    ee.noise.Fano(2.0),
    ee.noise.Multiplicative(0.5),
    ee.noise.StateDependent(lambda f: 0.3 + 0.2 * f.square()),
    ee.noise.Covariance(lambda f: torch.diag(0.2 + f) + 0.05),
    ee.noise.Categorical(),
    ee.noise.Bernoulli(),
    ee.noise.PixelFloor(0.7, ee.noise.Poisson(0.1)),
]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
def test_small_changes_have_the_d_prime_of_f(noise: Any) -> None:
    x = torch.tensor([0.3, 0.9, 0.5, 0.7], dtype=torch.float64).reshape(1, 1, 2, 2)
    spectrum = pairs_of(rates, x, noise=noise)
    for pair in ee.amplitude(rates, x, spectrum, noise=noise):
        if pair.threshold < 1e6:
            assert pair.d_true(1e-5) == pytest.approx(pair.d_linear(1e-5), rel=1e-3)


def test_finite_d_prime_is_the_distance_of_g() -> None:
    x = torch.tensor([0.3, 0.9, 0.5, 0.7], dtype=torch.float64).reshape(1, 1, 2, 2)
    y = x + 0.3
    look = ee.Discriminability(rates, x, noise=ee.noise.Poisson(0.1))
    expected = 2 * ((rates(y) + 0.1).sqrt() - (rates(x) + 0.1).sqrt()).norm()
    assert look.of(y) == pytest.approx(float(expected), rel=1e-12)
    floor = ee.Discriminability(rates, x, noise=ee.noise.PixelFloor(2.0, ee.noise.Poisson(0.1)))
    assert floor.of(y) == pytest.approx(math.sqrt(float(expected) ** 2 + 2 * 4 * 0.09), rel=1e-12)


def test_a_rate_that_turns_negative_ends_the_validity_radius() -> None:
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    noise = ee.noise.Poisson()

    def model(picture: Tensor) -> Tensor:
        return picture.reshape(-1)

    spectrum = pairs_of(model, x, noise=noise)
    pair = ee.amplitude(model, x, spectrum, noise=noise)[0]
    assert pair.validity_radius is not None
    assert pair.validity_radius < 0.5 * 2
    assert math.isnan(pair.d_true(-100.0)) or math.isnan(pair.d_true(100.0))


def test_a_code_is_clipped_as_the_picture_it_makes() -> None:
    torch.manual_seed(0)
    generator = torch.nn.Linear(3, 4).double()
    code = torch.zeros(1, 3, dtype=torch.float64)
    made = ee.perturbations.Latent(generator)
    spectrum = pairs_of(lambda p: p.square(), code, perturbations=made)
    found = ee.amplitude(
        lambda p: p.square(), code, spectrum, perturbations=made, value_range=(-1.0, 1.0)
    )
    e = spectrum.eigenvectors[0].reshape(1, 3)
    shown = generator(code + 9 * e).clamp(-1, 1)
    at_rest = generator(code)
    expected = float((shown.square() - at_rest.square()).norm().detach())
    assert found[0].d_true(9.0, clip=True) == pytest.approx(expected, rel=1e-12)
    assert found[0].strict_radius is None


def test_a_metric_counts_amplitudes_in_its_own_norm() -> None:
    x = picture(16)
    model = ee.models.OnOff().double()
    metric = ee.perturbations.LinearLight()
    spectrum = pairs_of(model, x.tensor, perturbations=metric)
    pair = ee.amplitude(model, x, spectrum, perturbations=metric)[0]
    assert pair.d_true(1e-6) == pytest.approx(pair.d_linear(1e-6), rel=1e-3)


def test_float32_radii_are_those_of_float64() -> None:
    model, x, spectrum = onoff()
    exact = ee.amplitude(model, x, spectrum)
    rough = ee.amplitude(ee.models.OnOff(), x.tensor.float(), spectrum)
    for a, b in zip(exact, rough, strict=True):
        assert b.validity_radius == pytest.approx(a.validity_radius, rel=0.03)
        assert b.clip_radius == pytest.approx(a.clip_radius, rel=0.03)


def test_what_rounding_hides_is_said_to_be_undefined() -> None:
    def model(picture: Tensor) -> Tensor:
        return 1e6 + torch.sin(300 * picture.reshape(-1))

    x = torch.full((1, 1, 1, 4), 0.5)
    spectrum = pairs_of(lambda p: torch.sin(300 * p.reshape(-1)), x)
    pair = ee.amplitude(model, x, spectrum)[0]
    assert pair.validity_radius is None
    assert any("float64" in note for note in pair.notes)


def test_the_record_is_plain_and_the_table_reads_it() -> None:
    model, x, spectrum = onoff()
    found = ee.amplitude(model, x, spectrum)
    record = json.loads(json.dumps(found.as_record()))
    from eigenexp.analysis.amplitude_table import amplitude_lines

    assert "\n".join(amplitude_lines(record)) == str(found)
    assert "extrapolated" in str(found)
    curve = record["pairs"][0]["curve"]
    assert curve == sorted(curve)
    alpha, plus, minus = curve[3]
    assert plus == found[0].d_true(alpha)
    assert minus == found[0].d_true(-alpha)
    assert amplitude_lines({"pairs": [{"index": "x\x1b", "notes": None}, 3]})


def test_the_forward_passes_are_some_tens_a_pair() -> None:
    model, x, spectrum = onoff()
    assert ee.amplitude(model, x, spectrum).num_calls <= 120 * len(spectrum)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m, x, s: ee.amplitude(m, x.tensor[..., :16], s), "expected distortions of 512"),
        (lambda m, x, s: ee.amplitude(m, x, s, tolerance=0), "tolerance"),
        (
            lambda m, x, s: ee.amplitude(m, x, s.with_metadata({"noise": "poisson(dark=0.0)"})),
            "noise: expected poisson",
        ),
        (lambda m, x, s: ee.amplitude(m, x, s, value_range=(1, 0)), "black < white"),
        (lambda m, x, s: ee.Discriminability(m, x).of(x.tensor[..., :3]), "expected 1024 values"),
        (
            lambda m, x, s: ee.Discriminability(m, x.tensor + 5).of(x.tensor, clip=True),
            "value_range",
        ),
        (lambda m, x, s: ee.amplitude(m, x, s)[0].alpha_at(0.0), "alpha_at"),
        (lambda m, x, s: ee.amplitude(m, x.tensor + 5, s)[0].clipped(1.0), "black and white"),
    ],
)
def test_what_does_not_belong_together_is_refused_in_a_line(
    change: Callable[[Any, Any, Any], Any], told: str
) -> None:
    model, x, spectrum = onoff()
    with pytest.raises(InputError, match=told) as raised:
        change(model, x, spectrum)
    assert "\n" not in str(raised.value)


def test_noise_on_the_pixels_has_no_g() -> None:
    x = picture(8)
    noise = ee.noise.InputNoise(0.1)
    model = ee.models.Gaussian(kernel_size=7, std=1.0).double()
    spectrum = pairs_of(model, x.tensor, noise=noise)
    with pytest.raises(ModelError, match="d′ = α√λ"):
        ee.amplitude(model, x, spectrum, noise=noise)
