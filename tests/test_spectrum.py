"""A spectrum prints what it knows, and its vectors have signs that all agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import eigenexp as ee
from eigenexp.errors import InputError
from eigenexp.spectrum import PairStatus, Spectrum, StopReason, with_canonical_signs


def make(**changes: Any) -> Spectrum:
    """Return four pairs of a picture of 2 × 5 values."""
    fields: dict[str, Any] = {
        "eigenvalues": torch.tensor([1.0293024, 1.026, 3.91e-6, 1e-9], dtype=torch.float64),
        "eigenvectors": torch.eye(10, dtype=torch.float64)[[0, 1, 8, 9]].reshape(4, 2, 5),
        "eigenindex": torch.tensor([0, 1, 8, 9]),
        "residuals": torch.zeros(4, dtype=torch.float64),
        "error_bounds": torch.tensor([1e-12, 1e-4, 1.2e-7, 2e-6], dtype=torch.float64),
        "status": (PairStatus.CONVERGED,) * 4,
        "stop_reason": StopReason.CONVERGED,
        "scale": 1.03,
        "tol": 1e-4,
        "num_products": 12,
        **changes,
    }
    return Spectrum(**fields)


def test_eigenvalues_are_printed_with_the_digits_that_are_known() -> None:
    spectrum = make()
    assert spectrum.known == ("1.029302", "1.0260(1)", "3.9(2)e-06", "≤ 2.1e-06")
    assert [row["known"] for row in spectrum.rows()] == list(spectrum.known)
    assert all(text in str(spectrum) for text in spectrum.known)
    assert "1e-09" not in str(spectrum)


def test_in_a_known_null_space_they_are_zero() -> None:
    spectrum = make(null_space_dimension=2)
    assert spectrum.known[2:] == ("0 (null space)", "0 (null space)")
    assert spectrum.known[:2] == make().known[:2]
    assert spectrum.is_null == (False, False, True, True)


def test_without_bounds_ritz_values_still_bound_the_lower_half_from_above() -> None:
    unknown = make(error_bounds=torch.full((4,), float("inf"), dtype=torch.float64))
    assert unknown.known == ("≈ 1", "≈ 1", "≤ 4e-06", "≤ 1e-09")


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ([0.1, -0.9, 0.3], [-0.1, 0.9, -0.3]),
        ([0.1, 0.9, -0.3], [0.1, 0.9, -0.3]),
        ([-0.5, 0.1, 0.5], [0.5, -0.1, -0.5]),  # equally large: the first one
        ([-0.5, 0.1, 0.5 + 1e-15], [0.5, -0.1, -0.5 - 1e-15]),  # but for rounding
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_the_entry_of_largest_size_is_positive(vector: list[float], expected: list[float]) -> None:
    given = torch.tensor([vector, [1.0, 0.0, 0.0]], dtype=torch.float64)
    before = given.clone()
    turned = with_canonical_signs(given)
    assert turned.tolist() == [expected, [1.0, 0.0, 0.0]]
    assert torch.equal(given, before)
    assert with_canonical_signs(turned) is turned
    assert torch.equal(with_canonical_signs(-given), turned)


def test_every_spectrum_and_its_file_has_them(tmp_path: Path) -> None:
    vectors = -torch.eye(10, dtype=torch.float64)[[0, 1, 8, 9]].reshape(4, 2, 5)
    spectrum = make(eigenvectors=vectors)
    assert torch.equal(spectrum.eigenvectors, -vectors)
    loaded = Spectrum.load(spectrum.save(tmp_path / "s.safetensors"))
    assert torch.equal(loaded.eigenvectors, -vectors)
    assert torch.equal(spectrum.reshape((10,)).eigenvectors, -vectors.reshape(4, 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeds_agree_on_signs(dtype: torch.dtype) -> None:
    picture = ee.load_picture("camera", crop=[120, 220, 16, 16]).tensor.to(dtype)
    operator = ee.FisherOperator(ee.models.OnOff(7).to(dtype), picture)
    one, two = (ee.solve(operator, "lanczos", k=1, tol=1e-5, seed=s) for s in (0, 1))
    overlaps = (one.eigenvectors * two.eigenvectors).flatten(1).sum(dim=1)
    assert (overlaps > 0.9).all()
    assert all(v.flatten()[v.abs().argmax()] > 0 for v in one.eigenvectors)


def test_pairs_are_taken_by_place_and_distortions_by_index() -> None:
    operator = ee.DenseOperator(torch.diag(torch.arange(12.0, 0, -1, dtype=torch.float64)))
    spectrum = ee.solve(operator, k=2, method="exact").reshape((1, 3, 4))
    assert spectrum.eigenindex.tolist() == [0, 1, 10, 11]
    assert spectrum[1].eigenindex.tolist() == [1]
    assert spectrum[-1].eigenindex.tolist() == [11]
    assert [float(pair.eigenvalues) for pair in spectrum] == spectrum.eigenvalues.tolist()
    assert spectrum[2:].eigenindex.tolist() == [10, 11]
    assert len(spectrum[2:].status) == 2
    assert torch.equal(spectrum.distortion(0), spectrum.eigenvectors[0])
    assert torch.equal(spectrum.distortion(-1), spectrum.eigenvectors[3])
    assert torch.equal(spectrum.distortion(10), spectrum.eigenvectors[2])
    with pytest.raises(InputError, match=r"expected one of \[0, 1, 10, 11\]"):
        spectrum.distortion(5)
    with pytest.raises(IndexError):
        spectrum[4]
    frame = spectrum.to_pandas()
    assert frame["eigenvalue"].tolist() == spectrum.eigenvalues.tolist()
    assert frame["status"].tolist() == [status.value for status in spectrum.status]
    assert torch.equal(spectrum.to("cpu").eigenvectors, spectrum.eigenvectors)
