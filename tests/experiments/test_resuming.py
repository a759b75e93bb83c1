"""Going on with a run: the same command again, another machine, another precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

import eigenexp as ee
from eigenexp.checkpoints.compatibility import ProvenanceWarning
from eigenexp.checkpoints.files import METADATA_KEY, find_checkpoint, metadata_path, save_checkpoint
from eigenexp.errors import (
    CheckpointError,
    ConfigError,
    EigenexpError,
    ImageError,
    RunNotFoundError,
)
from eigenexp.experiments.building import build_picture
from eigenexp.experiments.config import FitConfig, compose_config, plain_config
from eigenexp.experiments.experiment import fit, resume
from eigenexp.experiments.resuming import (
    claim_unfinished,
    refresh_run,
    resumed_picture,
    saved_settings,
    settings_hash,
)
from eigenexp.pictures.picture import load_picture
from eigenexp.pictures.saving import save_picture
from eigenexp.runs.folder import RunFolder, list_runs
from eigenexp.spectrum import Spectrum, StopReason
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.tracking import local_store
from tests.processes import LONG, kill_after_a_checkpoint, only_run, run, start

# -- the same command again ------------------------------------------------------------------------


def settings(*overrides: str) -> FitConfig:
    return compose_config(overrides)


def hash_of(*overrides: str) -> str:
    return settings_hash(plain_config(settings(*overrides)))


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("root=elsewhere", True),
        ("threads=3", True),
        ("resume=auto", True),
        ("logger=none", True),
        ("callbacks.log_every=7", True),
        ("trainer.max_time=00:01:00:00", True),
        ("trainer.enable_progress_bar=false", True),
        ("trainer.max_steps=7", False),
        ("trainer.precision=64-true", False),
        ("solver.k=3", False),
        ("solver.tol=1e-3", False),
        ("model=lg", False),
        ("model.kernel_size=21", False),
        ("image=coffee", False),
        ("run_name=second", False),
        ("+tags.kind=test", False),
    ],
)
def test_what_makes_two_commands_the_same(override: str, is_same: bool) -> None:
    assert (hash_of() == hash_of(override)) is is_same


def test_the_hash_survives_the_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "a")
    chosen = plain_config(settings("solver.tol=3e-7", "image.crop=[1,2,30,40]"))
    folder.write_record(config=chosen)
    assert settings_hash(folder.read_record()["config"]) == settings_hash(chosen)


def make_run(root: Path, name: str, status: str = "RUNNING", reason: str = "") -> RunFolder:
    folder = RunFolder(root, name)
    folder.write_record(config=plain_config(settings()), status=status, stop_reason=reason)
    save_checkpoint({"global_step": 3}, folder.checkpoints / "last.ckpt")
    return folder


@pytest.mark.parametrize(
    ("status", "reason", "goes_on"),
    [
        ("RUNNING", "", True),
        ("KILLED", "signal", True),
        ("FAILED", "failed: OSError", True),
        ("FINISHED", "max_time", True),
        ("FINISHED", "converged", False),
        ("FINISHED", "max_steps", False),
        ("FINISHED", "max_products", False),
    ],
)
def test_which_runs_are_unfinished(tmp_path: Path, status: str, reason: str, goes_on: bool) -> None:
    folder = make_run(tmp_path, "a", status, reason)
    with claim_unfinished(settings("resume=auto"), tmp_path) as claimed:
        assert (claimed is not None) is goes_on
        if claimed is not None:
            assert (claimed.run, claimed.source) == (folder, folder.checkpoints / "last.ckpt")
            assert claimed.checkpoint is not None
            assert claimed.checkpoint.content["global_step"] == 3


def test_a_run_in_work_is_passed_over_and_cannot_be_taken(tmp_path: Path) -> None:
    older, newer = make_run(tmp_path, "older"), make_run(tmp_path, "newer")
    with claim_unfinished(settings(), tmp_path) as first:
        assert first is not None
        assert first.run == newer
        with claim_unfinished(settings(), tmp_path) as second:
            assert second is not None
            assert second.run == older
            with claim_unfinished(settings(), tmp_path) as third:
                assert third is None
        with pytest.raises(CheckpointError, match="another process is solving"), newer.hold():
            pass
    with newer.hold():
        pass


def test_runs_without_a_whole_checkpoint_are_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a")
    for path in folder.checkpoints.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-40])
    with (
        pytest.warns(UserWarning, match="cut short"),
        claim_unfinished(settings(), tmp_path) as claimed,
    ):
        assert claimed is None


def test_a_run_that_ended_before_its_first_checkpoint_is_taken_up(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "FAILED", "died")
    for path in folder.checkpoints.glob("*.ckpt"):
        path.unlink()
    with claim_unfinished(settings(), tmp_path) as claimed:
        assert claimed is not None
        assert (claimed.run, claimed.checkpoint) == (folder, None)


PLAIN = ["image.crop=[120,220,16,16]", "model=lg", "logger=none", "solver.tol=1e-2",
         "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]  # fmt: skip


def begun(root: Path, *overrides: str) -> tuple[RunFolder, FitConfig]:
    """A run that was killed before its first checkpoint."""
    chosen = settings(*PLAIN, f"root={root}", "resume=auto", *overrides)
    folder = RunFolder(root, "abc123")
    picture = build_picture(chosen, "float32")
    folder.write_record(config=plain_config(chosen), status="RUNNING", picture=picture.record)
    return folder, chosen


def test_such_a_run_begins_again_by_the_same_command_and_by_resume(tmp_path: Path) -> None:
    folder, chosen = begun(tmp_path)
    said: list[str] = []
    assert fit(chosen, say=said.append).run_id == folder.run_id
    assert f"going on with the unfinished run {folder.run_id}, from its beginning" in said
    assert folder.read_record()["status"] == "FINISHED"
    folder, _ = begun(tmp_path / "second")
    result = resume("abc1", root=tmp_path / "second", say=said.append)
    assert (result.run_id, result.status) == (folder.run_id, "FINISHED")
    assert said.count(f"run {folder.run_id} has no checkpoint yet: it begins again") == 1
    assert len(list_runs(tmp_path / "second")) == 1


def test_such_a_run_does_not_go_on_with_another_picture(tmp_path: Path) -> None:
    folder, chosen = begun(tmp_path)
    record = folder.read_record()
    folder.write_record(picture={**record["picture"], "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="expected the picture that it began with"):
        resume("abc1", root=tmp_path, say=lambda _: None)
    said: list[str] = []
    assert fit(chosen, say=said.append).run_id != folder.run_id
    assert f"run {folder.run_id} began with another picture; a new one begins" in said


def test_what_a_run_did_not_come_to_in_its_last_stage_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died behind its last checkpoint, at its last step, before its results."""
    from eigenexp.callbacks import ResultFiles

    chosen = settings(
        *PLAIN, "solver=power", "solver.tol=1e-9", "trainer.max_steps=10", f"root={tmp_path}",
        "callbacks.checkpoint_every=10", "callbacks.checkpoint_share=null", "resume=auto",
        "logger=csv",
    )  # fmt: skip

    def die(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(ResultFiles, "write", die)
        with pytest.raises(ZeroDivisionError):
            fit(chosen, say=lambda _: None)
    (folder,) = list_runs(tmp_path)
    assert not (folder.results / "spectrum.safetensors").exists()
    assert fit(chosen, say=lambda _: None).run_id == folder.run_id
    made = {path.name: path.stat().st_mtime_ns for path in folder.results.iterdir()}
    assert {"spectrum.safetensors", "distortions.png", "convergence.csv"} <= set(made)
    # Once: a run that is over writes nothing when it is resumed.
    resume(folder.run_id, root=tmp_path, say=lambda _: None)
    assert made == {path.name: path.stat().st_mtime_ns for path in folder.results.iterdir()}


class Sulking(torch.nn.Module):
    """Answers while its derivatives are looked for, and not any more when it is solved."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.answers:
            raise ZeroDivisionError("sulks")
        return x.square().flatten(1)


def test_a_models_own_error_is_recorded_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eigenexp.callbacks import GracefulStop
    from eigenexp.experiments import picture as runs

    model = Sulking()
    monkeypatch.setattr(runs, "build_model", lambda *_, **__: model)
    # From the first signal handler on, which is set when the fit begins.
    monkeypatch.setattr(GracefulStop, "on_train_start", lambda *_: setattr(model, "answers", False))
    chosen = settings(*PLAIN, f"root={tmp_path}", "operator.route=forward-mode")
    with pytest.raises(EigenexpError, match="sulks"):
        fit(chosen, say=lambda _: None)
    (folder,) = list_runs(tmp_path)
    record = folder.read_record()
    assert record["stop_reason"] == "failed: ZeroDivisionError"
    assert "sulks" in record["error"]


@pytest.mark.slow
def test_the_same_command_after_kill_minus_nine_ends_bit_identically(tmp_path: Path) -> None:
    chosen = ["fit", *LONG, "logger=none", "trainer.max_steps=250", "resume=auto"]
    process = start(tmp_path, *chosen)
    kill_after_a_checkpoint(process, tmp_path)
    killed = only_run(tmp_path)
    assert killed.read_record()["status"] == "FAILED"
    again = run(tmp_path, *chosen)
    assert again.returncode == 3, again.stderr
    assert f"going on with the unfinished run {killed.run_id}" in again.stdout
    assert only_run(tmp_path).read_record()["status"] == "FINISHED"
    whole = tmp_path / "whole"
    whole.mkdir()
    unbroken = run(whole, *chosen)
    assert unbroken.returncode == 3, unbroken.stderr
    assert "no unfinished run of these settings" in unbroken.stdout
    a, b = (Spectrum.load(only_run(f).results / "spectrum.safetensors") for f in (tmp_path, whole))
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert torch.equal(a.eigenvalues, b.eigenvalues)
    assert torch.equal(a.residuals, b.residuals)


def test_a_wrong_word_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume: expected never or auto, got 'maybe'"):
        fit(settings("resume=maybe", f"root={tmp_path}"))


# -- the picture -----------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> tuple[RunFolder, FitConfig, dict[str, Any], Path]:
    """A run on a picture file: folder, settings, metadata, the file."""
    file = tmp_path / "photo.png"
    values = np.random.default_rng(0).integers(0, 256, (24, 30), dtype=np.uint8)
    Image.fromarray(values).save(file)
    chosen = settings("image=file", f"image.source={file}", "image.resize=16")
    picture = build_picture(chosen, "float32")
    folder = RunFolder(tmp_path / "mlruns", "a")
    folder.results.mkdir(parents=True)
    save_picture(picture, folder.results / "picture.safetensors")
    return folder, chosen, {"picture": picture.record}, file


def test_a_missing_source_is_replaced_by_the_runs_own_copy(photo) -> None:
    folder, chosen, metadata, file = photo
    said: list[str] = []
    expected = resumed_picture(folder, chosen, metadata, said.append)
    assert said == []
    file.unlink()
    picture = resumed_picture(folder, chosen, metadata, said.append)
    assert picture.tensor.equal(expected.tensor)
    assert "cannot be read here" in said[0]
    (folder.results / "picture.safetensors").unlink()
    with pytest.raises(ImageError, match="photo"):
        resumed_picture(folder, chosen, metadata)


def test_another_picture_under_the_same_name_is_not_taken_for_it(photo) -> None:
    folder, chosen, metadata, file = photo
    Image.fromarray(np.zeros((24, 30), dtype=np.uint8)).save(file)
    picture = resumed_picture(folder, chosen, metadata)
    assert picture.record["sha256"] != metadata["picture"]["sha256"]  # the checkpoint refuses it


def test_a_copy_that_is_not_the_runs_is_refused(photo) -> None:
    folder, chosen, metadata, file = photo
    file.unlink()
    save_picture(load_picture("camera", crop=16), folder.results / "picture.safetensors")
    with pytest.raises(ImageError, match="belongs to another run"):
        resumed_picture(folder, chosen, metadata, print)


def test_a_picture_resized_with_other_rounding_is_the_runs_own(photo) -> None:
    folder, chosen, metadata, _ = photo
    rounded = build_picture(chosen, "float32")
    tensor = rounded.tensor.nextafter(torch.ones(()))
    copied = copy.deepcopy(metadata)
    save_picture(
        ee.Picture(tensor, "photo", rounded.record), folder.results / "picture.safetensors"
    )
    copied["picture"]["sha256"] = tensor_sha256(tensor)
    assert resumed_picture(folder, chosen, copied).tensor.equal(tensor)


# -- another precision -----------------------------------------------------------------------------


def solve(
    folder: Path, precision: str, checkpoint: Path | None = None, **options: Any
) -> ee.EigendistortionModule:
    picture = ee.load_picture("camera", crop=[120, 220, 16, 16])
    model = options.pop("model", None) or ee.models.OnOff()
    module = ee.EigendistortionModule(model, picture, **{"tol": 1e-3, **options})
    if checkpoint is not None:
        module.intended_changes += ("dtype",)
    trainer = L.Trainer(
        max_steps=2000,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[ee.ConvergenceStopping(), ee.SolverCheckpoint(folder)],
    )
    trainer.fit(module, ckpt_path=None if checkpoint is None else str(checkpoint))
    return module


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_double_precision_goes_on_from_the_vectors_of_single(tmp_path: Path) -> None:
    before = solve(tmp_path / "single", "32-true")
    used = before.solver.num_products
    with pytest.warns(ProvenanceWarning) as told:
        after = solve(tmp_path / "double", "64-true", tmp_path / "single" / "last.ckpt", tol=1e-9)
    fields = {str(warning.message).partition(":")[0] for warning in told}
    assert {"dtype", "model.output"} <= fields
    assert "model.weights_sha256" not in fields
    start = after.solver.start
    assert start is not None
    found = before.solver.result().eigenvectors.flatten(1).mT.double()
    assert torch.equal(start[:, : found.shape[1]], found)
    assert after.solver.num_products > used
    spectrum = after.spectrum()
    assert spectrum.eigenvalues.dtype == torch.float64
    jacobian = torch.func.jacrev(after.model)(after.image).reshape(-1, 256)
    exact = torch.linalg.svdvals(jacobian).square()
    np.testing.assert_allclose(spectrum.eigenvalues[0], exact[0], rtol=1e-9)
    np.testing.assert_allclose(spectrum.eigenvalues[-1], exact[-1], atol=1e-9 * float(exact[0]))


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.compatibility.ProvenanceWarning")
def test_a_bfloat16_network_goes_on_in_double_as_it_starts_there(tmp_path: Path) -> None:
    options = {
        "which": "top",
        "method": "lanczos",
        "operator_options": {"model_dtype": torch.bfloat16},
    }
    solve(tmp_path / "single", "32-true", tol=1e-1, **options)
    checkpoint = tmp_path / "single" / "last.ckpt"
    after = solve(tmp_path / "on", "64-true", checkpoint, tol=1e-4, **options)
    fresh = solve(tmp_path / "fresh", "64-true", tol=1e-4, **options)
    for module in (after, fresh):
        assert module.solver.dtype == torch.float64
        assert module.solver.eps == module.operator.product_eps > 1e-4
        assert module.solver.stop_reason is StopReason.FLOOR
        with pytest.warns(UserWarning, match="rounding floor") as told:
            module.spectrum()
        assert not any("solve in float64" in str(warning.message) for warning in told)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.compatibility.ProvenanceWarning")
def test_another_model_in_another_precision_is_still_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 2, 3)
    solve(tmp_path / "single", "32-true", model=model)
    checkpoint = tmp_path / "single" / "last.ckpt"
    with pytest.raises(CheckpointError, match=r"model\.weights_sha256.*model\.output"):
        solve(tmp_path / "double", "64-true", checkpoint, model=torch.nn.Conv2d(1, 2, 3))
    solve(tmp_path / "double", "64-true", checkpoint, model=model)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_a_precision_nobody_asked_to_change_is_refused(tmp_path: Path) -> None:
    solve(tmp_path / "single", "32-true")
    picture = ee.load_picture("camera", crop=[120, 220, 16, 16])
    module = ee.EigendistortionModule(ee.models.OnOff(), picture, tol=1e-3)
    trainer = L.Trainer(precision="64-true", logger=False, enable_progress_bar=False,
                        enable_model_summary=False, accelerator="cpu",
                        default_root_dir=tmp_path)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"dtype: the checkpoint has torch\.float32"):
        trainer.fit(module, ckpt_path=str(tmp_path / "single" / "last.ckpt"))


# -- what a saved configuration may say ------------------------------------------------------------


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x ${oc.env:HOME} y", "a\\${X}", "dol${X}lar"])
def test_what_looks_like_a_reference_in_a_saved_configuration_is_text(text: str) -> None:
    saved = plain_config(settings())
    tags = {"a": text, "b": "c"}
    read = saved_settings({**saved, "run_name": text, "tags": tags, "image": {"source": text}})
    assert (read.run_name, read.tags, read.image.source) == (text, tags, text)
    model = {"_target_": "torch.nn.Identity", "a": [{"b": text}]}
    assert saved_settings({**saved, "model": model}).model == model


# -- a run that went on elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "fetched", "told"),
    [
        ('{"step": 9}', True, "went on elsewhere, to step 9"),
        ('{"step": 3}', False, ""),
        ('{"step": 2}', False, ""),
        ('{"step": "9"}', False, ""),
        ("[]", False, "is not used"),
        ("[" * 100_000, False, "is not used"),
        (None, False, ""),
    ],
)
def test_the_newer_checkpoint_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, fetched: bool, told: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    folder = make_run(tmp_path, "a")
    got: list[str] = []

    def artifact(store: Any, run_id: str, path: str, destination: Path) -> Path:
        if answer is None:
            raise RunNotFoundError("gone")
        (destination / "metadata.json").write_text(answer)
        return destination / "metadata.json"

    monkeypatch.setattr("eigenexp.experiments.resuming.download_artifact", artifact)
    monkeypatch.setattr(
        "eigenexp.experiments.resuming.download_checkpoint", lambda *a: got.append(a[1])
    )
    said: list[str] = []
    refresh_run(folder, said.append)
    assert bool(got) is fetched
    assert told in " ".join(said)
    assert bool(said) is bool(told)


def test_the_local_stores_copy_is_used_where_no_checkpoint_here_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = local_store(tmp_path)
    folder = make_run(tmp_path, store.create_run("e"))
    last = folder.checkpoints / "last.ckpt"
    facts = {"metadata": {"schema_version": 1}}
    save_checkpoint({"global_step": 3, METADATA_KEY: facts}, last)
    (tmp_path / "metadata.json").write_bytes(metadata_path(last).read_bytes())
    for path in (last, tmp_path / "metadata.json"):
        store.upload(folder.run_id, path, "checkpoints/last")
    said: list[str] = []
    refresh_run(folder, said.append)
    assert said == []
    for path in folder.checkpoints.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:100])
    refresh_run(folder, said.append)
    assert "no whole checkpoint here" in said[0]
    assert find_checkpoint(folder.checkpoints) == folder.checkpoints / "last.ckpt"
