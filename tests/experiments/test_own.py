"""A person's own classes: models, loggers, callbacks, other arguments of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from safetensors.torch import save_file

from eigenexp.checkpoints import ProvenanceWarning, seals
from eigenexp.errors import ConfigError
from eigenexp.experiments.config import compose_config, override_config, plain_config
from eigenexp.experiments.experiment import fit, resume
from eigenexp.experiments.targets import build_model
from eigenexp.models.weights import weights_note
from eigenexp.report import load_runs, write_report
from eigenexp.runs.folder import list_runs
from eigenexp.spectrum import Spectrum

SMALL = [
    *("model=ln", "image.crop=[120,220,16,16]", "threads=1", "logger=none", "solver.tol=1e-2"),
    *("trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
]


class Lines(Logger):
    """A logger of a person's own: a line of a file for every call."""

    name = "lines"
    version = "0"

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self._add("settings", params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._add(step, sorted(metrics))

    def _add(self, *words: Any) -> None:
        with self.file.open("a") as file:
            print(*words, file=file)


class Count(L.Callback):
    """A callback of a person's own."""

    def __init__(self, file: str, first: int = 0) -> None:
        self.file, self.turns = Path(file), first

    def on_train_batch_end(self, *_: Any) -> None:
        self.turns += 1

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.file.write_text(f"{self.turns} {trainer.log_every_n_steps}")


OWN = [
    "+logger.mine._target_=tests.experiments.test_own.Lines",
    "+logger.mine.file=lines.txt",
    "+callbacks.mine._target_=tests.experiments.test_own.Count",
    "+callbacks.mine.file=count.txt",
    "+callbacks.mine.first=100",
    "+trainer.log_every_n_steps=7",
]


def test_own_logger_callback_and_argument_take_part_and_need_trust_to_go_on(in_tmp: Path) -> None:
    result = fit(compose_config([*SMALL, *OWN]), say=lambda _: None)
    assert (in_tmp / "count.txt").read_text() == f"{100 + result.spectrum.num_products} 7"
    lines = (in_tmp / "lines.txt").read_text()
    assert lines.startswith("settings")
    assert "worst_residual" in lines
    (run,) = list_runs(in_tmp / "mlruns")
    assert run.read_record()["config"]["callbacks"]["mine"]["first"] == 100
    with pytest.raises(ConfigError, match=r"logger: .*test_own\.Lines.*--trust"):
        resume("last", root="mlruns", say=lambda _: None)
    assert (in_tmp / "lines.txt").read_text() == lines
    more = ["solver.tol=1e-3"]
    with pytest.warns(ProvenanceWarning, match=r"config\.solver\.tol: .* on purpose"):
        resume("last", more, root="mlruns", trust=True, say=lambda _: None)
    assert len((in_tmp / "lines.txt").read_text()) > len(lines)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches"]),
        (["+trainer.gradient_clip_val=1"], ["trainer.gradient_clip_val"]),
        (["+trainer.log_every_n_stepz=2"], ["did you mean log_every_n_steps?"]),
        (["+callbacks.mine=3"], ["callbacks.mine", "no such key", "_target_"]),
        (["callbacks.log_evry=3"], ["did you mean log_every?"]),
        (["+solver.warp=3"], ["solver.warp", "no such key"]),
    ],
)
def test_what_nobody_takes_is_told(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ConfigError):
        override_config(plain_config(compose_config()), overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+logger.mine._target_=no.such.Logger"], "logger.mine._target_"),
        (["+callbacks.mine._target_=torch.nn.Identity"], "expected a Lightning Callback"),
        (["+callbacks.mine._target_=tests.experiments.test_own.Count"], "arguments"),
    ],
)
def test_a_wrong_class_leaves_no_run(overrides: list[str], words: str, in_tmp: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(compose_config([*SMALL, *overrides]), say=lambda _: None)
    assert list_runs(in_tmp / "mlruns") == []


def test_a_metric_that_nobody_logs_is_told(in_tmp: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = "+callbacks.mine._target_=lightning.pytorch.callbacks"
    given = [*SMALL, f"{kind}.EarlyStopping", "+callbacks.mine.monitor=nothing"]
    with pytest.raises(ConfigError, match=r"nothing.*worst_residual") as caught:
        fit(compose_config([*given, "+trainer.limit_train_batches=2"]), say=lambda _: None)
    assert "\n" not in str(caught.value)
    (run,) = list_runs(in_tmp / "mlruns")
    assert run.read_record()["status"] == "FAILED"
    given = [*SMALL, f"{kind}.ModelCheckpoint", "+callbacks.mine.monitor=nothing"]
    with caplog.at_level("WARNING", "eigenexp.experiments.session"):
        fit(compose_config([*given, "+callbacks.mine.every_n_train_steps=1"]), say=lambda _: None)
    assert "monitor='nothing') saved nothing: expected one of" in caplog.text
    assert "worst_residual" in caplog.text


# -- a model of one's own --------------------------------------------------------------------------

NET = """
import torch

class MyNet(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.filters = torch.nn.Conv2d(1, width, 3, padding=1)

    def forward(self, picture):
        return self.filters(picture).tanh()
"""


@pytest.fixture
def net(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (in_tmp / "mynet.py").write_text(NET)
    package = in_tmp / "netpackage"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NET)
    (package / "lost.py").write_text("from torch import no_such_name\n")
    (in_tmp / "broken.py").write_text("class MyNet(:\n")
    return in_tmp


def test_a_model_by_its_file_with_arguments_and_weights(net: Path) -> None:
    settings = compose_config(["model=./mynet.py:MyNet", "model.width=4"])
    model = build_model(settings.model)
    assert model.filters.out_channels == 4
    state = {key: torch.full_like(value, 0.5) for key, value in model.state_dict().items()}
    torch.save(state, net / "w.pt")
    save_file(state, net / "w.safetensors")
    for file in ("w.pt", "w.safetensors"):
        loaded = build_model({**settings.model, "weights": file})
        assert all(bool((value == 0.5).all()) for value in loaded.state_dict().values())
    other = compose_config(["model=netpackage.nets.MyNet", "model.width=3"])
    assert build_model(other.model).filters.out_channels == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=./mynet.py:MyNett"], "it has MyNet"),
        (["model=./absent.py:MyNet"], "expected a Python file"),
        (["model=./broken.py:MyNet"], "SyntaxError in .*broken.py, line 1"),
        (["model=netpackage.lost.MyNet"], "ImportError: cannot import name 'no_such_name'"),
        (["model=./mynet.py:MyNet", "model.wide=3"], "wide"),
        (["model=./mynet.py:MyNet", "model.weights=absent.pt"], "expected a file"),
        (["model=./mynet.py:MyNet", "model.weights=mynet.py"], "expected the state of a MyNet"),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line(
    net: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build_model(compose_config(overrides).model)
    assert "\n" not in str(caught.value)


def test_random_weights_are_said_and_the_same_again(net: Path) -> None:
    settings = compose_config([*SMALL[1:], "model=./mynet.py:MyNet", "image.crop=[120,220,8,8]"])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(settings.model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first.filters.weight, build_model(settings.model).filters.weight)
    said: list[str] = []
    result = fit(settings, say=said.append)
    told = "MyNet drew random numbers (seed 0)"
    assert any(told in line for line in said)
    assert told in str(result.spectrum)
    (run,) = list_runs(net / "mlruns")
    saved = Spectrum.load(run.results / "spectrum.safetensors")
    assert told in saved.metadata["weights"]
    assert told in str(saved)
    page = write_report(load_runs("last", net / "mlruns"), net / "report.html")
    assert told in page.read_text()
    with pytest.warns(ProvenanceWarning, match="on purpose"):
        again = resume("last", ["solver.tol=1e-3"], root="mlruns", trust=True, say=lambda _: None)
    assert again.spectrum.notes.count(saved.metadata["weights"]) == 1
    torch.save(first.state_dict(), net / "w.pt")
    known = compose_config([*SMALL[1:], "model=./mynet.py:MyNet", "model.weights=w.pt"])
    assert weights_note(build_model(known.model)) == ""


def test_weights_execute_nothing(net: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (net / "executed",)

    torch.save({"filters.weight": Payload()}, net / "w.pt")
    with pytest.raises(ConfigError, match="expected the state of a MyNet"):
        build_model(compose_config(["model=./mynet.py:MyNet", "model.weights=w.pt"]).model)
    assert not (net / "executed").exists()


# -- the checkpoint of a resume --------------------------------------------------------------------


def test_a_resume_reads_its_checkpoint_once(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fit(compose_config([*SMALL, "trainer.max_steps=3"]), say=lambda _: None)
    counts = {"hashed": 0, "loaded": 0}
    load, fault = torch.load, seals.archive_fault

    def loading(*arguments: Any, **options: Any) -> Any:
        counts["loaded"] += 1
        return load(*arguments, **options)

    def hashing(*arguments: Any) -> Any:
        counts["hashed"] += 1
        return fault(*arguments)

    monkeypatch.setattr(torch, "load", loading)
    monkeypatch.setattr(seals, "archive_fault", hashing)
    with pytest.warns(ProvenanceWarning, match=r"config\.trainer\.max_steps: .* on purpose"):
        result = resume("last", ["trainer.max_steps=1000"], root="mlruns", say=lambda _: None)
    assert result.status == "FINISHED"
    assert counts == {"hashed": 1, "loaded": 1}
