"""Products at several pictures in one pass: equal to one after another, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.errors import ImageError, InputError, ModelError
from eigenexp.operators import AverageFisherOperator, BatchedFisherOperator
from eigenexp.operators.batched import pictures_at_once
from tests.problems import Small


@pytest.mark.parametrize("one_pass", [True, False])
def test_products_are_those_of_each_picture_alone(
    one_pass: bool, model: Small, pictures: list[Tensor]
) -> None:
    batch = BatchedFisherOperator(model, pictures, one_pass=one_pass)
    assert batch.one_pass is one_pass
    generator = torch.Generator().manual_seed(3)
    blocks = {
        i: torch.randn(36, 1 + i % 3, generator=generator, dtype=torch.float64)
        for i in (0, 2, 3, 6)
    }
    results = batch.apply(blocks)
    assert set(results) == {0, 2, 3, 6}
    assert batch.num_products == 1 + 3 + 1 + 1
    for i, block in blocks.items():
        alone = ee.FisherOperator(model, pictures[i])
        products, responses = alone.apply(block)
        torch.testing.assert_close(results[i][0], products)
        torch.testing.assert_close(results[i][1], responses)
        pushed, nothing = batch.apply({i: block}, "jacobian")[i]
        assert nothing is None
        torch.testing.assert_close(pushed, responses)
        torch.testing.assert_close(
            batch.apply({i: pushed}, "adjoint")[i][0], alone.jacobian.rmatmat(pushed)
        )
        torch.testing.assert_close(batch.at(i).problem.start, alone.start)
        one = ee.solve(batch.at(i), method="auto", k=2)
        torch.testing.assert_close(one.eigenvalues, ee.solve(alone, k=2).eigenvalues)


def test_a_picture_does_not_feel_what_the_others_ask_or_are(
    model: Small, pictures: list[Tensor]
) -> None:
    block = torch.randn(36, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = torch.ones(36, 5, dtype=torch.float64)
    batch = BatchedFisherOperator(model, pictures[:3])
    other = BatchedFisherOperator(model, [pictures[0], pictures[5], pictures[6]])
    expected = batch.apply({0: block})[0][0]
    assert torch.equal(batch.apply({0: block, 1: wide, 2: wide})[0][0], expected)
    assert torch.equal(other.apply({0: block, 2: wide})[0][0], expected)


class BatchNorm(Small):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, dtype=torch.float64, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


def leaks_in_derivative_only(x: Tensor) -> Tensor:
    other = x.roll(1, 0)
    return torch.sin(x) + 1e-3 * (other - other.detach())


MIXING = [
    BatchNorm(),
    lambda x: (x - x.mean()).square(),
    leaks_in_derivative_only,
    lambda x: torch.sin(x).flatten(),
    lambda x: torch.sin(x).flip(0) if len(x) > 1 else torch.sin(x),
    lambda x: torch.sin(x) * (1 + (len(x) > 1)),
]


@pytest.mark.parametrize("mixing", MIXING)
def test_models_that_mix_pictures_get_them_one_after_another(
    mixing: object, pictures: list[Tensor]
) -> None:
    batch = BatchedFisherOperator(mixing, pictures[:5])  # type: ignore[arg-type]
    assert not batch.one_pass
    assert "one picture at a time" in batch.refusal
    block = torch.ones(36, 1, dtype=torch.float64)
    alone = ee.FisherOperator(mixing, pictures[3])  # type: ignore[arg-type]
    torch.testing.assert_close(batch.apply({3: block})[3][0], alone @ block)
    with pytest.raises(ModelError):
        BatchedFisherOperator(mixing, pictures[:5], one_pass=True)  # type: ignore[arg-type]


def test_a_zero_jacobian_at_one_picture_is_an_error(pictures: list[Tensor]) -> None:
    dark = torch.zeros_like(pictures[0])
    with pytest.raises(ModelError, match="zero Jacobian"):
        BatchedFisherOperator(torch.square, [pictures[0], dark])


def test_pictures_of_several_shapes_are_refused(model: Small, pictures: list[Tensor]) -> None:
    with pytest.raises(ImageError, match="one shape"):
        BatchedFisherOperator(model, [pictures[0], pictures[1][..., :4]])
    batch = BatchedFisherOperator(model, pictures[:2])
    with pytest.raises(InputError, match="places"):
        batch.apply({2: torch.ones(36, 1, dtype=torch.float64)})


def test_batches_stay_within_the_cache_of_a_core() -> None:
    cpu = torch.device("cpu")
    assert pictures_at_once(0, torch.float32, cpu) == 1
    assert pictures_at_once(2_048, torch.float32, cpu) == 8
    assert pictures_at_once(6_144, torch.float32, cpu) == 5
    assert pictures_at_once(5_000, torch.float64, cpu) == 3
    assert pictures_at_once(6_144, torch.float64, cpu) == 1  # two do not pay
    assert pictures_at_once(24_576, torch.float32, cpu) == 1
    assert pictures_at_once(10**6, torch.float32, cpu) == 1
    assert pictures_at_once(24_576, torch.float32, torch.device("cuda")) == 64


@pytest.mark.parametrize("keep", [None, 0, 2])
def test_the_average_is_the_mean_of_the_dense_matrices(
    keep: int | None, model: Small, pictures: list[Tensor]
) -> None:
    average = AverageFisherOperator(model, pictures, keep=keep)
    dense = sum(ee.FisherOperator(model, picture).to_dense() for picture in pictures) / 7
    torch.testing.assert_close(average.to_dense(), dense)
    block = torch.randn(36, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products, responses = average.apply(block)
    torch.testing.assert_close(products, dense @ block)
    torch.testing.assert_close(responses.T @ responses, block.T @ dense @ block)
    parts = average.part(block, [0, 2, 4, 6]) + average.part(block, [1, 3, 5])
    torch.testing.assert_close(parts, products)
    assert average.num_products == 3
    assert average.rank_bound == 36
    mean = torch.cat(pictures).mean(0).reshape(-1)
    torch.testing.assert_close(average.start[:, 0], mean)
    values = torch.linalg.eigvalsh(dense).flip(0)
    for method in ("lanczos", "exact"):
        spectrum = ee.solve(average, method=method, k=2, tol=1e-9)
        torch.testing.assert_close(spectrum.eigenvalues, values[spectrum.eigenindex])
    cotangents = responses @ torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    jacobian = average.jacobian
    torch.testing.assert_close(jacobian.rmatmat(cotangents), jacobian.to_dense().T @ cotangents)


def test_the_rank_bound_of_an_average_counts_all_pictures(pictures: list[Tensor]) -> None:
    def few(x: Tensor) -> Tensor:
        return torch.sin(x).flatten(1)[:, :5] * torch.arange(1.0, 6.0, dtype=x.dtype)

    assert AverageFisherOperator(few, pictures[:3]).rank_bound == 15
    assert AverageFisherOperator(few, torch.cat(pictures[:3])).num_pictures == 3
    with pytest.raises(ImageError, match="one shape"):
        AverageFisherOperator(few, [])
