"""What ``synthesize`` returns, where it goes on, and what it keeps when it is stopped."""

import pytest
import torch

from eigenexp import Eigendistortion, PairStatus
from eigenexp.operators import FisherOperator
from tests.compat.models import Matrix, Smooth, diagonal, oracle, picture, random_matrix


def solved(values, **settings):
    eig = Eigendistortion(picture(1, 1, 1, len(values)), diagonal(values))
    eig.synthesize(**settings)
    return eig


def test_power_shapes_index_and_values():
    eig = Eigendistortion(picture(1, 1, 1, 8), diagonal([9, 7, 5, 3, 2, 1, 0.5, 0.1]))
    assert eig.synthesize(k=2, stop_criterion=1e-10) is None
    assert eig.eigenindex.tolist() == [0, 1, 6, 7]
    assert eig.eigenindex.dtype == torch.int64
    assert eig.eigendistortions.shape == (4, 1, 1, 8)
    assert torch.allclose(eig.eigenvalues, torch.tensor([9, 7, 0.5, 0.1]).double(), rtol=1e-6)
    assert torch.allclose(eig.eigendistortions.flatten(1).norm(dim=1), torch.ones(4).double())
    residuals = eig.spectrum.residuals
    truth = torch.tensor([9, 7, 5, 3, 2, 1, 0.5, 0.1]).double()
    vectors = eig.eigendistortions.reshape(4, 8)
    measured = (vectors * truth - vectors * eig.eigenvalues[:, None]).norm(dim=1)
    assert torch.allclose(residuals, measured, rtol=1e-6, atol=1e-14)


def test_a_picture_of_one_dimension_gives_flat_distortions():
    with pytest.warns(UserWarning, match="4 dimensions"):
        eig = Eigendistortion(picture(6), diagonal([6, 5, 4, 3, 2, 1]))
    eig.synthesize()
    assert eig.eigendistortions.shape == (2, 6)


@pytest.mark.parametrize("shape", [(1, 7), (1, 2, 5), (1, 2, 1, 2, 3)])
def test_other_numbers_of_dimensions(shape):
    with pytest.warns(UserWarning, match="4 dimensions"):
        eig = Eigendistortion(picture(*shape), torch.tanh)
    eig.synthesize("exact")
    assert eig.eigendistortions.shape == (picture(*shape).numel(), *shape[1:])


def test_one_product_an_iteration_and_the_stop_rule(multiplied):
    changes = []
    eig = Eigendistortion(picture(1, 1, 1, 3), diagonal([4.0, 2.0, 1.0]))
    last = {}

    def watch(progress):
        for phase, value in zip(["top", "bottom"], progress.eigenvalues, strict=False):
            if progress.phase == phase:
                changes.append((phase, abs(float(value) - last.get(phase, float("inf")))))
                last[phase] = float(value)

    eig.synthesize(stop_criterion=1e-5, callback=watch)
    assert eig.spectrum.num_products == len(changes) == sum(multiplied)
    for phase in ("top", "bottom"):
        moves = [change for name, change in changes if name == phase]
        assert moves[-1] <= 1e-5
        assert min(moves[:-1]) > 1e-5


def test_max_iter_is_the_number_of_iterations_at_each_end():
    eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=3, k=2)
    assert eig.spectrum.num_products == 12


def test_an_unconverged_result_says_so_with_residual_and_remedy():
    eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
    with pytest.warns(UserWarning, match=r"‖Fv − λv‖ = .*auto") as record:
        eig.synthesize(max_iter=3)
    assert record[0].filename == __file__
    assert PairStatus.UNCONVERGED in eig.spectrum.status


def test_a_second_call_goes_on_and_equals_one_long_call():
    model, image = Smooth(), picture(1, 1, 6, 6)
    once, twice = Eigendistortion(image, model), Eigendistortion(image, model)
    once.synthesize(max_iter=40, which="top", stop_criterion=0.0, seed=1, tol=1.0)
    twice.synthesize(max_iter=15, which="top", stop_criterion=0.0, seed=1, tol=1.0)
    twice.synthesize(max_iter=25, which="top", stop_criterion=0.0, tol=1.0)
    assert torch.equal(once.eigendistortions, twice.eigendistortions)
    assert twice.spectrum.num_products == 40
    with pytest.warns(UserWarning, match="not converged"):
        twice.synthesize(max_iter=1, which="top", restart=True)
    assert twice.spectrum.num_products == 1


def test_residuals_fall_when_going_on_at_both_ends():
    eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=20)
    first = eig.spectrum.residuals
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=200)
    assert (eig.spectrum.residuals < first).all()


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopError])
def test_an_interrupt_keeps_the_best_so_far_and_the_next_call_goes_on(kind):
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == 60:
            raise kind

    eig = Eigendistortion(picture(1, 1, 1, 6), diagonal([6, 3, 2, 1, 0.5, 0.1]))
    with pytest.raises(kind):
        eig.synthesize(stop_criterion=1e-14, callback=interrupt)
    assert eig.eigenvalues[0] == pytest.approx(6, rel=1e-6)
    assert eig.spectrum.num_products == 60
    eig.synthesize(stop_criterion=1e-14)
    assert eig.spectrum.num_products > 60
    assert eig.eigenvalues.tolist() == pytest.approx([6, 0.1], rel=1e-6)


def test_which_takes_one_end():
    values = [6, 3, 2, 1, 0.5, 0.1]
    assert solved(values, which="top", k=2).eigenindex.tolist() == [0, 1]
    bottom = solved(values, which="bottom", k=2)
    assert bottom.eigenindex.tolist() == [4, 5]
    assert bottom.eigenvalues.tolist() == pytest.approx([0.5, 0.1], rel=1e-5)
    assert solved(values, method="exact", which="both").eigenindex.tolist() == [0, 5]
    assert solved(values, method="exact", which="bottom", k=3).eigenindex.tolist() == [3, 4, 5]


def test_more_pairs_than_half_the_spectrum():
    eig = solved([5, 4, 3, 2, 1], k=4)
    assert eig.eigenindex.tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert eig.eigenvalues.tolist() == pytest.approx([5, 4, 3, 2, 4, 3, 2, 1], rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"method": "qr"}, ValueError, "power"),
        ({"max_iter": 0}, ValueError, "max_iter"),
        ({"k": 0}, ValueError, "k: expected 1 to 6"),
        ({"k": 7}, ValueError, "k: expected 1 to 6"),
        ({"k": 7, "method": "randomized_svd"}, ValueError, "k: expected 1 to 6"),
        ({"k": 1.5}, TypeError, "k: expected an integer"),
        ({"p": -1}, ValueError, "p: expected"),
        ({"q": -1}, ValueError, "q: expected"),
        ({"stop_criterion": float("nan")}, ValueError, "stop_criterion"),
        ({"tol": 0.0}, ValueError, "tol"),
        ({"which": "middle"}, ValueError, "which"),
        ({"which": "bottom", "method": "randomized_svd"}, ValueError, "which"),
        ({"basis": 3}, TypeError, "basis"),
    ],
)
def test_arguments_out_of_range(settings, error, text):
    eig = Eigendistortion(picture(1, 1, 1, 6), diagonal([6, 3, 2, 1, 0.5, 0.1]))
    with pytest.raises(error, match=text):
        eig.synthesize(**settings)
    assert eig.eigenvalues is None


@pytest.mark.parametrize(("m", "n"), [(12, 7), (7, 12), (9, 9), (1, 5), (5, 1)])
def test_exact_against_the_oracle(m, n):
    model = Matrix(random_matrix(m, n)).eval()
    image = picture(1, 1, 1, n)
    values, _, jacobian = oracle(model, image)
    eig = Eigendistortion(image, model)
    eig.synthesize("exact")
    assert eig.jacobian.shape == (m, n)
    assert torch.allclose(eig.jacobian, jacobian)
    assert eig.eigenindex.tolist() == list(range(n))
    assert torch.allclose(eig.eigenvalues, values, rtol=1e-10, atol=1e-13)
    vectors = eig.eigendistortions.reshape(n, n)
    assert torch.allclose(vectors @ vectors.T, torch.eye(n).double(), atol=1e-12)
    fisher = jacobian.T @ jacobian
    assert torch.allclose(fisher @ vectors.T, vectors.T * eig.eigenvalues, atol=1e-11)
    assert eig.spectrum.converged.all()


def test_the_jacobian_is_cached_and_survives():
    eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
    jacobian = eig.compute_jacobian()
    assert eig.compute_jacobian() is jacobian is eig.jacobian
    eig.synthesize("exact")
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=2)
    assert eig.jacobian is jacobian


def test_large_jacobians_warn():
    eig = Eigendistortion(picture(1, 1, 101, 100), lambda x: x.sum())
    with pytest.warns(UserWarning, match="10100 picture values"):
        assert eig.compute_jacobian().shape == (1, 10100)
    wide = Eigendistortion(picture(1, 1, 1, 101), lambda x: torch.cat([x.reshape(-1)] * 100))
    with pytest.warns(UserWarning, match="above a million"):
        wide.synthesize("exact")


def test_randomized_svd_finds_the_top_and_estimates_its_error():
    matrix = torch.diag(2.0 ** -torch.arange(30, dtype=torch.float64))
    eig = Eigendistortion(picture(1, 1, 5, 6), Matrix(matrix).eval())
    with pytest.warns(UserWarning, match="estimated spectral error"):
        eig.synthesize("randomized_svd", k=3)
    assert eig.eigenindex.tolist() == [0, 1, 2]
    assert eig.eigenvalues.tolist() == pytest.approx([1, 1 / 4, 1 / 16], rel=1e-6)
    assert set(eig.spectrum.status) == {PairStatus.UNVERIFIED}


@pytest.mark.parametrize(
    "model",
    [
        lambda x: (x * 2, {"a": torch.tanh(x)}["a"]),
        lambda x: {"a": x * 2, "b": torch.tanh(x)},
        lambda x: [x * 2, torch.tanh(x).permute(0, 2, 3, 1)],
    ],
    ids=["tuple", "dict", "list, not contiguous"],
)
def test_several_outputs_count_together(model):
    image = picture(1, 1, 3, 4)
    eig = Eigendistortion(image, model)
    eig.synthesize("exact")
    truth = (4 + (1 - torch.tanh(image) ** 2) ** 2).reshape(-1).sort(descending=True).values
    assert torch.allclose(eig.eigenvalues, truth)


def test_a_single_number_as_response():
    image = picture(1, 1, 3, 4)
    eig = Eigendistortion(image, lambda x: (x**2).sum())
    eig.synthesize("exact")
    assert eig.jacobian.shape == (1, 12)
    assert eig.eigenvalues[0] == pytest.approx(float((2 * image).square().sum()))
    assert (eig.eigenvalues[1:] == 0).all()


def routes_taken(monkeypatch, **settings):
    """Routes of the operators multiplied with, and the products with each, in order."""
    taken = []
    apply = FisherOperator.apply

    def noting(self, block, *request):
        taken.extend([self.route] * block.shape[1])
        return apply(self, block, *request)

    monkeypatch.setattr(FisherOperator, "apply", noting)
    eig = Eigendistortion(picture(1, 1, 6, 6), Smooth())
    eig.synthesize(stop_criterion=0.0, tol=10.0, **settings)
    return eig, taken


@pytest.mark.filterwarnings("ignore:.*not converged")
def test_short_calls_record_no_tape_and_long_ones_soon(monkeypatch):
    eig, taken = routes_taken(monkeypatch, max_iter=4, k=2, which="top")
    assert taken == ["double-backward"] * 8
    truth, _, _ = oracle(Smooth(), picture(1, 1, 6, 6))
    assert eig.eigenvalues[0] == pytest.approx(float(truth[0]), rel=0.2)
    _, taken = routes_taken(monkeypatch, max_iter=40, which="top")
    assert taken[:40] == ["double-backward"] * 16 + ["traced"] * 24


def test_few_responses_are_taken_by_rows():
    image = picture(1, 1, 5, 6)
    matrix = random_matrix(7, 30)
    eig = Eigendistortion(image, Matrix(matrix).eval())
    eig.synthesize(stop_criterion=1e-12, which="top", max_iter=3000)
    assert eig.operator.route == "rows"
    truth = torch.linalg.matrix_norm(matrix, 2) ** 2
    assert float(eig.eigenvalues[0]) == pytest.approx(float(truth), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_reads_a_diagonal_fisher_off_with_dead_pixels(dtype):
    image = picture(1, 1, 4, 4, dtype=dtype) - 0.5
    with pytest.warns(UserWarning, match=r"in \[0, 1\]"):
        eig = Eigendistortion(image, lambda x: torch.relu(x) ** 2)
    eig.synthesize("exact")
    truth = (2 * image.clamp(min=0)).square().reshape(-1).sort(descending=True).values
    assert torch.allclose(eig.eigenvalues, truth)
    vectors = eig.eigendistortions.reshape(16, 16)
    assert torch.equal(vectors @ vectors.T, torch.eye(16, dtype=dtype))
