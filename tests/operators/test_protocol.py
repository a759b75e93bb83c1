"""Every operator that solvers are driven with keeps the whole of one protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eigenexp.compat.early_products import EarlyProducts
from eigenexp.eigensolvers import make_solver, solve
from eigenexp.eigensolvers.recasting import recast_solver
from eigenexp.errors import InputError
from eigenexp.operators import (
    AverageFisherOperator,
    BatchedFisherOperator,
    DenseOperator,
    FisherLike,
    FisherOperator,
    Problem,
)

N = 16


WEIGHT = torch.randn(12, N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def model(pictures: Tensor) -> Tensor:
    """A response of fewer values than the picture has, each picture of a batch apart."""
    return torch.sin(pictures.flatten(1) @ WEIGHT.T)


def pictures(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def early() -> EarlyProducts:
    tape = FisherOperator(model, pictures()[0])
    graph = FisherOperator(model, pictures()[0], route="double-backward")
    return EarlyProducts(graph, lambda: tape, 2)


def jacobians() -> list[Tensor]:
    return [torch.cos(picture.flatten() @ WEIGHT.T)[:, None] * WEIGHT for picture in pictures()]


def stacked() -> Tensor:
    return torch.cat(jacobians()) / 2**0.5


def one() -> Tensor:
    return jacobians()[0]


CASES: dict[str, tuple[Callable[[], FisherLike], Callable[[], Tensor]]] = {
    "FisherOperator": (lambda: FisherOperator(model, pictures()[0]), one),
    "AverageFisherOperator": (lambda: AverageFisherOperator(model, pictures()), stacked),
    "DenseOperator": (lambda: DenseOperator.from_jacobian(one()), one),
    "one pass": (lambda: BatchedFisherOperator(model, pictures(), one_pass=True).at(0), one),
    "apart": (lambda: BatchedFisherOperator(model, pictures(), one_pass=False).at(0), one),
    "EarlyProducts": (early, one),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[FisherLike, Tensor]:
    make, jacobian = CASES[request.param]
    return make(), jacobian()


def test_a_problem_says_all_a_solver_must_know(case: tuple[FisherLike, Tensor]) -> None:
    operator, jacobian = case
    problem = operator.problem
    assert isinstance(problem, Problem)
    assert problem.n == N
    assert problem.image_shape in [(1, 4, 4), (N,)]
    assert problem.rank_bound == min(jacobian.shape)
    assert (problem.dtype, problem.device) == (torch.float64, torch.device("cpu"))
    assert problem.start is None or problem.start.shape == (N, 2)
    assert problem.product_eps == torch.finfo(torch.float64).eps


def test_each_product_asked_for_is_given(case: tuple[FisherLike, Tensor]) -> None:
    operator, jacobian = case
    m = len(jacobian)
    block = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cotangent = torch.randn(m, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    products, responses = operator.apply(block)
    assert responses is not None
    torch.testing.assert_close(products, jacobian.T @ (jacobian @ block))
    torch.testing.assert_close(responses, jacobian @ block)
    pushed, none = operator.apply(block, "jacobian")
    torch.testing.assert_close(pushed, jacobian @ block)
    assert none is None
    pulled, none = operator.apply(cotangent, "adjoint")
    torch.testing.assert_close(pulled, jacobian.T @ cotangent)
    assert none is None


@pytest.mark.parametrize("method", ["lanczos", "exact"])
def test_each_is_solved(case: tuple[FisherLike, Tensor], method: str) -> None:
    operator, jacobian = case
    found = solve(operator, method, k=1, tol=1e-8)
    truth = torch.linalg.eigvalsh(jacobian.T @ jacobian)
    torch.testing.assert_close(found.eigenvalues, truth[[-1, 0]], atol=1e-8 * truth[-1], rtol=1e-8)
    assert found.eigenvectors.shape == (2, *operator.problem.image_shape)


def test_solvers_take_every_part_of_the_problem(case: tuple[FisherLike, Tensor]) -> None:
    coarse = replace(case[0].problem, product_eps=1e-3)
    solver = make_solver(coarse, "lanczos")
    assert solver.eps == 1e-3
    assert solver.settings.rank_bound == coarse.rank_bound
    assert solver.settings.image_shape == coarse.image_shape
    assert (solver.start is None) == (coarse.start is None)


def test_no_part_of_a_problem_can_be_forgotten() -> None:
    for field in dataclasses.fields(Problem):
        assert field.default is field.default_factory is dataclasses.MISSING
    with pytest.raises(TypeError):
        Problem(image_shape=(N,), rank_bound=N, dtype=torch.float64)  # type: ignore[call-arg]


def test_a_recast_solver_keeps_the_rounding_of_the_products() -> None:
    class Coarse:
        """F as a network in low precision gives it: its products are worth three digits."""

        def __init__(self, dtype: torch.dtype) -> None:
            self._exact = DenseOperator.from_jacobian(one().to(dtype))
            self.problem = replace(self._exact.problem, product_eps=1e-3)
            self.apply = self._exact.apply

    settings = {"method": "lanczos", "k": 1, "which": "top", "tol": 1e-1}
    before = make_solver(Coarse(torch.float32), **settings)
    for _ in range(3):
        before.tell(*Coarse(torch.float32).apply(before.ask()))
    after = recast_solver(Coarse(torch.float64), settings, before.state_dict())
    assert (after.dtype, after.eps) == (torch.float64, 1e-3)
    assert after.num_products == 3


def test_a_bare_matrix_says_that_it_has_no_jacobian() -> None:
    operator = DenseOperator(one().T @ one())
    with pytest.raises(InputError, match="from_jacobian"):
        operator.apply(torch.ones(N, 1, dtype=torch.float64), "jacobian")
