"""What a Lightning user expects of any module: metrics, callbacks, limits, predict, loading."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor

import eigenexp as ee
from eigenexp.errors import CheckpointError, InputError
from tests.problems import Quadratic
from tests.training import quiet_trainer as trainer

Problem = tuple[Quadratic, Tensor, Tensor]


def module_of(problem: Problem, **settings: Any) -> ee.EigendistortionModule:
    model, image, _ = problem
    return ee.EigendistortionModule(model, image, **{"method": "lanczos", "tol": 1e-9, **settings})


class Watch(L.Callback):
    """Notes what a callback sees after each turn."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.begun: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.begun.append(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append({**values, "step": trainer.global_step})


@pytest.mark.parametrize("ours", [[], [ee.ConvergenceLogging()]], ids=["alone", "with ours"])
def test_metrics_are_there_at_every_turn_whoever_logs(
    ours: list[L.Callback], small_problem: Problem, tmp_path: Path
) -> None:
    watch, module = Watch(), module_of(small_problem)
    trainer(tmp_path, [watch, *ours], max_steps=9).fit(module)
    assert watch.begun == list(range(9))
    assert [seen["step"] for seen in watch.seen] == list(range(1, 10))
    assert [seen["products"] for seen in watch.seen] == list(range(1, 10))
    last, progress = watch.seen[-1], module.solver.progress()
    assert last["worst_residual"] == pytest.approx(progress.worst)
    assert last["eigenvalue/0"] == float(progress.eigenvalues[0])
    assert last["eigenvalue/-1"] == float(progress.eigenvalues[-1])


def test_early_stopping_ends_at_its_threshold(small_problem: Problem, tmp_path: Path) -> None:
    stopping = EarlyStopping("worst_residual", stopping_threshold=1e-3, patience=100)
    module = module_of(small_problem)
    fit = trainer(tmp_path, [stopping], max_epochs=-1, max_steps=-1, limit_train_batches=2)
    fit.fit(module)
    assert 0 < fit.global_step == stopping.stopped_epoch * 2 + 2
    assert module.solver.progress().worst <= 1e-3
    assert not module.solver.done


def test_early_stopping_in_an_endless_epoch_hinders_nothing(
    small_problem: Problem, tmp_path: Path
) -> None:
    module = module_of(small_problem)
    trainer(tmp_path, [EarlyStopping("worst_residual")]).fit(module)
    assert module.solver.done
    trainer(tmp_path, [EarlyStopping("worst_residual")]).fit(module)  # nothing left to do


def test_model_checkpoint_keeps_the_best_by_the_worst_residual(
    small_problem: Problem, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(
        tmp_path, monitor="worst_residual", every_n_train_steps=3, filename="{step}", save_top_k=2
    )
    watch, module = Watch(), module_of(small_problem)
    trainer(tmp_path, [watch, keep], max_steps=12, enable_checkpointing=True).fit(module)
    residuals = {seen["step"]: seen["worst_residual"] for seen in watch.seen}
    best = min((3, 6, 9, 12), key=residuals.__getitem__)
    assert keep.best_model_path.endswith(f"step={best}.ckpt")
    assert float(keep.best_model_score or 0) == pytest.approx(residuals[best])
    assert len(list(tmp_path.glob("*.ckpt"))) == 2


def test_a_learning_rate_monitor_logs_the_one_there_is(
    small_problem: Problem, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="", version="v")
    fit = trainer(tmp_path, [LearningRateMonitor()], logger=logger, max_steps=4)
    fit.fit(module_of(small_problem))
    text = (tmp_path / "v" / "metrics.csv").read_text()
    assert "lr-TurnCounter" in text


class Hearing(L.Callback):
    heard = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self.heard += 1


@pytest.mark.parametrize("kind", ["class", "function"])
def test_a_hook_before_each_step_is_called_for_who_has_one(
    kind: str, small_problem: Problem, tmp_path: Path
) -> None:
    hearing = Hearing()
    callback: L.Callback = hearing
    if kind == "function":
        callback = LambdaCallback(on_before_optimizer_step=hearing.on_before_optimizer_step)
    fit = trainer(tmp_path, [callback], max_steps=4)
    fit.fit(module_of(small_problem))
    assert hearing.heard == fit.global_step == 4


def test_limits_in_turns_and_time(small_problem: Problem, tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_steps=5)
    fit.fit(module_of(small_problem))
    assert fit.global_step == 5
    fit = trainer(tmp_path, max_steps=-1, max_epochs=-1, max_time=timedelta(seconds=0))
    module = module_of(small_problem)
    fit.fit(module)
    assert fit.global_step < 3
    assert not module.solver.done


@pytest.mark.parametrize(
    "options", [{"detect_anomaly": True}, {"barebones": True}, {"deterministic": True}]
)
def test_options_of_the_trainer_change_no_number(
    options: dict[str, Any], small_problem: Problem, tmp_path: Path
) -> None:
    plain, other = module_of(small_problem), module_of(small_problem)
    trainer(tmp_path).fit(plain)
    settings = {"max_steps": 5000, "accelerator": "cpu", "default_root_dir": tmp_path, **options}
    if "barebones" not in options:
        settings |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        L.Trainer(**settings).fit(other)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(plain.spectrum().eigenvectors, other.spectrum().eigenvectors)


def test_a_profiler_sees_the_steps(small_problem: Problem, tmp_path: Path) -> None:
    profiler = SimpleProfiler(dirpath=tmp_path, filename="times")
    trainer(tmp_path, max_steps=3, profiler=profiler).fit(module_of(small_problem))
    (steps,) = [
        times for name, times in profiler.recorded_durations.items() if "training_step" in name
    ]
    assert len(steps) == 3


def test_time_of_a_timer_begins_anew_at_resumption(small_problem: Problem, tmp_path: Path) -> None:
    keep = ee.SolverCheckpoint(tmp_path)
    fit = trainer(
        tmp_path, [keep, Timer(timedelta(hours=1))], max_steps=3, enable_checkpointing=True
    )
    fit.fit(module_of(small_problem))
    timer = Timer(timedelta(hours=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, [timer], max_steps=4).fit(
            module_of(small_problem), ckpt_path=str(keep.last_path)
        )
    assert timer.time_elapsed() < 60


# -- predict, load_from_checkpoint -----------------------------------------------------------------


def saved(problem: Problem, folder: Path, steps: int = 5000, **settings: Any) -> Path:
    keep = ee.SolverCheckpoint(folder / "checkpoints")
    fit = trainer(folder, [keep], max_steps=steps, enable_checkpointing=True)
    fit.fit(module_of(problem, **settings))
    return keep.last_path


def test_predict_returns_the_spectrum(small_problem: Problem, tmp_path: Path) -> None:
    module, fit = module_of(small_problem), trainer(tmp_path)
    with pytest.raises(InputError, match=r"predict: expected trainer.fit\(module\) before"):
        fit.predict(module)
    fit.fit(module)
    (spectrum,) = fit.predict(module) or []
    assert torch.equal(spectrum.eigenvectors, module.spectrum().eigenvectors)
    assert not spectrum.eigenvalues.is_inference()
    path = saved(small_problem, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning misses a callback of the fit
        (loaded,) = trainer(tmp_path).predict(module_of(small_problem), ckpt_path=str(path)) or []
    assert torch.equal(loaded.eigenvalues, spectrum.eigenvalues)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_module_is_loaded_with_its_spectrum(
    place: str, small_problem: Problem, tmp_path: Path
) -> None:
    path = saved(small_problem, tmp_path, k=2, miss_chance=1e-6)
    model, image, values = small_problem
    loaded = ee.EigendistortionModule.load_from_checkpoint(
        path if place == "file" else path.parent, model=model, image=image
    )
    spectrum = loaded.spectrum()
    assert spectrum.eigenindex.tolist() == [0, 1, 34, 35]
    torch.testing.assert_close(spectrum.eigenvalues, values[spectrum.eigenindex])
    assert loaded.solver.settings.miss_chance == 1e-6


def test_a_loaded_module_goes_on_to_the_same_bits(small_problem: Problem, tmp_path: Path) -> None:
    path = saved(small_problem, tmp_path, steps=6)
    model, image, _ = small_problem
    loaded = ee.EigendistortionModule.load_from_checkpoint(path, model=model, image=image)
    assert loaded.solver.num_products == 6
    whole = module_of(small_problem)
    for module in (loaded, whole):
        trainer(tmp_path).fit(module)
    assert torch.equal(loaded.spectrum().eigenvectors, whole.spectrum().eigenvectors)


def test_loading_without_the_problem_or_of_another_one_is_one_line(
    small_problem: Problem, tmp_path: Path
) -> None:
    path = saved(small_problem, tmp_path, steps=3, miss_chance=None)
    model, image, _ = small_problem
    load = ee.EigendistortionModule.load_from_checkpoint
    with pytest.raises(InputError, match=r"expected model=…, got none; .* neither model nor image"):
        load(path)
    with pytest.raises(InputError, match="expected image=…"):
        load(path, model=model)
    assert load(path, model=model, image=image).solver.settings.miss_chance is None
    with pytest.raises(InputError, match="expected pictures=…"):
        ee.AverageModule.load_from_checkpoint(path, model=model)
    with pytest.raises(CheckpointError, match="weights_sha256"):
        load(path, model=Quadratic(seed=9), image=image)
    with pytest.raises(CheckpointError):
        load(tmp_path / "nothing.ckpt", model=model, image=image)


# -- turns of several batches ----------------------------------------------------------------------


def test_a_mean_in_parts_counts_a_turn_a_product_and_resumes_in_between(
    model: torch.nn.Module, pictures: list[Tensor], tmp_path: Path
) -> None:
    def mean() -> ee.AverageModule:
        return ee.AverageModule(model, pictures, method="lanczos", tol=1e-8, parts=3)

    class Stop(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            trainer.should_stop = batch_idx == 3 * 4  # one part of the fifth product

    options: dict[str, Any] = {"precision": "64-true"}
    whole, fit = mean(), trainer(tmp_path, **options)
    fit.fit(whole)
    assert fit.global_step == whole.solver.num_products
    keep, broken = ee.SolverCheckpoint(tmp_path / "c"), mean()
    fit = trainer(tmp_path, [Stop(), keep], enable_checkpointing=True, **options)
    fit.fit(broken)
    assert fit.global_step == broken.solver.num_products == 4
    resumed = mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, **options).fit(resumed, ckpt_path=str(keep.last_path))
    assert torch.equal(resumed.spectrum().eigenvectors, whole.spectrum().eigenvectors)
    with pytest.raises(InputError, match="parts: expected 1 to 7"):
        ee.AverageModule(model, pictures, parts=8)


# -- the command line that Lightning makes of a module ---------------------------------------------

CONFIG = """
model:
  model:
    class_path: eigenexp.models.LinearNonlinear
  image:
    class_path: eigenexp.load_picture
    init_args:
      source: camera
      crop: [120, 220, 16, 16]
  method: lanczos
  k: 1
  which: top
  tol: 1.0e-3
trainer:
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
"""


def test_lightning_cli_solves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    (tmp_path / "solve.yaml").write_text(CONFIG)
    monkeypatch.setattr("sys.argv", ["solve", "fit", "--config", "solve.yaml", "--model.k", "2"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")  # hints on data loading
        module = LightningCLI(ee.EigendistortionModule).model
    assert module.solver.done
    assert len(module.spectrum()) == 2
