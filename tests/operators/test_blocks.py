"""Blocks of columns: chunks, memory, counts, the dense Jacobian, SciPy's view."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from eigenexp.errors import InputError
from eigenexp.operators import DenseOperator, FisherOperator, JacobianOperator, memory
from eigenexp.operators import blocks as blocks_module
from eigenexp.operators.route import Route
from eigenexp.operators.routes import AUTOMATIC
from tests.operators.zoo import Lambda, build, dense_jacobian

NAMES = ["conv net", "attention", "fft", "in place", "numpy backward", "branching backward"]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_give_what_single_columns_give(name, chunk_size):
    model, image = build(name)
    operator = JacobianOperator(model, image, chunk_size=chunk_size)
    expected = dense_jacobian(model, image)
    m, n = expected.shape
    v, u = randn(n, 7), randn(m, 7)
    torch.testing.assert_close(operator.matmat(v), expected @ v)
    torch.testing.assert_close(operator.rmatmat(u), expected.T @ u)
    torch.testing.assert_close(FisherOperator(operator) @ v, expected.T @ (expected @ v))
    torch.testing.assert_close(operator.to_dense(), expected)


@pytest.mark.parametrize(
    ("name", "batched"),
    [("conv net", True), ("numpy backward", True), ("branching backward", False)],
)
def test_only_what_can_be_batched_is(name, batched):
    operator = JacobianOperator(*build(name), chunk_size=5)
    assert operator.chunk_size == (5 if batched else 1)


def test_operations_without_a_batching_rule_go_one_by_one(capfd):
    def push(vector):
        return torch.ops.aten.copy.default(torch.zeros_like(vector), vector).flatten()

    vector, cotangent = randn(1, 4), randn(4)
    route = Route(
        "traced",
        push=push,
        pull=lambda u: u.reshape(1, 4),
        response=cotangent,
        running=torch.no_grad,
        width=4,
    )
    assert blocks_module.Blocks(route, vector, cotangent, 5).chunk_size == 1
    assert "performance drop" not in capfd.readouterr().err


def test_small_models_are_batched_and_large_ones_are_not():
    model, image = build("fft")
    assert JacobianOperator(model, image).chunk_size > 16
    assert JacobianOperator(model, torch.rand(1, 1, 400, 400)).chunk_size == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_chunk(monkeypatch, error):
    model, image = build("conv net")
    operator = FisherOperator(model, image, chunk_size=8)
    v = randn(operator.shape[0], 11)
    expected = operator @ v
    call = blocks_module.call

    def cramped(function, chunk):
        if len(chunk) > 2:
            raise error
        return call(function, chunk)

    monkeypatch.setattr(blocks_module, "call", cramped)
    with pytest.warns(UserWarning, match="memory ran out") as caught:
        product = operator @ v
    assert [str(w.message)[:58] for w in caught] == [
        "memory ran out with 8 columns at once; going on with 2 (pa"
    ]
    torch.testing.assert_close(product, expected)
    assert operator.jacobian.chunk_size == 2
    torch.testing.assert_close(operator @ v, expected)  # and does not warn again


def test_other_errors_and_memory_for_one_column_are_not_hidden(monkeypatch):
    operator = FisherOperator(*build("conv net"), chunk_size=4)

    def fails(function, chunk):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(blocks_module, "call", fails)
    with pytest.raises(torch.OutOfMemoryError):
        operator @ randn(operator.shape[0], 4)
    monkeypatch.setattr(blocks_module, "call", lambda function, chunk: {}["no memory error"])
    with pytest.raises(KeyError):
        operator @ randn(operator.shape[0], 4)


def test_the_dense_jacobian_goes_on_where_memory_ran_out(monkeypatch):
    model, image = build("conv net")
    operator = JacobianOperator(model, image, chunk_size=8)
    expected = operator.to_dense()
    call, sizes = blocks_module.call, []

    def cramped(function, chunk):
        if len(sizes) >= 2 and len(chunk) > 3:
            raise MemoryError
        sizes.append(len(chunk))
        return call(function, chunk)

    monkeypatch.setattr(blocks_module, "call", cramped)
    with pytest.warns(UserWarning, match="memory ran out with 8 columns at once") as caught:
        again = operator.to_dense()
    assert len(caught) == 1
    assert sizes[:2] == [8, 8]
    assert set(sizes[2:-1]) == {2}
    torch.testing.assert_close(again, expected)


def test_a_dense_jacobian_without_room_is_refused(monkeypatch):
    operator = JacobianOperator(*build("conv net"))
    m, n = operator.shape
    monkeypatch.setattr(memory, "ALWAYS_FITS", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * m * n - 1)
    with pytest.raises(InputError, match=f"got {m} × {n} numbers.*use method='auto'"):
        operator.to_dense()
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * m * n)
    assert operator.to_dense().shape == (m, n)


def test_free_memory_is_a_plausible_number():
    assert 2**20 < memory.available_bytes(torch.device("cpu")) < 2**50


def test_columns_are_counted_and_padding_is_not():
    operator = FisherOperator(*build("conv net"))
    jacobian = operator.jacobian
    assert operator.num_products == jacobian.num_jvp == jacobian.num_vjp == 0
    assert jacobian.num_setup_products > 0
    v = randn(operator.shape[0], 5)
    v[:, 1] = 0
    v[:, 4] = 0
    product, response = operator.apply(v)
    assert not product[:, [1, 4]].any()
    assert not response[:, [1, 4]].any()
    assert (operator.num_products, jacobian.num_jvp, jacobian.num_vjp) == (3, 3, 3)
    operator @ v[:, 0]
    assert operator.num_products == 4
    jacobian.matmat(v)
    jacobian.rmatmat(randn(jacobian.shape[0], 2))
    jacobian.T @ randn(jacobian.shape[0])
    assert (operator.num_products, jacobian.num_jvp, jacobian.num_vjp) == (4, 7, 7)
    setup = jacobian.num_setup_products
    jacobian.to_dense()
    counts = jacobian.num_jvp - 7 + jacobian.num_vjp - 7
    assert counts == min(jacobian.shape)
    assert jacobian.num_setup_products == setup


@pytest.mark.parametrize("route", AUTOMATIC)
@pytest.mark.parametrize("wide", [True, False])
def test_dense_jacobian_takes_the_cheaper_side(route, wide):
    weight = randn(9, 40) if wide else randn(40, 9)
    operator = JacobianOperator(
        Lambda(lambda x: weight @ x.sin()),
        torch.rand(weight.shape[1]).double(),
        route=route,
        chunk_size=4,
    )
    expected = weight * torch.cos(operator.image)
    torch.testing.assert_close(operator.to_dense(), expected)
    assert (operator.num_jvp, operator.num_vjp) == ((0, 9) if wide else (9, 0))
    fisher = FisherOperator(operator)
    torch.testing.assert_close(fisher.to_dense(), expected.T @ expected)
    assert fisher.rank_bound == 9
    torch.testing.assert_close(operator.T.to_dense(), expected.T)


def test_products_are_contiguous_columns():
    # Strides change which kernels a solver's own arithmetic runs by, and with them the last bits.
    operator = FisherOperator(*build("conv net"))
    for b in (1, 4):
        for product in operator.apply(randn(operator.shape[0], b)):
            assert product.is_contiguous()


@pytest.mark.parametrize("route", AUTOMATIC)
def test_strides_of_a_block_do_not_change_a_bit(route):
    operator = FisherOperator(*build("conv net"), route=route)
    v = randn(operator.shape[0], 6)
    for strided in (v.T.contiguous().T, v[:, ::2], v[:, 3:4], v[:, 2]):
        assert torch.equal(
            operator @ strided, operator @ strided.clone(memory_format=torch.contiguous_format)
        )


def test_start_is_the_picture_and_the_constant():
    model, image = build("conv net")
    start = FisherOperator(model, image).start
    assert torch.equal(start[:, 0], image.flatten())
    assert torch.equal(start[:, 1], torch.ones(image.numel()).double())
    constant = FisherOperator(torch.sin, torch.full((1, 1, 3, 3), 0.5)).start
    assert torch.equal(constant, torch.ones(9, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_finds_the_same_eigenvalues(dtype):
    model, image = build("conv net", dtype)
    jacobian = JacobianOperator(model, image)
    operator = FisherOperator(jacobian)
    expected = torch.linalg.svdvals(dense_jacobian(*build("conv net")))
    values = scipy.sparse.linalg.eigsh(
        operator.as_linear_operator(), k=3, v0=np.ones(image.numel()), return_eigenvectors=False
    )
    np.testing.assert_allclose(np.sort(values)[::-1], expected[:3].square(), rtol=1e-4)
    view = jacobian.as_linear_operator()
    assert view.dtype == torch.empty(0, dtype=dtype).numpy().dtype
    v, u = np.ones(image.numel()), np.ones(jacobian.shape[0])
    np.testing.assert_allclose(
        view @ v, jacobian.to_dense() @ torch.ones_like(image).flatten(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(view.H @ u, (view.T @ u.reshape(-1, 1))[:, 0])
    assert view.matmat(np.ones((image.numel(), 2))).shape == (jacobian.shape[0], 2)


def test_scipy_reads_a_dense_operator():
    matrix = randn(6, 6)
    operator = DenseOperator(matrix @ matrix.T)
    np.testing.assert_allclose(operator.as_linear_operator() @ np.eye(6), matrix @ matrix.T)
