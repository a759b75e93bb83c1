"""A null space known beforehand: null to rounding, orthonormal, at the cost that was predicted."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.eigensolvers import multiply
from eigenexp.eigensolvers.null_space import NullSpace, complement
from eigenexp.eigensolvers.null_space_plan import make_plan
from eigenexp.errors import InputError
from eigenexp.spectrum import PairStatus, StopReason

N = 300


def wide(m: int, n: int = N, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64)


def drive(operator: ee.DenseOperator | ee.FisherOperator, **settings: object) -> NullSpace:
    solver = NullSpace(
        operator.shape[0], rank_bound=operator.rank_bound, dtype=operator.dtype, **settings
    )
    while not solver.done:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
    return solver


def count(operator: ee.DenseOperator | ee.FisherOperator) -> float:
    """Return the products made, half for a J·v or Jᵀ·u alone, whoever asked."""
    return (operator.jacobian.num_jvp + operator.jacobian.num_vjp) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["auto", "rows", "descent"])
@pytest.mark.parametrize(("m", "k"), [(30, 1), (30, 5), (150, 3), (280, 2), (280, 20)])
def test_vectors_are_null_to_rounding_and_orthonormal(m: int, k: int, way: str, dtype) -> None:
    if way == "descent" and k == 20:
        k = 3  # a square block of conjugate gradients takes long
    jacobian = wide(m).to(dtype)
    operator = ee.DenseOperator.from_jacobian(jacobian)
    found = drive(operator, k=k, way=way, seed=2).result()
    vectors = found.eigenvectors.double().T
    _, sizes, rows = torch.linalg.svd(jacobian.double(), full_matrices=True)
    eps = torch.finfo(dtype).eps
    assert float((jacobian.double() @ vectors).norm(dim=0).max()) < 20 * eps * float(sizes[0])
    # In the true null space, not merely where J is small.
    assert float((rows[:m] @ vectors).norm(dim=0).max()) < 100 * eps * float(sizes[0] / sizes[-1])
    gram = vectors.T @ vectors - torch.eye(k, dtype=torch.float64)
    assert float(gram.abs().max()) < 10 * eps
    assert found.stop_reason is StopReason.CONVERGED
    assert found.status == (PairStatus.CONVERGED,) * k
    assert found.eigenindex.tolist() == list(range(N - k, N))
    assert found.null_space_dimension == N - m
    assert found.known == ("0 (null space)",) * k
    assert bool((found.eigenvalues <= found.error_bounds).all())
    assert float(found.eigenvalues.max()) < 1e3 * eps**2 * float(sizes[0]) ** 2
    assert found.num_products == pytest.approx(count(operator), abs=0.5)


@pytest.mark.parametrize(("m", "most"), [(30, 17), (150, 77), (280, 142)])
def test_it_costs_m_half_products_and_two_however_many_vectors_are_left(m: int, most: int) -> None:
    one = drive(ee.DenseOperator.from_jacobian(wide(m)), k=1)
    assert one.num_products == most
    assert drive(ee.DenseOperator.from_jacobian(wide(m)), k=10).num_products == most + 9


def test_where_a_descent_is_cheaper_it_is_taken() -> None:
    pool = nn.AvgPool2d(2).double()
    picture = ee.load_picture("camera", crop=[120, 220, 40, 40]).tensor.double()
    operator = ee.FisherOperator(pool, picture)
    solver = drive(operator, k=3, way="descent")
    assert solver.num_products <= 15  # J Jᵀ is a multiple of the identity: one step
    assert float(solver.result().eigenvalues.max()) < 1e-30
    assert make_plan(20_000, 150_000, 1, eps=2.2e-16).way == "descent"
    assert make_plan(20_000, 150_000, 1, eps=2.2e-16).products < 60
    assert make_plan(30, 300, 1, eps=2.2e-16).way == "rows"
    assert make_plan(30, 300, 1, eps=2.2e-16, has_rows=False).way == "descent"


def test_a_descent_that_takes_longer_than_the_rows_is_given_up_for_them() -> None:
    n, m = 600, 200
    generator = torch.Generator().manual_seed(4)
    left = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, m, generator=generator, dtype=torch.float64)).Q
    sizes = torch.logspace(0, -5, m, dtype=torch.float64)  # worse than random: κ = 1e5
    jacobian = left * sizes @ right.T
    operator = ee.DenseOperator.from_jacobian(jacobian)
    assert make_plan(m, n, 1, eps=2.2e-16).way == "descent"
    solver = drive(operator, k=1)
    found = solver.result()
    assert "took longer" in found.notes[0]
    assert solver.num_products <= 2 * (m / 2 + 1) + 5
    assert float((jacobian @ found.eigenvectors[0]).norm()) < 1e-14


def test_rank_lost_beside_does_not_matter() -> None:
    jacobian = wide(60)
    jacobian[40:] = jacobian[:20]  # rank 40
    for way in ("rows", "descent"):
        found = drive(ee.DenseOperator.from_jacobian(jacobian), k=4, way=way).result()
        assert float((jacobian @ found.eigenvectors.T).norm(dim=0).max()) < 1e-12


def test_without_j_the_products_of_f_will_do() -> None:
    jacobian = wide(30)
    operator = ee.DenseOperator(jacobian.T @ jacobian)
    solver = NullSpace(N, k=2, rank_bound=30)
    while not solver.done:
        solver.tell(operator @ solver.ask())
    found = solver.result()
    assert float((jacobian @ found.eigenvectors.T).norm(dim=0).max()) < 1e-5 * 20
    assert float(found.relative_residuals.max()) < 1e-14


@pytest.mark.parametrize("way", ["rows", "descent"])
def test_a_run_cut_after_any_tell_ends_in_the_same_bits(way: str) -> None:
    operator = ee.DenseOperator.from_jacobian(wide(40, 90))
    whole = drive(operator, k=3, way=way).result()
    settings = {"k": 3, "way": way, "rank_bound": 40}
    solver = NullSpace(90, **settings)
    while not solver.done:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
        file = io.BytesIO()
        torch.save(solver.state_dict(), file)
        file.seek(0)
        solver = NullSpace(90, **settings)
        solver.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(solver.result().eigenvectors, whole.eigenvectors)
    assert solver.num_products == whole.num_products


def test_complement_is_the_rest_of_space() -> None:
    rows, starts = wide(20, 24), wide(24, 4, seed=1)
    vectors = complement(rows, starts)
    assert float((rows @ vectors).abs().max()) < 1e-13
    assert torch.allclose(vectors.T @ vectors, torch.eye(4, dtype=torch.float64), atol=1e-14)


def test_auto_takes_it_where_it_answers_what_is_asked() -> None:
    operator = ee.DenseOperator.from_jacobian(wide(30))
    found = ee.solve(operator, k=5, which="bottom", tol=1e-10)
    assert found.method == "null_space"
    assert found.notes[0].startswith("auto chose null_space: the model has fewer responses")
    assert found.num_products == 21
    assert (found.miss_chance, found.certificate) == (0.0, "exact")
    assert bool(found.converged.all())
    assert ee.solve(operator, k=1, which="both").method != "null_space"
    square = ee.DenseOperator.from_jacobian(wide(N))
    assert ee.solve(square, k=1, which="bottom", tol=1e-2).method != "null_space"


def test_small_is_not_counted_as_null() -> None:
    values = torch.cat([torch.ones(8), torch.full((12,), 1e-9)]).double()
    generator = torch.Generator().manual_seed(6)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    jacobian = (values.sqrt()[:, None] * basis.T).float()
    for method in ("lanczos", "davidson", "exact"):
        found = ee.solve(
            ee.DenseOperator.from_jacobian(jacobian), method, k=2, which="bottom", tol=1e-4
        )
        assert found.null_space_dimension == 0
        assert "null space" not in str(found.known)


@pytest.mark.parametrize("settings", [{"k": 11}, {"which": "both"}, {"which": "top"}])
def test_what_is_not_known_to_be_null_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="at most 10 pairs"):
        NullSpace(30, rank_bound=20, **settings)
    with pytest.raises(InputError, match="way"):
        NullSpace(30, rank_bound=20, way="guess")


def test_a_budget_of_products_is_kept() -> None:
    operator = ee.DenseOperator.from_jacobian(wide(100))
    solver = drive(operator, k=2, way="rows", max_products=12)
    assert solver.stop_reason is StopReason.MAX_PRODUCTS
    assert count(operator) <= 12
    assert len(solver.result()) == 0
