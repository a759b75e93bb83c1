"""The surrogate of F: exact where F is of its form, positive definite always."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.eigensolvers import make_solver, solve
from eigenexp.eigensolvers.auto import choose_method
from eigenexp.eigensolvers.modulated_convolution import (
    BASES,
    ModulatedConvolution,
    Transform,
    fit_surrogate,
)
from eigenexp.eigensolvers.settings import Settings
from eigenexp.operators import DenseOperator


class Pictured:
    """A dense operator that says it is of a picture."""

    def __init__(self, jacobian: Tensor, image_shape: tuple[int, ...]) -> None:
        self._dense = DenseOperator.from_jacobian(jacobian)
        self.problem = replace(self._dense.problem, image_shape=image_shape)
        self.apply = self._dense.apply


def made(basis: str, shape: tuple[int, int, int], seed: int = 0) -> ModulatedConvolution:
    generator = torch.Generator().manual_seed(seed)
    gain = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2
    width = shape[2] // 2 + 1 if basis == "fourier" else shape[2]
    response = torch.rand(*shape[:2], width, generator=generator, dtype=torch.float64) + 0.1
    if basis == "fourier":  # a real picture: c(ω) = c(−ω)
        flipped = response.flip(1).roll(1, 1)
        edge = (response + flipped) / 2
        response[..., 0], response[..., -1] = edge[..., 0], edge[..., -1]
    return ModulatedConvolution(basis, gain, response, torch.eye(shape[0]).double(), 0.0)


def dense(surrogate: ModulatedConvolution) -> Tensor:
    return surrogate.apply(torch.eye(surrogate.gain.numel(), dtype=torch.float64))


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("shape", [(1, 8, 9), (2, 7, 6)])
def test_solve_inverts_apply_and_a_is_positive_definite(
    basis: str, shape: tuple[int, int, int]
) -> None:
    surrogate = made(basis, shape)
    a = dense(surrogate)
    torch.testing.assert_close(a, a.T)
    assert float(torch.linalg.eigvalsh(a)[0]) > 0
    torch.testing.assert_close(surrogate.solve(a), torch.eye(len(a)).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("basis", BASES)
def test_transforms_and_their_transposes_belong_together(basis: str) -> None:
    t = Transform(basis, 6, 7, like=torch.zeros(1, dtype=torch.float64))
    x = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(t.synthesise(t.analyse(x)), x)
    torch.testing.assert_close(t.unproject(t.project(x)), x)
    if basis != "fourier":
        forward = (t.synthesise(x) * y).sum()
        torch.testing.assert_close(forward, (x * t.project(y)).sum())


@pytest.mark.parametrize("basis", BASES)
def test_a_surrogate_of_its_own_form_is_recovered(basis: str) -> None:
    true = made(basis, (1, 12, 12), seed=3)
    v = torch.randn(144, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = fit_surrogate(v, true.apply(v), (1, 12, 12))
    assert found is not None
    assert found.basis == basis
    assert found.misfit < 0.02
    ratio = torch.linalg.eigvals(torch.linalg.solve(dense(found), dense(true))).real
    assert float(ratio.max() / ratio.min()) < 3


def test_mixed_channels_are_decoupled() -> None:
    """Luminance strong, colour weak: the fit finds the axes and is far better than without."""
    side, channels = 8, 3
    axes = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]).double().T).Q
    strength = torch.tensor([1.0, 0.1, 0.01]).double()
    fisher = torch.kron((axes * strength) @ axes.T, torch.eye(side * side).double())
    v = torch.randn(
        channels * side * side, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = fit_surrogate(v, fisher @ v, (channels, side, side))
    assert found is not None
    ratio = torch.linalg.eigvals(torch.linalg.solve(dense(found), fisher)).real
    assert float(ratio.max() / ratio.min()) < 2


def test_nothing_is_fitted_to_a_zero_operator() -> None:
    v = torch.randn(36, 4, dtype=torch.float64)
    assert fit_surrogate(v, torch.zeros_like(v), (1, 6, 6)) is None


def test_state_goes_through_plain_containers() -> None:
    surrogate = made("mirrored", (1, 6, 6))
    again = ModulatedConvolution.from_state(surrogate.state(), torch.zeros(1).double())
    torch.testing.assert_close(dense(again), dense(surrogate))


def test_the_preconditioner_saves_most_products_at_the_bottom() -> None:
    """A blur's bottom, crowded at zero: counted, not timed."""
    picture = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)).double()
    operator = ee.FisherOperator(ee.models.Gaussian(9, 1.0).double(), picture)
    values = torch.linalg.eigvalsh(operator.to_dense())
    counts = {}
    for choice in ("surrogate", "none"):
        found = solve(operator, "davidson", k=3, which="bottom", tol=1e-6, preconditioner=choice)
        assert bool(found.converged.all())
        assert float((found.eigenvalues.flip(0) - values[:3]).abs().max()) <= 2e-6 * values[-1]
        counts[choice] = found.num_products
    assert counts["surrogate"] * 3 < counts["none"]


def test_auto_chooses_and_says_why() -> None:
    def choice(**settings: object) -> str:
        return choose_method(Settings(**settings))[0]  # type: ignore[arg-type]

    picture = {"n": 1024, "image_shape": (1, 32, 32)}
    assert choice(**picture, which="top") == "lanczos"
    assert choice(**picture, which="bottom") == "davidson"
    assert choice(**picture, which="both", k=100) == "exact"
    assert choice(n=1024, image_shape=(1024,), which="both") == "lanczos"
    jacobian = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)).double()
    operator = Pictured(jacobian, (1, 16, 16))
    solver = make_solver(operator, "auto", k=1, which="top")
    assert solver.name == "lanczos"
    assert solver.choice is not None
    assert solver.choice.startswith("auto chose lanczos: only the top is wanted")
    found = solve(operator, "auto", k=1, which="top", tol=1e-3)
    assert found.notes[0].startswith("auto chose lanczos: only the top is wanted")


def test_several_columns_at_once_find_the_same_pairs() -> None:
    jacobian = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)).double()
    operator = Pictured(jacobian, (1, 16, 16))
    values = torch.linalg.eigvalsh(jacobian.T @ jacobian).flip(0)
    for width in (1, 3):
        found = solve(operator, "davidson", k=3, which="both", tol=1e-5, block_size=width)
        assert bool(found.converged.all())
        error = (found.eigenvalues - values[found.eigenindex]).abs().max()
        assert float(error) <= 2e-5 * float(values[0])


@pytest.mark.parametrize("cut", [3, 9, 14, 20, 40])
def test_a_cut_solve_of_a_picture_ends_in_the_same_bits(cut: int) -> None:
    """With all that a picture brings in: start vectors, guesses, estimates improved on the way."""
    picture = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    operator = ee.FisherOperator(ee.models.OnOff(kernel_size=9).double(), picture)
    settings = {"k": 4, "which": "bottom", "tol": 1e-7}
    whole, first, second = (make_solver(operator, "davidson", **settings) for _ in range(3))

    def drive(solver: object, turns: int) -> None:
        while turns and not solver.done:  # type: ignore[attr-defined]
            solver.tell(*operator.apply(solver.ask()))  # type: ignore[attr-defined]
            turns -= 1

    drive(whole, 2000)
    drive(first, cut)
    second.load_state_dict(first.state_dict())
    drive(second, 2000)
    assert whole.num_products == second.num_products > 64  # beyond the last new estimate
    assert torch.equal(whole.result().eigenvectors, second.result().eigenvectors)
