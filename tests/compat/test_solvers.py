"""The methods beyond plenoptic's three, on the solvers of the other doors."""

import pytest
import torch

import eigenexp
from eigenexp import Eigendistortion
from eigenexp.eigensolvers import METHODS
from tests.compat.models import Smooth, diagonal, oracle, picture

ADDED = [method for method in ("lanczos", "davidson", "auto") if method in METHODS]


@pytest.mark.parametrize("method", ADDED)
def test_both_ends_to_tolerance_and_verified(method):
    image = picture(1, 1, 8, 8)
    values, _, jacobian = oracle(Smooth(), image)
    eig = Eigendistortion(image, Smooth())
    eig.synthesize(method, k=2, tol=1e-6)
    assert eig.eigenindex.tolist() == [0, 1, 62, 63]
    assert torch.allclose(eig.eigenvalues, values[eig.eigenindex], atol=2e-6 * float(values[0]))
    assert eig.spectrum.converged.all()
    vectors = eig.eigendistortions.reshape(4, -1).T
    residuals = (jacobian.T @ (jacobian @ vectors) - vectors * eig.eigenvalues).norm(dim=0)
    assert (residuals <= 1e-6 * values[0] * 1.01).all()


@pytest.mark.parametrize("method", ADDED)
def test_every_number_is_that_of_the_bare_engine(method):
    image = picture(1, 1, 8, 8)
    eig = Eigendistortion(image, Smooth())
    eig.synthesize(method, k=2, tol=1e-5, seed=4)
    operator = eigenexp.FisherOperator(Smooth(), image)
    bare = eigenexp.solve(operator, method, k=2, which="both", tol=1e-5, seed=4)
    assert torch.equal(eig.eigenvalues, bare.eigenvalues)
    assert torch.equal(eig.eigendistortions, bare.eigenvectors)
    assert eig.spectrum.num_products == bare.num_products


@pytest.mark.filterwarnings("ignore:randomized SVD is an approximation")
@pytest.mark.parametrize("method", ["power", "exact", "randomized_svd"])
def test_the_methods_of_plenoptic_give_the_numbers_of_the_bare_engine(method):
    image = picture(1, 1, 5, 6, dtype=torch.float32)
    model = Smooth(dtype=torch.float32)
    eig = Eigendistortion(image, model)
    eig.synthesize(method, k=2, max_iter=5000, stop_criterion=1e-10, q=300, which="top")
    operator = eigenexp.FisherOperator(model, image)
    options = {"power_iterations": 300} if method == "randomized_svd" else {}
    bare = eigenexp.solve(operator, method, k=2, which="top", tol=1e-6, **options)
    top = float(bare.eigenvalues[0])
    assert torch.allclose(eig.eigenvalues.double(), bare.eigenvalues, rtol=0, atol=1e-6 * top)
    overlap = eig.eigendistortions.flatten(1).double() @ bare.eigenvectors.flatten(1).double().T
    assert torch.allclose(overlap.abs(), torch.eye(2).double(), atol=1e-3)


@pytest.mark.parametrize("method", ADDED)
def test_results_have_the_precision_of_the_picture(method):
    eig = Eigendistortion(picture(1, 1, 6, 6, dtype=torch.float32), Smooth(dtype=torch.float32))
    eig.synthesize(method)
    assert eig.eigenvalues.dtype == eig.eigendistortions.dtype == torch.float32


def test_a_short_budget_warns_and_the_next_call_goes_on_also_after_a_load(tmp_path):
    image = picture(1, 1, 8, 8)
    whole, eig = Eigendistortion(image, Smooth()), Eigendistortion(image, Smooth())
    whole.synthesize("lanczos", tol=1e-6)
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize("lanczos", tol=1e-6, max_iter=5)
    eig.save(tmp_path / "part.pt")
    again = Eigendistortion(image, Smooth())
    again.load(tmp_path / "part.pt")
    for part in (eig, again):
        part.synthesize("lanczos", tol=1e-6)
        assert torch.equal(part.eigendistortions, whole.eigendistortions)
        assert part.spectrum.num_products == whole.spectrum.num_products


def test_a_smaller_tolerance_goes_on_where_the_larger_one_stopped():
    eig = Eigendistortion(picture(1, 1, 8, 8), Smooth())
    eig.synthesize("lanczos", tol=1e-2)
    spent = eig.spectrum.num_products
    eig.synthesize("lanczos", tol=1e-8)
    assert eig.spectrum.num_products > spent
    assert (eig.spectrum.relative_residuals <= 1e-8).all()


def test_an_interrupt_keeps_the_best_so_far():
    def stop(progress):
        if progress.num_products >= 20:
            raise KeyboardInterrupt

    eig = Eigendistortion(picture(1, 1, 8, 8), Smooth())
    with pytest.raises(KeyboardInterrupt):
        eig.synthesize("lanczos", tol=1e-10, callback=stop)
    assert eig.eigenvalues is not None
    eig.synthesize("lanczos", tol=1e-10)
    assert eig.spectrum.converged.all()


def test_the_callback_ends_the_search_with_true():
    eig = Eigendistortion(picture(1, 1, 1, 4), diagonal([4, 3, 2, 1]))
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(callback=lambda progress: progress.num_products % 5 == 0)
    assert eig.spectrum.num_products == 10


def test_unknown_options_are_refused():
    eig = Eigendistortion(picture(1, 1, 4, 4), Smooth())
    with pytest.raises(ValueError, match="rank"):
        eig.synthesize("lanczos", rank=3)
