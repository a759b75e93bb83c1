"""Blurs against a naive convolution, and their derivatives."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch.func import jacfwd, jacrev, jvp, linearize, vjp, vmap

from eigenexp.errors import ModelError
from eigenexp.models import CenterSurround, Gaussian, Identity, filters

SIZES = [(16, 16), (17, 40), (31, 33), (64, 20)]


def picture(h, w, channels=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, channels, h, w, generator=generator, dtype=dtype)


def naive_blur(x: np.ndarray, k: int, std: float) -> np.ndarray:
    """Correlate with the two-dimensional kernel, pixel by pixel, on a reflected border."""
    offset = np.arange(k) - (k - 1) / 2
    kernel = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * std**2))
    kernel /= kernel.sum()
    before = (k - 1) // 2
    padded = np.pad(x, (before, k - 1 - before), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k))
    return np.einsum("ijkl,kl->ij", windows, kernel)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("k", "std"), [(31, 3.0), (31, 76.4), (31, 0.3233), (1, 2.0), (8, 1.5)])
def test_blur_equals_a_naive_convolution(size, k, std):
    x = picture(*size)
    blurred = Gaussian(k, std)(x)[0, 0].numpy()
    np.testing.assert_allclose(blurred, naive_blur(x[0, 0].numpy(), k, std), atol=1e-13)


def test_blur_equals_scipys():
    x = picture(40, 50)
    taps = filters.gaussian_taps(31, 4.0)
    expected = correlate1d(x[0, 0].numpy(), taps, axis=0, mode="mirror")
    expected = correlate1d(expected, taps, axis=1, mode="mirror")
    np.testing.assert_allclose(Gaussian(31, 4.0)(x)[0, 0].numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("k", [4, 7, (3, 8), (9, 4)])
def test_blur_equals_plenoptics_for_any_kernel(k):
    import plenoptic

    x = picture(17, 20)
    theirs = plenoptic.models.Gaussian(k, 2.0).double()
    torch.testing.assert_close(Gaussian(k, 2.0)(x), theirs(x).detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [16, 20, 30, 31, 90])
def test_matrices_reflect_the_border(n):
    taps = torch.rand(3, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for taps_, k in ((taps, 31), (taps[:, :30], 30)):
        matrices = filters.blur_matrices(taps_, n)
        left = (k - 1) // 2
        padded = np.pad(np.eye(n), ((left, k - 1 - left), (0, 0)), mode="reflect")
        for matrix, weights in zip(matrices, taps_, strict=True):
            rows = [weights.numpy() @ padded[i : i + k] for i in range(n)]
            np.testing.assert_allclose(matrix.numpy(), rows, atol=1e-14)


@pytest.mark.parametrize("block", [7, 20, 33, 64])
@pytest.mark.parametrize("k", [31, 6, 1, (5, 12)])
def test_large_pictures_give_the_same_in_blocks(monkeypatch, k, block):
    x = picture(33, 40, 2)
    monkeypatch.setattr(filters, "BLOCK", block)
    for model in (Gaussian(k, 2.0), CenterSurround(k, 1.0, 4.0)):
        whole = model(x)
        with monkeypatch.context() as patch:
            patch.setattr(filters, "DENSE_LIMIT", 0)
            in_blocks = model(x)
        torch.testing.assert_close(in_blocks, whole, atol=1e-14, rtol=0)


def test_taps_are_normalised_and_symmetric():
    for k, std in ((31, 0.3233), (31, 171.0), (4, 1.0)):
        taps = np.array(filters.gaussian_taps(k, std))
        assert abs(taps.sum() - 1) < 1e-15
        np.testing.assert_allclose(taps, taps[::-1], rtol=1e-13)


def test_center_surround_is_the_difference_of_two_blurs():
    x = picture(32, 32)
    expected = 1.5 * (Gaussian(31, 1.0)(x) - Gaussian(31, 4.0)(x))
    on = CenterSurround(31, 1.0, 4.0, amplitude_ratio=1.5)(x)
    off = CenterSurround(31, 1.0, 4.0, amplitude_ratio=1.5, on_center=False)(x)
    torch.testing.assert_close(on, expected, atol=1e-14, rtol=0)
    assert torch.equal(off, -on)
    flat = CenterSurround()(torch.full((1, 1, 32, 32), 0.7, dtype=torch.float64))
    assert float(flat.abs().max()) < 1e-15


def test_color_and_batches_are_filtered_channel_by_channel():
    x = torch.cat([picture(20, 24, 3, seed=s) for s in (0, 1)])
    for model in (Gaussian(9, 2.0), CenterSurround(9)):
        y = model(x)
        assert y.shape == x.shape
        for b in range(2):
            for c in range(3):
                one = model(x[b : b + 1, c : c + 1])
                torch.testing.assert_close(y[b : b + 1, c : c + 1], one, atol=1e-15, rtol=0)


# torch's own: forward mode compiles its decompositions, linearize folds constants.
TORCH_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:Attempted to insert a get_attr:UserWarning"
)
MODELS = [Identity(), Gaussian(7, 1.5), CenterSurround(7)]


@TORCH_WARNINGS
@pytest.mark.parametrize("limit", [0, 100], ids=["blocks", "whole"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_derivatives_of_every_kind_agree(model, limit, monkeypatch):
    monkeypatch.setattr(filters, "DENSE_LIMIT", limit)
    x = picture(7, 9, 2)
    dense = jacrev(model)(x)
    torch.testing.assert_close(jacfwd(model)(x), dense, atol=1e-14, rtol=0)
    matrix = dense.reshape(x.numel(), x.numel())
    v, u = picture(7, 9, 2, seed=1), picture(7, 9, 2, seed=2)
    pushed = (matrix @ v.flatten()).view(x.shape)
    torch.testing.assert_close(jvp(model, (x,), (v,))[1], pushed, atol=1e-13, rtol=0)
    torch.testing.assert_close(linearize(model, x)[1](v), pushed, atol=1e-13, rtol=0)
    pulled = (matrix.T @ u.flatten()).view(x.shape)
    torch.testing.assert_close(vjp(model, x)[1](u)[0], pulled, atol=1e-13, rtol=0)
    many = torch.stack([v, u])
    by_column = torch.stack([jvp(model, (x,), (v,))[1], jvp(model, (x,), (u,))[1]])
    batched = vmap(lambda t: jvp(model, (x,), (t,))[1])(many)
    torch.testing.assert_close(batched, by_column, atol=1e-14, rtol=0)


def test_identity_returns_a_new_tensor():
    x = picture(3, 3)
    y = Identity()(x)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("model", MODELS[1:], ids=lambda model: type(model).__name__)
def test_models_follow_the_pictures_dtype_copy_and_pickle(model):
    for dtype in (torch.float64, torch.float32):
        x = picture(8, 8, dtype=dtype)
        y = model(x)
        assert y.dtype == dtype
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), y)
    assert torch.equal(model.to(torch.float32)(x.double()), copy.deepcopy(model)(x.double()))
    assert "std=" in repr(model)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gaussian(0, 1.0), "kernel_size"),
        (lambda: Gaussian(2.5, 1.0), "kernel_size"),
        (lambda: Gaussian([3, 3, 3], 1.0), "kernel_size"),
        (lambda: Gaussian(True, 1.0), "kernel_size"),
        (lambda: Gaussian("31", 1.0), "kernel_size"),
        (lambda: Gaussian(3, 0.0), "std: expected a number above 0, got 0.0"),
        (lambda: Gaussian(3, float("nan")), "finite"),
        (lambda: Gaussian(3, "wide"), "expected a number, got 'wide'"),
        (lambda: CenterSurround(surround_std=-1), "surround_std"),
        (lambda: CenterSurround(amplitude_ratio=0.9), "at least 1"),
        (lambda: Gaussian(31, 1.0)(picture(15, 40)), "at least 16x16 pixels, got 15x40"),
        (lambda: Gaussian([31, 5], 1.0)(picture(15, 40)), "at least 16x3"),
        (lambda: Gaussian(3, 1.0)(picture(8, 8)[0]), r"\(B, C, H, W\)"),
        (lambda: Gaussian(3, 1.0)(torch.ones(1, 1, 8, 8, dtype=torch.int32)), "int32"),
        (lambda: CenterSurround()(np.ones((1, 1, 32, 32))), "ndarray"),
    ],
)
def test_bad_input_gets_one_line(make, says):
    with pytest.raises(ModelError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
