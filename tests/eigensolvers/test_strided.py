"""The surrogates of strided and masked networks, and the choice among all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.eigensolvers import make_solver, solve
from eigenexp.eigensolvers.corrections import dominant, olsen
from eigenexp.eigensolvers.modulated_convolution import ModulatedConvolution
from eigenexp.eigensolvers.row_norms import RowNorms, fit_rows
from eigenexp.eigensolvers.strided_frame import StridedFrame, fit_frame, reach
from eigenexp.eigensolvers.surrogates import surrogate_from_state, telling_pixel
from eigenexp.eigensolvers.windows import Geometry, Windows, fit_windows

DOUBLE = {"dtype": torch.float64}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def windows(geometry: Geometry, kernels: int, seed: int = 0) -> Windows:
    return Windows(
        noise(kernels, geometry.pixels, seed=seed),
        1 + 0.2 * noise(geometry.windows, seed=seed + 1),
        0.05 * noise(geometry.windows, kernels, geometry.pixels, seed=seed + 2),
    )


def frame(shape: tuple[int, int, int], stride: int, width: int, shift: float) -> StridedFrame:
    geometry = Geometry(shape, stride, width)
    return StridedFrame(geometry, windows(geometry, 3), shift, 0.1, 6)


SHAPES = [((1, 9, 8), 2, 4), ((2, 7, 9), 3, 6), ((3, 6, 5), 1, 3)]


@pytest.mark.parametrize(("shape", "stride", "width"), SHAPES)
def test_windows_are_cut_as_by_unfold_and_pasted_by_the_transpose(
    shape: tuple[int, int, int], stride: int, width: int
) -> None:
    geometry = Geometry(shape, stride, width)
    x, u = noise(math.prod(shape), 2), noise(geometry.windows, 2, geometry.pixels, seed=1)
    cut = geometry.cut(x)
    assert cut.shape == u.shape
    torch.testing.assert_close((cut * u).sum(), (x * geometry.paste(u)).sum())
    pad = width - stride
    right = [
        (g - 1) * stride + width - pad - size
        for g, size in zip(geometry.grid, shape[1:], strict=True)
    ]
    padded = nn.functional.pad(x.mT.reshape(2, *shape), (pad, right[1], pad, right[0]))
    unfolded = nn.functional.unfold(padded, width, stride=stride)
    torch.testing.assert_close(cut.square().sum((0, 2)), unfolded.square().sum((1, 2)))
    torch.testing.assert_close(cut.square().sum(2).mT, unfolded.square().sum(1))


@pytest.mark.parametrize(("shape", "stride", "width"), SHAPES)
def test_a_frame_is_symmetric_positive_semidefinite_and_solved_exactly(
    shape: tuple[int, int, int], stride: int, width: int
) -> None:
    made = frame(shape, stride, width, 0.3)
    eye = torch.eye(math.prod(shape), **DOUBLE)
    a = made.apply(eye)
    torch.testing.assert_close(a, a.T)
    assert float(torch.linalg.eigvalsh(a)[0]) > -1e-10 * float(a.norm())
    torch.testing.assert_close(made.solve(a + 0.3 * eye), eye, atol=1e-8, rtol=0)


def test_a_frame_of_its_own_form_is_recovered_and_deviations_improve_it() -> None:
    geometry = Geometry((1, 16, 16), 2, 6)
    true = StridedFrame(geometry, windows(geometry, 3), 0.0, 0.0, 0)
    v = torch.linalg.qr(noise(256, 10)).Q
    w = true.apply(v)
    found = fit_frame(v, w, (1, 16, 16), 5, scale=1.0)
    assert found is not None
    assert found.geometry.stride == 2
    assert found.misfit < 0.2
    assert found.shift == 1e-5

    def misfit(at: Windows) -> float:
        of = StridedFrame(geometry, at, 0.0, 0.0, 0)
        return float((of.apply(v.float()) - w.float()).norm() / w.norm())

    own = fit_windows(
        geometry, found.windows, v.float(), w.float(), outer=3, inner=10, deviate=True
    )
    assert misfit(own) < misfit(found.windows)


@pytest.mark.parametrize("width", [4, 6])
def test_windows_hold_half_a_stride_more_than_one_pixel_reaches(width: int) -> None:
    true = frame((1, 16, 16), 2, 6, 0.0)
    v = torch.linalg.qr(noise(256, 10)).Q
    found = fit_frame(v, true.apply(v), (1, 16, 16), width, scale=1.0)
    assert found is not None
    assert found.geometry.width >= width + found.geometry.stride // 2


@pytest.mark.parametrize("width", [3, 5])
def test_the_misfit_is_that_of_the_frame_that_is_returned(width: int) -> None:
    """Too narrow, or of the right size: pairs that were held out tell it."""
    true = frame((1, 16, 16), 2, 6, 0.0)
    v = torch.linalg.qr(noise(256, 10)).Q.float()
    w = true.apply(v)
    found = fit_frame(v, w, (1, 16, 16), width, scale=1.0)
    assert found is not None
    left = (replace(found, shift=0.0).apply(v[:, -2:]) - w[:, -2:]).norm() / w[:, -2:].norm()
    assert found.misfit == pytest.approx(float(left), rel=1e-2)


def test_what_would_cost_too_much_is_not_begun() -> None:
    v = torch.zeros(3 * 224 * 224, 10)
    assert fit_frame(v, v + 1, (3, 224, 224), 9, 1.0) is None


def test_rows_are_estimated_and_dead_pixels_come_first() -> None:
    mask = (torch.arange(400) % 7 > 0).double()
    jacobian = noise(500, 400) * mask * torch.linspace(0.1, 1, 400, **DOUBLE)
    fisher = jacobian.T @ jacobian
    v = torch.linalg.qr(noise(400, 10, seed=1)).Q
    rows = fit_rows(v, fisher @ v, 1.0)
    assert rows.misfit < 0.5
    starts = rows.starts(noise(400, 1), 20)
    assert float((fisher @ starts).norm()) == 0
    torch.testing.assert_close(starts.mT @ starts, torch.eye(20, **DOUBLE))
    flat = noise(500, 400)
    assert fit_rows(v, flat.T @ (flat @ v), 1.0).misfit > 0.5


def test_olsens_correction_and_bottom_vectors_agree_with_dense() -> None:
    a = noise(30, 30)
    a = a @ a.T + 0.1 * torch.eye(30, **DOUBLE)
    locked, r = torch.linalg.qr(noise(30, 2, seed=1)).Q, noise(30, 1, seed=2)

    def solve_a(vectors: Tensor) -> Tensor:
        return torch.linalg.solve(a, vectors)

    t = olsen(solve_a, "bottom", r, locked)
    assert float((locked.mT @ t).abs().max()) < 1e-10
    rest = a @ t - r
    assert float((rest - locked @ (locked.mT @ rest)).norm()) < 1e-8
    assert olsen(solve_a, "top", r, locked) is r
    found = dominant(solve_a, noise(30, 1, seed=3), 2, 30)
    values = (found * (a @ found)).sum(0)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(a)[:2], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "made",
    [frame((1, 9, 8), 2, 4, 0.3), RowNorms(torch.rand(72, **DOUBLE), 0.1, 0.2)],
    ids=["frame", "rows"],
)
def test_states_go_through_plain_containers(made: StridedFrame | RowNorms) -> None:
    like, x = torch.zeros(1, **DOUBLE), noise(72, 2)
    saved = made.state()
    again = surrogate_from_state(saved, like)
    assert type(again) is type(made)
    assert again.note == made.note
    torch.testing.assert_close(again.solve(x), made.solve(x), rtol=1e-4, atol=1e-6)
    twice = surrogate_from_state(again.state(), like)
    assert torch.equal(again.solve(x), twice.solve(x))


def test_the_states_of_before_are_convolutions() -> None:
    ones = torch.ones(1, 6, 6, **DOUBLE)
    saved = ModulatedConvolution("cosine", ones, ones, torch.eye(1, **DOUBLE), 0.1).state()
    assert isinstance(surrogate_from_state(saved, ones), ModulatedConvolution)


def test_reach_and_the_pixel_that_tells_it() -> None:
    column = torch.zeros(1, 12, 12)
    column[0, 4:9, 5:8] = 1.0
    assert reach(column.reshape(-1), 6 * 12 + 6, (1, 12, 12)) == 2
    dead = torch.zeros(144, 3)
    dead[5 * 12 + 6] = 1.0
    assert telling_pixel(dead, (1, 12, 12)) == 5 * 12 + 6


def picture(side: int) -> Tensor:
    return torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)).double()


def network(*layers: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers)).double().requires_grad_(False)


SMOOTH = (
    lambda: nn.Conv2d(1, 6, 3, padding=1),
    nn.Softplus,
    lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1),
    nn.Softplus,
)
MASKED = (lambda: nn.Conv2d(1, 8, 5), nn.ReLU, lambda: nn.MaxPool2d(2))
FULL = (nn.Flatten, lambda: nn.Linear(256, 300), nn.Tanh)


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (lambda: ee.models.OnOff(kernel_size=9).double(), "a modulated convolution"),
        (lambda: network(*SMOOTH), "a strided frame, stride 2"),
        (lambda: network(*MASKED), "the norms of the rows"),
        (lambda: network(*FULL), None),
    ],
    ids=["front end", "smooth", "masked", "unstructured"],
)
def test_the_choice_falls_on_what_fits(model: Callable[[], nn.Module], note: str | None) -> None:
    operator = ee.FisherOperator(model().eval(), picture(16))
    solver = make_solver(operator, "davidson", k=4, which="bottom", tol=1e-8)
    while not solver.done and solver.num_products < 30:
        solver.tell(*operator.apply(solver.ask()))
    notes = [n for n in solver.result().notes if n.startswith("preconditioned by")]
    assert [n.removeprefix("preconditioned by ").startswith(note or "?") for n in notes] == (
        [True] if note else []
    )


@pytest.mark.parametrize(("work", "begun"), [(None, True), (10**3, False), (10**10, True)])
def test_a_fit_is_begun_only_where_products_cost_as_much(work: int | None, begun: bool) -> None:
    operator = ee.FisherOperator(network(*SMOOTH).eval(), picture(32))
    told = replace(operator.problem, work=work)
    solver = make_solver(told, "davidson", k=2, which="bottom", tol=1e-8)
    while not solver.done and solver.num_products < 20:
        solver.tell(*operator.apply(solver.ask()))
    assert any("strided frame" in note for note in solver.result().notes) is begun


def test_refits_are_as_rare_as_products_are_cheap() -> None:
    made = frame((1, 32, 32), 4, 12, 0.3)
    often, rarely = (made.refit_interval(work) for work in (10**12, 10**6))
    assert made.refit_interval(None) == often < rarely


@pytest.mark.parametrize("cut", [16, 40])
def test_a_cut_solve_of_a_strided_network_ends_in_the_same_bits(cut: int) -> None:
    operator = ee.FisherOperator(network(*SMOOTH).eval(), picture(16))
    whole, first, second = (
        make_solver(operator, "davidson", k=2, which="bottom", tol=1e-6) for _ in range(3)
    )

    def drive(solver: ee.eigensolvers.Eigensolver, turns: int) -> None:
        while turns and not solver.done:
            solver.tell(*operator.apply(solver.ask()))
            turns -= 1

    drive(whole, 600)
    drive(first, cut)
    second.load_state_dict(first.state_dict())
    drive(second, 600)
    assert whole.num_products == second.num_products
    assert torch.equal(whole.result().eigenvectors, second.result().eigenvectors)


def test_dead_pixels_are_found_at_once() -> None:
    operator = ee.FisherOperator(network(*MASKED).eval(), picture(26))
    values = torch.linalg.eigvalsh(operator.to_dense())
    found = solve(operator, "davidson", k=2, which="bottom", tol=1e-6)
    assert bool(found.converged.all())
    assert float((found.eigenvalues.flip(0) - values[:2]).abs().max()) <= 2e-6 * values[-1]
    assert found.num_products < 40
