"""Units of discriminability: closed forms, tables of the literature, what λ = 0 gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.errors import InputError
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

units = ee.units


def spectrum(values: list[float], bounds: list[float], null: int = 0) -> Spectrum:
    k, n = len(values), 16
    vectors = torch.eye(n, dtype=torch.float64)[:k].reshape(k, 1, 4, 4)
    return Spectrum(
        eigenvalues=torch.tensor(values, dtype=torch.float64),
        eigenvectors=vectors,
        eigenindex=torch.tensor([*range(k - 1), n - 1]),
        residuals=torch.zeros(k, dtype=torch.float64),
        error_bounds=torch.tensor(bounds, dtype=torch.float64),
        status=(PairStatus.CONVERGED,) * k,
        stop_reason=StopReason.CONVERGED,
        scale=max(values),
        tol=1e-4,
        num_products=1,
        null_space_dimension=null,
    )


def test_an_amplitude_and_its_d_prime_belong_together() -> None:
    alpha = units.amplitude_at(0.25, d_prime=1.5)
    assert alpha == 3.0
    assert units.d_prime(alpha, 0.25) == 1.5
    assert units.amplitude_at(0.0) == math.inf
    assert units.d_prime(3.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("d", "task", "m", "share"),
    [
        (0.0, "2afc", 2, 0.5),
        (1.0, "2afc", 2, 0.760250),
        (1.0, "mafc", 2, 0.760250),
        (0.0, "mafc", 5, 0.2),
        (8.0, "mafc", 4, 1.0),
    ],
)
def test_shares_of_correct_answers(d: float, task: str, m: int, share: float) -> None:
    assert units.fraction_correct(d, task, m) == pytest.approx(share, abs=5e-6)


@pytest.mark.parametrize(("d", "m"), [(0.7, 3), (1.5, 4), (2.5, 8)])
def test_forced_choices_are_those_of_a_simulated_observer(d: float, m: int) -> None:
    generator = torch.Generator().manual_seed(1)
    shown = torch.randn(200_000, m, dtype=torch.float64, generator=generator)
    shown[:, 0] += d
    right = float((shown.argmax(1) == 0).double().mean())
    assert units.fraction_correct(d, "mafc", m) == pytest.approx(right, abs=0.004)


def test_the_odd_one_is_found_by_chance_and_then_surely() -> None:
    shares = [units.fraction_correct(d, "oddity") for d in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert shares[0] == pytest.approx(1 / 3, abs=0.003)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=2e-3)
    # Easier to be told what is looked for: three alternatives are always the easier task.
    assert all(
        units.fraction_correct(d, "mafc", 3) > units.fraction_correct(d, "oddity")
        for d in (1.0, 2.0, 3.0)
    )


def test_thresholds_are_told_in_each_unit() -> None:
    found = spectrum([4.0, 0.25, 0.0], [1e-9, 0.3, 0.0], null=1)
    picture: Tensor = torch.full((1, 1, 4, 4), 0.5)
    first, second, last = units.thresholds(found, picture)
    assert first["threshold"] == 0.5
    assert first["peak_grey_levels"] == 127.5
    assert first["rms_grey_levels"] == pytest.approx(127.5 / 4)
    spread = math.sqrt(1 / 16 - 1 / 256)
    assert first["rms_contrast"] == pytest.approx(0.5 * spread / 0.5)
    assert second["threshold"] == 2.0
    assert last == {
        "index": 15, "threshold": None, "peak_grey_levels": None, "rms_grey_levels": None,
        "rms_contrast": None,
    }  # fmt: skip
    assert found.thresholds == (0.5, 2.0, None)
    # An eigenvalue that may be zero has a threshold that is known from below alone.
    assert found.known_thresholds == ("0.5000000", "≥ 1.3", "∞")
    assert [row["threshold"] for row in found.rows()] == [0.5, 2.0, None]
    assert all(text in str(found) for text in ("d′ = 1 at", "0.5000000", "≥ 1.3", "∞"))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: units.fraction_correct(-1.0), "at least 0"),
        (lambda: units.fraction_correct(1.0, "4afc"), "expected one of 2afc, mafc, oddity"),
        (lambda: units.fraction_correct(1.0, "mafc", 1), "at least 2"),
        (lambda: units.amplitude_at(1.0, 0.0), "above 0"),
    ],
)
def test_numbers_out_of_range_are_told_in_a_line(wrong: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        wrong()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
