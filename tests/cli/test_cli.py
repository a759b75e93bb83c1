"""The command line as a person meets it: real processes, real SQLite store, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import eigenexp.experiments.picture as solving_module
from eigenexp.cli import main
from eigenexp.runs.folder import RunFolder, find_run, list_runs
from eigenexp.spectrum import Spectrum

SMALL = ["image.crop=[120,220,20,20]", "trainer.enable_progress_bar=false", "threads=1"]
LONG = [*SMALL, "solver=power", "solver.tol=1e-9", "callbacks.checkpoint_every=10"]
# Runs until it is stopped: its tolerance is out of reach.
ENDLESS = [
    *LONG,
    *("image.crop=[120,220,48,48]", "solver.tol=1e-14", "solver.k=4"),
    *("trainer.precision=64-true", "trainer.max_steps=-1"),
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eigenexp.cli", *arguments]


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("EIGENEXP_ROOT", None)
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **options,
    )


def only_run(folder: Path) -> RunFolder:
    (found,) = list_runs(folder / "mlruns")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One finished run with both loggers."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(folder, "fit", "experiment=demo", *SMALL, "+tags.kind=test")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def rows(output: str) -> list[str]:
    """Return the table's rows of pairs whose residual reached the tolerance."""
    return [line for line in output.splitlines() if re.search(r"  (converged|unverified) ", line)]


def test_fit_ends_with_table_picture_and_dashboard(finished: tuple[Path, str]) -> None:
    folder, output = finished
    header = next(line for line in output.splitlines() if "eigenvalue" in line)
    for word in ("index", "residual/λmax", "error bound", "status", "products"):
        assert word in header
    assert [line.split()[0] for line in rows(output)] == [
        "0",
        "1",
        "398",
        "399",
    ]
    picture = next(line.split()[-1] for line in output.splitlines() if line.startswith("picture"))
    assert Path(picture).read_bytes()[:4] == b"\x89PNG"
    assert "eigenexp ui" in output.splitlines()[-1]
    assert only_run(folder).read_record()["status"] == "FINISHED"


def test_fit_is_the_dense_solution(finished: tuple[Path, str]) -> None:
    import eigenexp as ee

    folder, _ = finished
    spectrum = Spectrum.load(only_run(folder).results / "spectrum.safetensors")
    picture = ee.load_picture("camera", crop=[120, 220, 20, 20], dtype=torch.float64)
    jacobian = ee.JacobianOperator(ee.models.OnOff().double(), picture.tensor).to_dense()
    values = torch.linalg.svdvals(jacobian).square()
    error = (spectrum.eigenvalues.double() - values[spectrum.eigenindex]).abs()
    assert float(error.max()) <= 2e-4 * float(values[0])


def test_mlflow_holds_metrics_params_tags_pictures_and_artifacts(
    finished: tuple[Path, str],
) -> None:
    from eigenexp.tracking import local_store

    folder, _ = finished
    run_id = only_run(folder).run_id
    client = local_store(folder / "mlruns").client
    data = client.get_run(run_id)
    assert data.info.status == "FINISHED"
    for name in ("worst_residual", "eigenvalue/0", "residual/-1", "products", "elapsed_seconds"):
        history = client.get_metric_history(run_id, name)
        steps = [point.step for point in history]
        assert len(steps) >= 3, name
        assert sorted(steps) == sorted(set(steps)), f"{name}: a step twice"
    assert "2" in (data.data.params.get("solver/k"), data.data.params.get("solver.k"))
    assert data.data.tags["kind"] == "test"
    assert data.data.tags["stop_reason"] in ("converged", "unverified")
    artifacts = {
        a.path
        for f in ("results", "checkpoints/last", "checkpoints/best", "images")
        for a in client.list_artifacts(run_id, f)
    }
    for name in (
        "results/spectrum.safetensors",
        "results/eigenvalues.csv",
        "results/distortions.png",
        "results/amplitude.json",
        "checkpoints/last/last.ckpt",
        "checkpoints/last/metadata.json",
        "checkpoints/best/metadata.json",
    ):
        assert name in artifacts
    assert any(name.startswith("images/") for name in artifacts)


def test_tensorboard_holds_the_same_run(finished: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = finished
    events = EventAccumulator(str(folder / "mlruns" / "tb" / only_run(folder).run_id))
    events.Reload()
    assert "worst_residual" in events.Tags()["scalars"]
    assert any(tag.startswith("distortion/") for tag in events.Tags()["images"])


def test_checkpoint_metadata_says_where_it_comes_from(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    metadata = json.loads((only_run(folder).checkpoints / "last.metadata.json").read_text())
    for key in (
        "schema_version",
        "versions",
        "model",
        "picture",
        "config",
        "step",
        "eigenvalues",
        "residuals",
        "file_sha256",
        "run_id",
    ):
        assert key in metadata
    assert {"eigenexp", "torch", "lightning", "mlflow", "python"} <= set(metadata["versions"])
    assert {"class", "weights_sha256", "output_sha256"} <= set(metadata["model"])


def test_show_prints_table_and_paths(finished: tuple[Path, str]) -> None:
    folder, output = finished
    run_id = only_run(folder).run_id
    shown = run(folder, "show", run_id[:8])
    assert shown.returncode == 0, shown.stderr
    assert rows(output)
    assert rows(shown.stdout) == rows(output)
    assert "distortions.png" in shown.stdout
    assert "picture camera, 20x20, crop [120, 220, 20, 20]" in shown.stdout
    assert "tol 0.0001" in shown.stdout
    assert run_id in run(folder, "show").stdout


def test_a_second_fit_lands_beside_the_first(in_tmp: Path) -> None:
    for _ in range(2):
        assert main(["fit", *SMALL, "logger=none", "solver.tol=1e-2"]) == 0
    assert len(list_runs(in_tmp / "mlruns")) == 2


def test_resume_after_max_steps_equals_the_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "solver=lanczos", "solver.tol=1e-6", "trainer.precision=64-true"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    monkeypatch.chdir(whole)
    assert main(["fit", *settings, "logger=none"]) == 0
    broken.mkdir()
    monkeypatch.chdir(broken)
    assert main(["fit", *settings, "logger=mlflow", "trainer.max_steps=17"]) == 3
    assert "not every pair is proven" in capsys.readouterr().out
    run_id = only_run(broken).run_id
    assert main(["resume", run_id, "trainer.max_steps=100000"]) == 0
    a = Spectrum.load(only_run(whole).results / "spectrum.safetensors")
    b = Spectrum.load(only_run(broken).results / "spectrum.safetensors")
    assert torch.equal(a.eigenvalues, b.eigenvalues)
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    with sqlite3.connect(broken / "mlruns" / "mlflow.db") as store:
        ids = store.execute("select run_uuid, status from runs").fetchall()
        doubled = store.execute(
            "select key, step, count(*) from metrics group by run_uuid, key, step "
            "having count(*) > 1"
        ).fetchall()
    assert ids == [(run_id, "FINISHED")]
    assert doubled == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not list(path.glob("mlruns/checkpoints/*/last.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_marks_the_run_and_says_so(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = start(tmp_path, "fit", *ENDLESS, "logger=mlflow")
    wait_for(tmp_path, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    found = only_run(tmp_path)
    assert found.read_record()["status"] == "KILLED"
    assert f"eigenexp resume {found.run_id}" in output
    assert (found.results / "spectrum.safetensors").is_file()
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]


def test_a_signal_during_set_up_marks_the_run_and_leaves_a_checkpoint(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = solving_module.build_trainer

    def build_trainer(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(solving_module, "build_trainer", build_trainer)
    assert main(["fit", *ENDLESS, "logger=none"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    found = only_run(in_tmp)
    record = found.read_record()
    assert (record["status"], record["stop_reason"]) == ("KILLED", "signal")
    assert json.loads((found.checkpoints / "last.metadata.json").read_text())["step"] == 1


def test_a_signal_after_the_end_does_not_undo_it(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = solving_module._stop_reason

    def stop_reason(*arguments: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(solving_module, "_stop_reason", stop_reason)
    assert main(["fit", *ENDLESS, "logger=mlflow", "trainer.max_steps=3"]) == 3
    assert only_run(in_tmp).read_record()["status"] == "FINISHED"


def test_max_time_saves_and_says_so_and_each_process_gets_it(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *ENDLESS, "trainer.max_time=00:00:00:02", "logger=csv"]) == 124
    assert "stopped at trainer.max_time; go on with: eigenexp resume" in capsys.readouterr().out
    found = only_run(in_tmp)
    record = found.read_record()
    assert (record["status"], record["stop_reason"]) == ("KILLED", "max_time")
    before = json.loads((found.checkpoints / "last.metadata.json").read_text())["step"]
    (table,) = in_tmp.glob("mlruns/csv/*/metrics.csv")
    content = table.read_text()
    assert main(["resume", "last"]) == 124
    assert table.read_text() == content
    assert len(list(in_tmp.glob("mlruns/csv/*/metrics.csv"))) == 2
    after = json.loads((found.checkpoints / "last.metadata.json").read_text())["step"]
    assert after > before + 3


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_whole(tmp_path: Path) -> None:
    from eigenexp.checkpoints.files import find_checkpoint
    from eigenexp.checkpoints.seals import verify_checkpoint

    root = tmp_path / "mlruns"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        process = start(tmp_path, "fit", *ENDLESS, "logger=none")
        wait_for(tmp_path, process)
        with contextlib.suppress(OSError), (root / "filler").open("wb", 0) as file:
            while file.write(bytes(4096)):
                pass
        worked = psutil.Process(process.pid)
        enough = worked.cpu_times().user + 0.5
        while worked.cpu_times().user < enough:  # it goes on
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "Traceback" not in errors
        last = errors.strip().splitlines()[-1]
        assert last.startswith("eigenexp: ")
        assert "free space" in last
        verify_checkpoint(find_checkpoint(only_run(tmp_path).checkpoints))
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=False)


def test_kill_minus_nine_then_resume_is_bit_identical(tmp_path: Path) -> None:
    settings = [*LONG, "logger=none", "callbacks.checkpoint_seconds=null"]
    process = start(tmp_path, "fit", *settings)
    wait_for(tmp_path, process)
    process.kill()
    process.communicate()
    last = only_run(tmp_path)
    saved = json.loads((last.checkpoints / "last.metadata.json").read_text())["step"]
    goal = saved + 40
    resumed = run(tmp_path, "resume", "last", f"trainer.max_steps={goal}")
    assert resumed.returncode == 3, resumed.stderr
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(whole, "fit", *settings, f"trainer.max_steps={goal}").returncode == 3
    a = Spectrum.load(last.results / "spectrum.safetensors")
    b = Spectrum.load(only_run(whole).results / "spectrum.safetensors")
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert torch.equal(a.eigenvalues, b.eigenvalues)


NAN = np.full((1, 1, 8, 8), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "image=file", "image.source=absent.png"], ["absent.png"]),
        (["fit", "image=file", "image.source=nan.npy"], ["NaN"]),
        (["fit", "image=file", "image.source=text.png"], ["text.png"]),
        (["fit", "image.source=camra"], ["camra", "camera"]),
        (["fit", "image.crop=[0,0,0,10]"], ["crop"]),
        (["fit", "image.crop=[500,500,64,64]"], ["crop"]),
        (["fit", "solver.k=500", *SMALL], ["k: expected 1 to n = 400"]),
        (["fit", "solver.method=magic", *SMALL], ["method", "lanczos"]),
        (["fit", "solver.which=sideways", *SMALL], ["which", "sideways"]),
        (["fit", "solver.kk=2"], ["solver.kk", "did you mean k?"]),
        (["fit", "model=custom", "model._target_=no.such.Model"], ["no.such.Model"]),
        (["fit", "model.layer=nowhere", *SMALL], ["layer", "OnOff"]),
        (["fit", "trainer.precision=12"], ["precision"]),
        (["fit", "trainer.accelerator=warp", *SMALL], ["warp"]),
        (["fit", "root=file/inside", *SMALL], ["root=…"]),
        (["fit", *SMALL, "threads=0"], ["threads", "expected 1 to 1024"]),
        (["fit", "experiment_name=''", *SMALL], ["experiment_name"]),
        (["fit", "image.source=a\x1b[31m"], ["image.source", "a\\x1b[31m"]),
        (["fit", "image=folder", "image.path=nowhere"], ["image.path", "there is no", "nowhere"]),
        (["fit", "image=folder", "image.path=fil"], ["did you mean file?"]),
        (["fit", "image.path=nowhere", "parallel=average"], ["image.path", "there is no"]),
        (["resume", "no-such-run"], ["no-such-run", "newest runs"]),
        (["show", "no-such-run"], ["no-such-run"]),
    ],
)
def test_a_mistake_is_one_line_and_a_non_zero_exit(
    arguments: list[str], words: list[str], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(in_tmp / "nan.npy", NAN)
    (in_tmp / "text.png").write_text("not a picture")
    (in_tmp / "file").write_text("")
    assert main([*arguments, *(["logger=none"] if arguments[0] == "fit" else [])]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1, errors
    assert errors[0].startswith("eigenexp: ")
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["image=folder", "image.path=nowhere"], []),
        (["experiment_name=''", *SMALL], []),
        (["solver.k=0", *SMALL], []),
        (["solver.tol=-1", *SMALL], []),
        (["solver=power", "+solver.warp=1", *SMALL], []),
        (["trainer.precision=bf16-mixed", *SMALL], []),
        (["trainer.accelerator=warp", *SMALL], []),
        (["image=folder", "image.path=camera", "image.channels=1", "solver.k=1"], []),
        (["image=folder", "image.path=camera", *SMALL, "solver.k=0"], []),
        (["image=folder", "image.path=[camera]", "parallel=average", *SMALL, "solver.k=0"], []),
        (["image=folder", "image.path=[camera]", "parallel=average", "trainer.devices=2"], []),
        (["callbacks.log_every=0", *SMALL], ["FAILED"]),
    ],
)
def test_a_mistake_leaves_no_run_that_seems_to_go_on(
    arguments: list[str], status: list[str], in_tmp: Path
) -> None:
    assert main(["fit", "logger=none", *arguments]) == 1
    assert [run.read_record()["status"] for run in list_runs(in_tmp / "mlruns")] == status


def test_a_mistake_shows_no_traceback_in_a_real_process(tmp_path: Path) -> None:
    done = run(tmp_path, "fit", "image.source=camra")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_fails_after_it_began_is_marked_failed(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = ["model=custom", "model._target_=torch.nn.Threshold"]
    flat += ["+model.threshold=2", "+model.value=0"]
    assert main(["fit", *flat, "logger=mlflow", *SMALL]) == 1
    assert "zero Jacobian" in capsys.readouterr().err
    assert only_run(in_tmp).read_record()["status"] == "FAILED"
    with sqlite3.connect(in_tmp / "mlruns" / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]


@pytest.mark.parametrize("record", ["", "[1]", "{}"])
def test_a_damaged_record_hides_nothing(
    record: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *ENDLESS, "logger=none", "trainer.max_steps=3"]) == 3
    found = only_run(in_tmp)
    found.record_path.write_text(record)
    capsys.readouterr()
    assert main(["show"]) == 0
    assert found.run_id in capsys.readouterr().out
    assert main(["resume", "last"]) == 3
    assert found.read_record()["status"] == "FINISHED"


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *ENDLESS, "logger=mlflow", "trainer.max_steps=3"]) == 3
    found = only_run(in_tmp)

    def look() -> tuple[Any, ...]:
        with sqlite3.connect(in_tmp / "mlruns" / "mlflow.db") as store:
            tags = set(store.execute("select key, value from tags").fetchall())
            return (
                found.record_path.read_text(),
                store.execute("select * from runs").fetchall(),
                tags,
            )

    before = look()
    capsys.readouterr()
    assert main(["resume", "last", "image.crop=[0,0,48,48]"]) == 1
    assert "does not fit" in capsys.readouterr().err
    assert look() == before
    assert main(["resume", "last", "trainer.max_steps=5"]) == 3
    after = look()
    assert ("eigenexp.resume_count", "1") in after[2]
    assert found.read_record()["status"] == "FINISHED"


def test_a_saved_target_outside_the_trusted_packages_is_not_built(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SMALL, "logger=none", "trainer.max_steps=3"]) == 3
    checkpoint = only_run(in_tmp).checkpoints / "last.ckpt"
    from eigenexp.checkpoints.files import load_checkpoint, save_checkpoint

    saved = load_checkpoint(checkpoint)
    trap = {"_target_": "os.system", "command": "touch executed"}
    saved["eigenexp"]["metadata"]["config"]["model"] = trap
    save_checkpoint(saved, checkpoint)
    assert main(["resume", "last"]) == 1
    assert "--trust" in capsys.readouterr().err
    assert not (in_tmp / "executed").exists()


def test_help_is_quick_and_lists_the_groups(tmp_path: Path) -> None:
    done = run(tmp_path, "fit", "--help")
    assert done.returncode == 0
    for word in ("model=", "onoff", "image=", "camera", "solver.tol", "trainer.precision"):
        assert word in done.stdout
    heavy = (
        "import contextlib, sys; from eigenexp.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['fit', '--help'])\n"
        "print([m for m in ('torch', 'mlflow', 'lightning', 'hydra') if m in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert seen.stdout.splitlines()[-1] == "[]"


def test_runs_are_named_by_id_prefix_last_or_path(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    root, run_id = folder / "mlruns", only_run(folder).run_id
    for name in (run_id, run_id[:6], "last"):
        assert find_run(name, root).run_id == run_id
    assert find_run(str(root / "checkpoints" / run_id / "last.ckpt"), root).run_id == run_id
