"""The logger in whole processes: its cost, and what survives kills, resumes and dead stores."""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from torch.utils.data import DataLoader

from eigenexp.checkpoints.files import load_checkpoint, save_checkpoint
from eigenexp.errors import CheckpointError, RunNotFoundError, TrackingError
from eigenexp.tracking import (
    Store,
    download_artifact,
    download_checkpoint,
    list_artifacts,
    sync,
)
from eigenexp.tracking.mlflow_logger import MLflowLogger
from eigenexp.tracking.spool import find_spools
from tests.tracking.conftest import history

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def make_logger(root):
    made = []

    def make(**settings) -> MLflowLogger:
        made.append(MLflowLogger("e", root=root, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close(0.0)
        process = each.sender
        if process.poll() is None:
            process.kill()
        process.wait()


def checkpoint(folder: Path, step: int) -> Path:
    save_checkpoint({"global_step": step}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_whole_run(make_logger, store, tmp_path):
    logger = make_logger(run_name="name", tags={"model": "onoff"})
    assert (logger.name, logger.save_dir) == ("e", str(store.root))
    logger.log_hyperparams({"solver": {"k": 2, "tol": 1e-4}, "none": None, "list": [1, 2]})
    logger.log_tags({"note": "<script>"})
    for step in range(30):
        logger.log_metrics({"a": step, "b": np.float32(0.5)}, step)
    logger.log_image("distortion/0", np.zeros((8, 8), np.uint8), 5)
    for step in (10, 20):
        logger.log_checkpoint_files(checkpoint(tmp_path, step), "checkpoints/last")
    (tmp_path / "table.csv").write_text("x")
    logger.log_artifact(tmp_path / "table.csv", "results")
    logger.finalize("success")
    run_id = logger.version
    assert logger.close()
    assert logger.version == run_id
    run = store.find_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "name"
    assert run.data.params == {
        "solver.k": "2", "solver.tol": "0.0001", "none": "None", "list": "[1, 2]",
    }  # fmt: skip
    assert run.data.tags["model"] == "onoff"
    assert run.data.tags["note"] == "<script>"
    assert history(store, run_id, "a") == [(s, float(s)) for s in range(30)]
    names = list_artifacts(store, run_id)
    assert [n for n in names if not n.startswith("images/")] == [
        "checkpoints/last/last.ckpt",
        "checkpoints/last/metadata.json",
        "results/table.csv",
    ]
    fetched = download_checkpoint(store, run_id[:10], tmp_path / "there")
    assert load_checkpoint(fetched)["global_step"] == 20
    assert find_spools(store.root) == []


def test_a_point_costs_microseconds(make_logger):
    logger = make_logger()
    metrics = {f"residual/{i}": 0.1 * i for i in range(15)}
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for step in range(50):
            logger.log_metrics(metrics, step)
        best = min(best, (time.perf_counter() - start) / 50)
    assert best < 200e-6


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        import torch

        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        self.log("loss", self.weight.sum())
        return self.weight.sum()

    def configure_optimizers(self):
        import torch

        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_with_a_trainer(make_logger, store, tmp_path):
    logger = make_logger()
    trainer = L.Trainer(
        max_steps=4, logger=logger, log_every_n_steps=1, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(range(4), num_workers=0))
    run = store.find_run(logger.version)
    assert run.info.status == "FINISHED"
    assert history(store, run.info.run_id, "loss") == [(i, -float(i)) for i in range(4)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [("success", "FINISHED"), ("failed", "FAILED"), ("KILLED", "KILLED"), ("odd", "FAILED")],
)
def test_status_words(make_logger, monkeypatch, status, expected):
    logger = make_logger()
    sent = []
    monkeypatch.setattr(logger, "_send", sent.append)
    logger.set_status(status)
    logger.set_status(status)
    assert sent == [{"k": "status", "v": expected}]


KILLED = """
import os, sys
from eigenexp.tracking import local_store
from eigenexp.tracking.outbox import Outbox
root, run_id, first, last = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), int(sys.argv[4])
outbox = Outbox(local_store(root), experiment="e", run_id=run_id)
if run_id is None:
    print(outbox.await_run_id(60), flush=True)
for step in range(first, last):
    outbox.append({"k": "m", "t": 1000 + step, "s": step, "v": {"a": step, "b": step}})
os.kill(os.getpid(), 9)
"""


def run_killed(root: Path, run_id: str, first: int, last: int) -> str:
    command = [sys.executable, "-c", KILLED, str(root), run_id, str(first), str(last)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_killed_run_is_delivered_marked_and_resumed(make_logger, store):
    """Three lives: killed, resumed and killed while the first sender may still work, resumed."""
    run_id = run_killed(store.root, "", 0, 500)
    end = time.monotonic() + 60
    while store.find_run(run_id).info.status != "FAILED" and time.monotonic() < end:
        time.sleep(0.1)
    assert store.find_run(run_id).info.status == "FAILED"
    assert len(history(store, run_id, "a")) == 500
    run_killed(store.root, run_id, 400, 900)
    logger = make_logger(run_id=run_id, drain_timeout=90)
    for step in range(850, 1000):
        logger.log_metrics({"a": step, "b": step}, step)
    logger.finalize("success")
    assert logger.close()
    for key in ("a", "b"):
        assert history(store, run_id, key) == [(s, float(s)) for s in range(1000)]
    run = store.find_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["eigenexp.resume_count"] == "2"


def test_store_dead_from_the_start(make_logger, tmp_path, store, caplog):
    logger = make_logger(tracking_uri=DEAD)
    logger.log_metrics({"a": 1.0}, 0)
    start = time.monotonic()
    assert logger.version.startswith("offline-")
    assert logger.is_offline
    logger.log_checkpoint_files(checkpoint(tmp_path, 5), "checkpoints/last")
    logger.finalize("success")
    assert not logger.close(1.0)
    assert time.monotonic() - start < 40
    assert "eigenexp sync" in caplog.text
    logger.sender.kill()
    logger.sender.wait()
    (spool,) = find_spools(store.root)
    meta = (spool.folder / "meta.json").read_text()
    (spool.folder / "meta.json").write_text(meta.replace(DEAD, store.uri))  # the store is back
    (report,) = sync(store.root, logger.version)
    assert report.complete
    run = store.find_run(logger.version)
    assert run.info.run_id == report.run_id
    assert run.info.status == "FINISHED"
    assert list_artifacts(store, report.run_id) == [
        "checkpoints/last/last.ckpt",
        "checkpoints/last/metadata.json",
    ]
    assert find_spools(store.root) == []


def test_a_process_that_ends_without_a_word_leaves_no_running_run(root, store):
    code = """
import sys
from eigenexp.tracking.mlflow_logger import MLflowLogger
logger = MLflowLogger("e", root=sys.argv[1])
print(logger.version)
logger.log_metrics({"a": 1.0}, 0)
raise SystemExit(3)
"""
    command = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    end = time.monotonic() + 60
    while find_spools(root) and time.monotonic() < end:
        time.sleep(0.05)
    assert store.find_run(done.stdout.strip()).info.status == "FAILED"


def test_who_waits_already_can_be_told_to_stop(make_logger):
    logger = make_logger()
    logger.sender.kill()
    logger.sender.wait()
    logger.log_metrics({"a": 1.0}, 0)
    threading.Timer(0.2, logger.limit, [0.1]).start()
    start = time.monotonic()
    assert not logger.wait(60.0)
    assert time.monotonic() - start < 20.0
    assert not logger.wait(60.0)  # nor does anything wait later


def test_dead_sender_is_replaced_at_the_next_save(make_logger, store):
    logger = make_logger()
    logger.sender.kill()
    logger.sender.wait()
    logger.log_metrics({"a": 1.0}, 3)
    logger.save()
    logger.finalize("success")
    assert history(store, logger.version, "a") == [(3, 1.0)]


def test_copies_for_other_processes_append_to_the_same_run(make_logger, store):
    logger = make_logger()
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"a": 1.0}, 0)
    logger.log_metrics({"a": 2.0}, 1)
    logger.finalize("success")
    assert history(store, logger.version, "a") == [(0, 1.0), (1, 2.0)]


def test_other_ranks_do_nothing(root, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MLflowLogger("e", root=root)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert logger.version is None
    assert find_spools(root) == []


def test_misuse_is_told(make_logger, tmp_path):
    logger = make_logger()
    with pytest.raises(TrackingError, match="uint8"):
        logger.log_image("x", np.zeros((2, 2)), 0)
    (tmp_path / "x").write_text("")
    with pytest.raises(TrackingError, match="relative"):
        logger.log_artifact(tmp_path / "x", "../up")
    with pytest.raises(TrackingError, match="run id"):
        make_logger(run_id="../x")


def test_missing_file_does_not_stop_the_run(make_logger, tmp_path, caplog):
    make_logger().log_artifact(tmp_path / "gone", "a")
    assert "goes on" in caplog.text


def test_tracking_imports_neither_mlflow_nor_lightning_nor_torch():
    code = (
        "import sys, eigenexp.tracking, eigenexp.tracking.sender, eigenexp.tracking.outbox;"
        "print([m for m in ('mlflow', 'lightning', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- fetching --------------------------------------------------------------------------------------


def test_damaged_upload_falls_back_to_best(store, tmp_path):
    run_id = store.create_run("e")
    for name, step in (("last", 9), ("best", 7)):
        save_checkpoint({"global_step": step}, tmp_path / f"{name}.ckpt")
        store.upload(run_id, tmp_path / f"{name}.ckpt", f"checkpoints/{name}")
    stored = store.local_artifacts(run_id) / "checkpoints/last/last.ckpt"
    stored.write_bytes(stored.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="using best"):
        path = download_checkpoint(store, run_id, tmp_path / "there")
    assert load_checkpoint(path)["global_step"] == 7
    with pytest.raises(CheckpointError, match="none that is whole"):
        download_checkpoint(store, run_id, tmp_path / "there", kind="last")
    with pytest.raises(CheckpointError, match="'last' or 'best'"):
        download_checkpoint(store, run_id, tmp_path / "there", kind="../x")


def test_fetching_stays_in_its_folder(store, tmp_path):
    run_id = store.create_run("e")
    with pytest.raises(CheckpointError):
        download_checkpoint(store, run_id, tmp_path / "there")
    folder = store.local_artifacts(run_id)
    folder.mkdir(parents=True)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder").mkdir()
    there = tmp_path / "there"
    for path in ("../x", "/etc/passwd", "a/../../b", "", "C:/x", "a\\b"):
        with pytest.raises(TrackingError):
            download_artifact(store, run_id, path, there)
    for path in ("gone", "folder"):
        with pytest.raises((RunNotFoundError, TrackingError)):
            download_artifact(store, run_id, path, there)
    with pytest.raises(RunNotFoundError):
        download_artifact(store, "0" * 32, "x", there)
    assert not [p for p in there.rglob("*") if p.is_file()]


def test_hostile_listing_is_filtered(store, monkeypatch):
    from types import SimpleNamespace

    run_id = store.create_run("e")
    entries = [
        SimpleNamespace(path=path, is_dir=False)
        for path in ("../../etc/cron.d/x", "/etc/x", "good.txt", "a\n.txt", "..\\x")
    ]
    monkeypatch.setattr(store.client, "list_artifacts", lambda *_: entries)
    assert list_artifacts(store, run_id) == ["good.txt"]


# -- a real server ---------------------------------------------------------------------------------


def test_real_server_slow_dead_and_back(make_logger, switch, root, tmp_path):
    switch.delay = 0.2
    logger = make_logger(tracking_uri=switch.uri, drain_timeout=60)
    run_id = logger.version
    assert not logger.is_offline
    start = time.perf_counter()
    for step in range(100):
        logger.log_metrics({"a": step}, step)
    assert time.perf_counter() - start < 0.5  # one answer takes 0.2 s
    logger.log_checkpoint_files(checkpoint(tmp_path, 5), "checkpoints/last")
    assert logger.wait(60)
    switch.shut()
    for step in range(100, 200):
        logger.log_metrics({"a": step}, step)
    logger.save()
    assert not logger.wait(1.0)
    switch.delay = 0.0
    switch.open()
    logger.finalize("success")
    assert logger.wait(60)
    store = Store(root, switch.uri)
    assert history(store, run_id, "a") == [(s, float(s)) for s in range(200)]
    assert store.find_run(run_id).info.status == "FINISHED"
    path = download_checkpoint(store, run_id, tmp_path / "there")
    assert load_checkpoint(path)["global_step"] == 5
    assert logger.close(30)


@pytest.mark.slow
def test_real_server_killed_and_started_again(make_logger, server, root):
    logger = make_logger(tracking_uri=server.uri, drain_timeout=90)
    run_id = logger.version
    for step in range(1000):
        logger.log_metrics({f"m{i}": step for i in range(10)}, step)
        if step == 500:
            server.stop()
    server.start()
    logger.finalize("success")
    assert logger.close(90)
    store = Store(root, server.uri)
    for i in range(10):
        assert [s for s, _ in history(store, run_id, f"m{i}")] == list(range(1000))
    assert not os.path.exists(root / "spool") or find_spools(root) == []
