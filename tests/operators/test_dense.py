"""The operator of a matrix at hand keeps the interface and refuses what is no Fisher matrix."""

import numpy as np
import pytest
import torch

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators import DenseOperator


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[(7, 5), (5, 7)])
def jacobian(request):
    return randn(*request.param)


def test_products_from_a_jacobian(jacobian):
    operator = DenseOperator.from_jacobian(jacobian)
    fisher = jacobian.T @ jacobian
    n = fisher.shape[0]
    v = randn(n, 3, seed=1)
    product, response = operator.apply(v)
    torch.testing.assert_close(product, fisher @ v)
    torch.testing.assert_close(response, jacobian @ v)
    torch.testing.assert_close(operator @ v[:, 0], fisher @ v[:, 0])
    torch.testing.assert_close(operator.to_dense(), fisher)
    assert (operator.shape, operator.image_shape, operator.rank_bound) == ((n, n), (n,), 5)
    assert operator.start is None
    assert operator.dtype == torch.float64
    assert operator.device == torch.device("cpu")
    assert operator.num_products == 4
    assert operator.jacobian.num_jvp == operator.jacobian.num_vjp == 4
    assert operator.jacobian.route == "dense"
    assert torch.equal(operator.jacobian.to_dense(), jacobian)
    torch.testing.assert_close(operator.jacobian.T @ jacobian, fisher)


def test_products_from_a_matrix(jacobian):
    fisher = jacobian.T @ jacobian
    operator = DenseOperator(fisher)
    product, response = operator.apply(randn(len(fisher), 2))
    torch.testing.assert_close(product, fisher @ randn(len(fisher), 2))
    assert response is None
    assert operator.rank_bound == len(fisher)
    with pytest.raises(InputError, match="from_jacobian"):
        _ = operator.jacobian


def test_the_matrix_is_copied():
    matrix = torch.eye(3)
    operator = DenseOperator(matrix)
    matrix.zero_()
    assert torch.equal(operator @ torch.ones(3), torch.ones(3))


def test_rounding_is_no_asymmetry():
    jacobian = randn(200, 100, dtype=torch.float32)
    DenseOperator(torch.einsum("mi,mj->ij", jacobian, jacobian))


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (randn(4, 4), InputError, "symmetric matrix"),
        (torch.eye(100) + 1e-3 * torch.ones(100, 100).triu(1), InputError, "symmetric matrix"),
        (randn(4, 3), InputError, r"square matrix, got shape \(4, 3\)"),
        (torch.eye(3) * float("nan"), InputError, "finite entries"),
        (torch.full((2, 2), float("inf")), InputError, "finite entries"),
        (torch.eye(3).half(), InputTypeError, "float16"),
        (torch.eye(3, dtype=torch.int64), InputTypeError, "int64"),
        (np.eye(3), InputTypeError, "ndarray"),
        (torch.ones(3), InputError, "non-empty matrix"),
        (torch.ones(0, 0), InputError, "non-empty matrix"),
    ],
)
def test_what_is_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        DenseOperator(matrix)


def test_jacobians_that_are_refused():
    with pytest.raises(InputError, match="jacobian: expected finite"):
        DenseOperator.from_jacobian(torch.full((2, 3), float("nan")))
    with pytest.raises(InputTypeError, match="jacobian"):
        DenseOperator.from_jacobian([[1.0]])
