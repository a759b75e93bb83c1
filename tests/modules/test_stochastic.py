"""The stochastic mean: samples come near, the full set decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.eigensolvers.stochastic import StochasticPower
from eigenexp.errors import InputError
from eigenexp.modules.average import AverageModule
from tests.problems import Small, trainer


@pytest.mark.parametrize("parts", [1, 2])
def test_it_ends_on_true_residuals_of_the_full_set(
    parts: int, model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    module = AverageModule(
        model, pictures, method="stochastic", sample=2, k=2, which="top", tol=1e-3, parts=parts
    )
    trainer(tmp_path).fit(module)
    spectrum = module.spectrum()
    dense = sum(ee.FisherOperator(model, picture).to_dense() for picture in pictures) / 7
    values = torch.linalg.eigvalsh(dense).flip(0)
    assert bool(spectrum.converged.all())
    vectors = spectrum.eigenvectors.reshape(2, -1)
    residuals = (vectors @ dense - spectrum.eigenvalues[:, None] * vectors).norm(dim=1)
    assert float(residuals.max()) <= 1e-3 * float(values[0])
    torch.testing.assert_close(
        spectrum.eigenvalues, values[:2], rtol=0, atol=1e-3 * float(values[0])
    )
    solver = module.solver
    assert isinstance(solver, StochasticPower)
    assert solver.num_samples > 0


def drive(solver: StochasticPower, matrices: list[Tensor], turns: int) -> list[tuple[bool, float]]:
    """Answer from dense matrices; return whether each turn was full, and the worst residual."""
    seen = []
    for _ in range(turns):
        if solver.done:
            break
        chosen = range(len(matrices)) if solver.wants_all else solver.sample()
        full = solver.wants_all
        block = solver.ask()
        solver.tell(torch.stack([matrices[i] @ block for i in chosen]).mean(0))
        seen.append((full, solver.progress().worst))
    return seen


@pytest.fixture
def matrices() -> list[Tensor]:
    """Forty matrices around one whose eigenvalues crowd at the top."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    singular = 0.98 ** torch.arange(30, dtype=torch.float64)
    base = torch.diag(singular) @ torch.linalg.qr(drawn).Q
    found = []
    for _ in range(40):
        noisy = base + 0.02 * torch.randn(30, 30, generator=generator, dtype=torch.float64)
        found.append(noisy.T @ noisy)
    return found


def solver_of(**options: object) -> StochasticPower:
    settings = {"num_pictures": 40, "sample": 4, "k": 1, "which": "top", "tol": 1e-2, **options}
    return StochasticPower(30, **settings)  # type: ignore[arg-type]


def test_samples_bring_it_near_in_fewer_passes_than_full_products(matrices: list[Tensor]) -> None:
    mean = torch.stack(matrices).mean(0)
    stochastic = solver_of(tol=1e-2)
    history = drive(stochastic, matrices, 10_000)
    passes = sum(1.0 if full else 0.1 for full, _ in history)
    power = ee.eigensolvers.Power(30, k=1, which="top", tol=1e-2)
    turns = 0
    while not power.done:
        power.tell(mean @ power.ask())
        turns += 1
    assert stochastic.done
    full = [i for i, (is_full, _) in enumerate(history) if is_full]
    assert full[:2] == [0, 11]  # a full product first, then one a pass
    assert history[full[1]][1] < 0.5 * history[0][1]
    assert passes < turns


def test_every_picture_is_sampled_once_a_pass(matrices: list[Tensor]) -> None:
    solver = solver_of(tol=1e-12)
    seen: list[int] = []
    while len(seen) < 40:
        if not solver.wants_all:
            seen += solver.sample()
        drive(solver, matrices, 1)
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize("cut", [1, 7, 25])
def test_its_state_resumes_bit_for_bit(cut: int, matrices: list[Tensor]) -> None:
    whole, broken = solver_of(tol=1e-6), solver_of(tol=1e-6)
    drive(whole, matrices, 400)
    drive(broken, matrices, cut)
    resumed = solver_of(tol=1e-6)
    resumed.load_state_dict(broken.state_dict())
    drive(resumed, matrices, 400 - cut)
    assert torch.equal(resumed.result().eigenvectors, whole.result().eigenvectors)
    assert resumed.num_products == whole.num_products


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"which": "both"}, "samples hide small eigenvalues"),
        ({"sample": 41}, "1 to 40 pictures"),
        ({"step": 0.0}, "positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        solver_of(**options)
