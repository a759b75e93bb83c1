"""One test for each defect of the class this one replaces: here is what is right."""

import pytest
import torch
from torch import nn

from eigenexp import Eigendistortion, PairStatus
from tests.compat.models import Matrix, Smooth, diagonal, oracle, picture, random_matrix


def test_1_the_bottom_block_is_in_decreasing_order():
    eig = Eigendistortion(picture(1, 1, 1, 10), diagonal(range(1, 11)))
    eig.synthesize(k=3, stop_criterion=1e-12)
    assert eig.eigenindex.tolist() == [0, 1, 2, 7, 8, 9]
    assert eig.eigenvalues.tolist() == pytest.approx([10, 9, 8, 3, 2, 1], rel=1e-4)


def test_2_the_bottom_search_keeps_the_null_space():
    model = Matrix(random_matrix(10, 25)).eval()
    eig = Eigendistortion(picture(1, 1, 5, 5), model)
    eig.synthesize(stop_criterion=1e-9)
    assert 0 <= eig.eigenvalues[-1] < 1e-8 * eig.eigenvalues[0]


def test_3_a_small_response_does_not_stop_before_it_begins():
    values, vectors, _ = oracle(Smooth(), picture(1, 1, 6, 6))
    eig = Eigendistortion(picture(1, 1, 6, 6), lambda x: 1e-4 * Smooth()(x))
    eig.synthesize(which="top", tol=1e-2)
    assert eig.eigenvalues[0] == pytest.approx(1e-8 * float(values[0]), rel=1e-4)
    assert abs(float(eig.eigendistortions.reshape(-1) @ vectors[:, 0])) > 0.99


@pytest.mark.filterwarnings("ignore:randomized SVD is an approximation")
@pytest.mark.parametrize("method", ["power", "exact", "randomized_svd", "auto"])
@pytest.mark.parametrize("size", [1e-13, 1e13])
def test_3_nor_does_float32_lose_the_squares_of_small_and_large_ones(method, size):
    image = picture(1, 1, 6, 6).float()

    def found(size):
        model = Smooth().float()
        eig = Eigendistortion(image, lambda x: size * model(x))
        if method == "exact":
            eig.synthesize(method=method)
        else:
            eig.synthesize(method=method, k=2, seed=0)
        return eig.eigenvalues.double() / size**2, eig.spectrum.residuals.double() / size**2

    values, residuals = found(size)
    expected, others = found(1.0)
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-6 * float(expected[0]))
    torch.testing.assert_close(residuals, others, rtol=0.5, atol=1e-3 * float(expected[0]))


def test_4_a_pair_that_is_not_what_it_claims_warns():
    po = pytest.importorskip("plenoptic")
    model = po.models.OnOff(31, pretrained=True, cache_filt=True).eval()
    po.remove_grad(model)
    eig = Eigendistortion(po.data.einstein()[..., 100:125, 100:125], model)
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=300)
    spectrum = eig.spectrum
    assert spectrum.status[-1] is PairStatus.UNCONVERGED
    assert float(spectrum.residuals[-1]) > 0.1 * float(spectrum.eigenvalues[-1])


def test_5_one_product_an_iteration_for_the_whole_block(multiplied):
    eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=7, k=3)
    assert multiplied == [3] * 2 * 7


def test_6_randomized_svd_does_not_overflow_and_keeps_its_shapes():
    eig = Eigendistortion(
        picture(1, 1, 5, 6, dtype=torch.float32), Matrix(random_matrix(40, 30).float() * 30).eval()
    )
    with pytest.warns(UserWarning, match="randomized SVD"):
        eig.synthesize("randomized_svd", k=1, p=0, q=60)
    assert eig.eigenvalues.shape == (1,)
    assert eig.eigendistortions.shape == (1, 1, 5, 6)
    truth = torch.linalg.matrix_norm(random_matrix(40, 30) * 30, 2) ** 2
    assert float(eig.eigenvalues[0]) == pytest.approx(float(truth), rel=1e-3)
    with pytest.warns(UserWarning, match="randomized SVD"):
        eig.synthesize("randomized_svd", k=28, p=9)
    assert eig.eigenvalues.shape == (28,)


def test_7_float32_exact_resolves_small_eigenvalues_and_a_zero_jacobian():
    singular = torch.tensor([1.0, 0.1, 1e-5])
    left = torch.linalg.qr(random_matrix(6, 3)).Q
    right = torch.linalg.qr(random_matrix(3, 3, seed=1)).Q
    matrix = (left * singular.double() @ right.T).float()
    eig = Eigendistortion(picture(1, 1, 1, 3, dtype=torch.float32), Matrix(matrix).eval())
    eig.synthesize("exact")
    assert float(eig.eigenvalues[-1]) == pytest.approx(1e-10, rel=0.05)
    flat = Eigendistortion(picture(1, 1, 1, 3), Matrix(torch.zeros(4, 3).double()).eval())
    with pytest.warns(UserWarning, match="zero Jacobian"):
        flat.synthesize("exact")
    assert flat.eigenvalues.tolist() == [0, 0, 0]
    assert torch.isfinite(flat.eigendistortions).all()
    flat.synthesize("power")
    assert flat.eigenvalues.tolist() == [0, 0]
    assert torch.isfinite(flat.eigendistortions).all()


def test_8_a_file_saved_in_mid_run_goes_on_bit_for_bit(tmp_path):
    model, image = Smooth(), picture(1, 1, 6, 6)
    whole, half = Eigendistortion(image, model), Eigendistortion(image, model)
    settings = {"which": "top", "stop_criterion": 0.0, "tol": 1.0}
    whole.synthesize(max_iter=40, **settings)
    half.synthesize(max_iter=15, **settings)
    half.save(tmp_path / "half.pt")
    again = Eigendistortion(image, model)
    again.load(tmp_path / "half.pt")
    again.synthesize(max_iter=25, **settings)
    assert torch.equal(again.eigendistortions, whole.eigendistortions)
    assert again.spectrum.num_products == 40


def test_9_a_load_that_fails_changes_nothing(tmp_path):
    image = picture(1, 1, 6, 6)
    saved = Eigendistortion(image, Smooth())
    saved.synthesize("exact")
    saved.save(tmp_path / "saved.pt")
    other = Eigendistortion(image, torch.tanh)
    before = dict(vars(other))
    with pytest.raises(ValueError, match="model output have different"):
        other.load(tmp_path / "saved.pt")
    assert vars(other) == before


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.reshape(1, 1, 6, 6)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_10_scaled_dot_product_attention_works_in_power():
    image = picture(1, 1, 6, 6)
    eig = Eigendistortion(image, Attention().eval())
    eig.synthesize(which="top", stop_criterion=1e-10)

    def plain(x):
        t = x.reshape(1, 6, 6)
        return torch.softmax(t @ t.transpose(1, 2) / 6**0.5, -1) @ t

    values, _, _ = oracle(plain, image)
    assert float(eig.eigenvalues[0]) == pytest.approx(float(values[0]), rel=1e-4)


def test_11_a_cast_keeps_the_index_an_integer():
    eig = Eigendistortion(picture(1, 1, 4, 4, dtype=torch.float32), nn.Tanh().eval())
    eig.synthesize("exact")
    eig.to(torch.float64)
    assert eig.eigenindex.dtype == torch.int64
    assert eig.eigenvalues.dtype == eig.image.dtype == torch.float64
