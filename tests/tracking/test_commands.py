"""``eigenexp sync`` and ``eigenexp resume`` against a real tracking server, in real processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from eigenexp.errors import CheckpointError, RunNotFoundError
from eigenexp.experiments.resuming import fetch_run
from eigenexp.runs.folder import list_runs
from eigenexp.spectrum import Spectrum
from eigenexp.tracking import Store, list_artifacts
from eigenexp.tracking.spool import find_spools
from tests.processes import LONG, SMALL, kill_after_a_checkpoint, only_run, run, start


def end_sender(folder: Path) -> None:
    """Kill the sender that outlives a run, as a reboot would."""
    (spool,) = find_spools(folder / "mlruns")
    for process in psutil.process_iter(["pid", "cmdline"]):
        if "eigenexp.tracking.sender" not in (process.info["cmdline"] or []):
            continue
        # It was started before it was told of whom; it holds the lock of what it sends.
        if any(Path(file.path) == spool.folder / "lock" for file in process.open_files()):
            os.kill(process.info["pid"], 9)
            process.wait(20)


def points(store: Store, run_id: str, key: str) -> list[int]:
    return sorted(p.step for p in store.client.get_metric_history(run_id, key))


@pytest.mark.slow
def test_sync_sends_what_a_server_missed(switch, tmp_path: Path) -> None:
    switch.shut()
    settings = [*SMALL, "logger=mlflow", "solver.tol=1e-3", "run_name=kept"]
    done = run(tmp_path, "fit", *settings, MLFLOW_TRACKING_URI=switch.uri)
    assert done.returncode == 0, done.stderr
    assert "offline-" in done.stdout
    end_sender(tmp_path)
    waits = run(tmp_path, "sync", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert waits.returncode == 1, waits.stdout
    assert "waits:" in waits.stdout
    switch.open()
    sent = run(tmp_path, "sync", only_run(tmp_path).run_id[:14])
    assert sent.returncode == 0, sent.stdout + sent.stderr
    (line,) = sent.stdout.splitlines()
    run_id = line.split()[0]
    assert line.endswith("sent")
    again = run(tmp_path, "sync")
    assert (again.returncode, again.stdout.strip()) == (0, "nothing waits")
    unknown = run(tmp_path, "sync", "nobody")
    assert unknown.returncode == 1
    assert "expected something unsent" in unknown.stderr
    store = Store(tmp_path / "mlruns", switch.uri)
    assert store.find_run(run_id).info.status == "FINISHED"
    steps = points(store, run_id, "worst_residual")
    assert steps
    assert len(set(steps)) == len(steps)
    names = list_artifacts(store, run_id)
    assert {"checkpoints/last/last.ckpt", "results/spectrum.safetensors",
            "results/picture.safetensors", "results/convergence.csv"} <= set(names)  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_where_only_the_server_is(server, tmp_path: Path) -> None:
    """Killed on one machine, continued on another that lacks the picture's file; bit for bit."""
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    for folder in (first, second, whole):
        folder.mkdir()
    values = np.random.default_rng(1).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(values).save(first / "photo.png")
    Image.fromarray(values).save(whole / "photo.png")
    settings = ["fit", "image=file", "image.source=photo.png", *LONG[1:], "trainer.max_steps=1200"]
    address = {"MLFLOW_TRACKING_URI": server.uri}
    process = start(first, *settings, "logger=mlflow", **address)
    kill_after_a_checkpoint(process, first, from_step=20)  # of steps 10, 20, …
    run_id = only_run(first).run_id
    store = Store(tmp_path / "look", server.uri)
    wait_for_status(store, run_id, "FAILED")

    resumed = run(second, "resume", run_id[:12], **address)
    assert resumed.returncode == 3, resumed.stderr
    assert f"fetching run {run_id} from {server.uri}" in resumed.stdout
    assert "the run's own copy is used" in resumed.stdout
    assert only_run(second).run_id == run_id
    unbroken = run(whole, *settings, "logger=none")
    assert unbroken.returncode == 3, unbroken.stderr
    a, b = (Spectrum.load(only_run(f).results / "spectrum.safetensors") for f in (second, whole))
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert torch.equal(a.eigenvalues, b.eigenvalues)
    assert a.num_products == b.num_products

    wait_for_status(store, run_id, "FINISHED")
    tags = store.find_run(run_id).data.tags
    assert tags["eigenexp.resume_count"] == "1"
    for key in ("worst_residual", "eigenvalue/0"):
        steps = points(store, run_id, key)
        assert len(set(steps)) == len(steps)
        assert steps[-1] == a.num_products

    # Back on the first machine it goes on from where the second one came; settings that changed
    # are told in tags, and another model is refused.
    more = run(first, "resume", run_id, "trainer.max_steps=1220", **address)
    assert more.returncode == 3, more.stderr
    assert "went on elsewhere, to step 1200" in more.stdout
    wait_for_status(store, run_id, "FINISHED")
    tags = store.find_run(run_id).data.tags
    assert tags["drift.trainer.max_steps"] == "1200 → 1220"
    steps = points(store, run_id, "worst_residual")
    assert len(set(steps)) == len(steps)
    assert steps[-1] > a.num_products
    other = run(second, "resume", run_id, "model.amplitude_ratio=2.5", **address)
    assert other.returncode == 1
    assert "model.output" in other.stderr
    assert "--force" in other.stderr
    assert "Traceback" not in other.stderr


def wait_for_status(store: Store, run_id: str, status: str) -> None:
    end = time.monotonic() + 90
    while store.find_run(run_id).info.status != status:
        assert time.monotonic() < end, store.find_run(run_id).info.status
        time.sleep(0.2)


def test_a_server_that_lost_the_checkpoint_says_so(server, tmp_path: Path) -> None:
    store = Store(tmp_path, server.uri)
    run_id = store.create_run("empty", "r")
    with pytest.raises(CheckpointError, match="expected a checkpoint among its artifacts"):
        fetch_run(store, run_id, tmp_path / "mlruns", print)
    assert list_runs(tmp_path / "mlruns") == []
    with pytest.raises(RunNotFoundError):
        fetch_run(store, "f" * 32, tmp_path / "mlruns", print)
    altered = tmp_path / "last.ckpt"
    altered.write_bytes(b"PK\x03\x04" + bytes(400))
    store.upload(run_id, altered, "checkpoints/last")
    with pytest.raises(CheckpointError, match="cut short"):
        fetch_run(store, run_id, tmp_path / "mlruns", print)
    assert list_runs(tmp_path / "mlruns") == []
