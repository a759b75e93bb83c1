"""Hilbert distances against dense truth."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch

import eigenexp as ee
from eigenexp.errors import InputError
from tests.comparison.problems import operators, semidefinite


def test_distances_lie_between_their_bounds() -> None:
    matrices = [semidefinite(24, 10 + 6 * i, i) for i in range(2)]
    matrices.append(3 * matrices[0])
    found = ee.compare.distances(operators(*matrices), ridge=1e-2)
    eye = torch.eye(24, dtype=torch.float64)
    dense = [m / torch.linalg.eigvalsh(m)[-1] + 1e-2 * eye for m in matrices]
    for i in range(3):
        for j in range(i):
            a, b = dense[i].numpy(), dense[j].numpy()
            values = scipy.linalg.eigh(a, b, eigvals_only=True)
            true = math.log(values[-1] / values[0])
            assert float(found.lower[i, j]) <= true + 1e-6
            assert true <= float(found.upper[i, j]) + 1e-6 < math.inf
    assert found.lower.equal(found.lower.mT)
    assert "models 0 and 2" in found.notes[0]


def test_a_ridge_is_needed() -> None:
    with pytest.raises(InputError, match="ridge"):
        ee.compare.distances(operators(semidefinite(8, 8, 0), semidefinite(8, 8, 1)), ridge=0.0)
