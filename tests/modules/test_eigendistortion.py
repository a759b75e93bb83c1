"""The solver as a Lightning module: the same numbers as the bare loop, through a plain Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.errors import CheckpointError, EigenexpError, InputError
from eigenexp.modules.eigendistortion import EigendistortionModule
from tests.problems import Quadratic
from tests.training import quiet_trainer as trainer

METHODS = ["power", "lanczos", "auto"]


@pytest.mark.parametrize("method", METHODS)
def test_trainer_finds_the_dense_spectrum(
    method: str, small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, values = small_problem
    tol = 1e-3 if method == "power" else 1e-7
    module = EigendistortionModule(model, image, method=method, k=2, tol=tol)
    trainer(tmp_path, [ee.ConvergenceStopping()]).fit(module)
    spectrum = module.spectrum()
    expected = torch.cat([values[:2], values[-2:]])
    assert spectrum.eigenindex.tolist() == [0, 1, 34, 35]
    assert float(spectrum.relative_residuals.max()) <= tol
    torch.testing.assert_close(
        spectrum.eigenvalues.double(), expected, rtol=0, atol=2 * tol * float(values[0])
    )
    assert spectrum.eigenvectors.shape == (4, 1, 6, 6)


@pytest.mark.parametrize("method", METHODS)
def test_trainer_and_bare_loop_give_the_same_bits(
    method: str, small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    module = EigendistortionModule(model, image, method=method, k=1, tol=1e-3, seed=3)
    trainer(tmp_path).fit(module)
    bare = ee.solve(ee.FisherOperator(model, image), method=method, k=1, tol=1e-3, seed=3)
    fitted = module.spectrum()
    assert torch.equal(fitted.eigenvalues, bare.eigenvalues)
    assert torch.equal(fitted.eigenvectors, bare.eigenvectors)
    assert fitted.num_products == bare.num_products


def test_one_product_a_step_and_steps_are_counted(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    module = EigendistortionModule(model, image, method="lanczos", tol=1e-9)
    run = trainer(tmp_path, max_steps=7)
    run.fit(module)
    assert run.global_step == 7
    assert module.operator.num_products == module.solver.num_products
    assert not module.solver.done


def test_a_run_without_callbacks_ends_when_the_solver_is_done(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    module = EigendistortionModule(model, image, method="lanczos", tol=1e-4)
    run = trainer(tmp_path)
    run.fit(module)
    assert module.solver.done
    assert 0 < run.global_step < 5000


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)]
)
def test_precision_of_the_trainer_is_the_precision_of_the_solve(
    precision: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, image = Quadratic(), torch.rand(1, 1, 6, 6)
    module = EigendistortionModule(model, image, tol=1e-3)
    trainer(tmp_path, precision=precision).fit(module)
    assert module.solver.dtype == dtype
    assert module.spectrum().eigenvectors.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [1, 6, 11])
def test_resume_ends_bit_for_bit_where_the_unbroken_run_ends(
    method: str, cut: int, small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem

    def module() -> EigendistortionModule:
        return EigendistortionModule(model, image, method=method, k=2, tol=1e-3, seed=5)

    whole = module()
    trainer(tmp_path).fit(whole)
    checkpoint = ee.SolverCheckpoint(tmp_path / "checkpoints")
    broken = module()
    trainer(tmp_path, [checkpoint], max_steps=cut, enable_checkpointing=True).fit(broken)
    resumed = module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path).fit(resumed, ckpt_path=str(checkpoint.last_path))
    assert torch.equal(resumed.spectrum().eigenvalues, whole.spectrum().eigenvalues)
    assert torch.equal(resumed.spectrum().eigenvectors, whole.spectrum().eigenvectors)
    assert resumed.solver.num_products == whole.solver.num_products
    # A run begun anew would end there as well: only the rest may be computed.
    done = broken.operator.num_products
    assert 0 < done == cut * (done // cut)
    assert resumed.operator.num_products == whole.operator.num_products - done


def test_resume_from_lightnings_own_checkpoint_callback(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
    first = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    trainer(tmp_path, [keep], max_steps=6, enable_checkpointing=True).fit(first)
    second = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path).fit(second, ckpt_path=keep.last_model_path)
    whole = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    trainer(tmp_path).fit(whole)
    assert torch.equal(second.spectrum().eigenvalues, whole.spectrum().eigenvalues)
    assert second.operator.num_products == whole.operator.num_products - 6


def test_a_second_fit_goes_on_from_the_first(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    module = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    trainer(tmp_path, max_steps=5).fit(module)
    before = module.solver.num_products
    trainer(tmp_path).fit(module)
    whole = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    trainer(tmp_path).fit(whole)
    assert before == 5
    assert torch.equal(module.spectrum().eigenvalues, whole.spectrum().eigenvalues)


def test_the_model_is_frozen_and_stays_out_of_the_checkpoint(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    _, image, _ = small_problem
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 50), nn.BatchNorm1d(50)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = EigendistortionModule(model, image, tol=1e-3)
    checkpoint = ee.SolverCheckpoint(tmp_path)
    trainer(tmp_path, [checkpoint], max_steps=4, enable_checkpointing=True).fit(module)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    saved = torch.load(checkpoint.last_path, weights_only=True)
    assert saved["state_dict"] == {}
    assert saved["eigenexp"]["metadata"]["model"]["class"].endswith("Sequential")


def test_another_model_is_refused_at_resume_unless_forced(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    checkpoint = ee.SolverCheckpoint(tmp_path)
    first = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    trainer(tmp_path, [checkpoint], max_steps=4, enable_checkpointing=True).fit(first)
    other = EigendistortionModule(Quadratic(seed=9), image, method="lanczos", tol=1e-6)
    with pytest.raises(CheckpointError, match="weights_sha256"):
        trainer(tmp_path).fit(other, ckpt_path=str(checkpoint.last_path))


def test_global_random_state_is_left_alone(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    torch.manual_seed(11)
    expected = torch.get_rng_state()
    trainer(tmp_path).fit(EigendistortionModule(model, image, tol=1e-3))
    assert torch.equal(torch.get_rng_state(), expected)


def test_an_unproven_result_warns(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    module = EigendistortionModule(model, image, method="lanczos", tol=1e-9, max_products=4)
    trainer(tmp_path).fit(module)
    with pytest.warns(UserWarning, match="not proven"):
        spectrum = module.spectrum()
    assert spectrum.stop_reason is ee.StopReason.MAX_PRODUCTS
    assert not bool(spectrum.converged.all())


def test_any_lightning_logger_gets_the_convergence(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    logger = CSVLogger(tmp_path, name="", version="v")
    module = EigendistortionModule(model, image, method="lanczos", tol=1e-6)
    trainer(tmp_path, logger=logger, log_every_n_steps=1).fit(module)
    text = (tmp_path / "v" / "metrics.csv").read_text()
    assert "worst_residual" in text.splitlines()[0]
    assert len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-mixed"}, "precision"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val: expected None, got 1.0"),
        ({"accumulate_grad_batches": 4}, r"got 4; .* AverageModule\(parts=4\)"),
    ],
)
def test_trainer_settings_that_have_no_meaning_here_are_one_clear_line(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    module = EigendistortionModule(Quadratic(), torch.rand(1, 1, 6, 6))
    run = trainer(tmp_path, **options)
    for refuse in (module.check, lambda run: run.fit(module)):
        with pytest.raises(InputError, match=message) as caught:
            refuse(run)
        assert "\n" not in str(caught.value)


class Loses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach() * 2


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 * 0


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("model", [Loses(), Random(), NotANumber(), Zero()])
def test_a_model_without_fisher_information_is_one_clear_error(
    model: nn.Module, tmp_path: Path
) -> None:
    module = EigendistortionModule(model, torch.rand(1, 1, 4, 4))
    with pytest.raises(EigenexpError) as caught:
        trainer(tmp_path).fit(module)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 37}, "k: expected 1 to n = 36"),
        ({"tolerance": 1e-3}, "tolerance: expected a setting of 'auto'"),
        ({"which": "largest"}, "which: expected 'top', 'bottom' or 'both', got 'largest'"),
        ({"method": "arnoldi"}, "method: expected one of"),
        ({"image": torch.rand(6, 6)}, r"\(1, C, H, W\), got \(6, 6\); image\[None, None\]"),
        ({"image": torch.rand(1, 6, 6)}, r"got \(1, 6, 6\); image\[None\]"),
        ({"image": torch.rand(2, 1, 6, 6)}, "StudyModule takes many"),
        ({"image": torch.zeros(1, 1, 6, 6, dtype=torch.uint8)}, "float32 or torch.float64, got"),
        ({"image": "cat.png"}, "load_picture"),
    ],
)
def test_what_cannot_be_solved_is_refused_at_construction(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EigenexpError, match=message) as caught:
        EigendistortionModule(**{"model": Quadratic(), "image": torch.rand(1, 1, 6, 6), **options})
    assert "\n" not in str(caught.value)


class Line(L.LightningModule):
    """An ordinary module: its slope is trained towards 1."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.slope - 1).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def train_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)] * 4


def test_a_trainer_that_solved_trains_other_modules_as_ever(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    model, image, _ = small_problem
    module, line = EigendistortionModule(model, image, tol=1e-6), Line()
    same = trainer(tmp_path, max_epochs=1, max_steps=-1)
    same.fit(module)
    same.fit_loop.max_epochs = same.current_epoch + 1
    same.should_stop = False
    same.fit(line)
    assert float(line.slope.detach()) == 1.0


def test_a_profiler_of_the_users_own_stays(
    small_problem: tuple[Quadratic, Tensor, Tensor], tmp_path: Path
) -> None:
    from lightning.pytorch.profilers import SimpleProfiler

    model, image, _ = small_problem
    profiler = SimpleProfiler(dirpath=tmp_path, filename="times")
    trainer(tmp_path, max_steps=3, profiler=profiler).fit(
        EigendistortionModule(model, image, method="power")
    )
    assert any("training_step" in name for name in profiler.recorded_durations)
