"""The store: made once by however many, runs found by what people type."""

import re
import subprocess
import sys

import pytest

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.tracking import Store, local_store
from eigenexp.tracking.names import clean_key
from eigenexp.tracking.params import log_params

EIGHT = """
import sys
from eigenexp.tracking import local_store
from eigenexp.tracking.outbox import Outbox
outbox = Outbox(local_store(sys.argv[1]), experiment="e")
for step in range(50):
    outbox.append({"k": "m", "t": step, "s": step, "v": {"a": step, "b": -step}})
outbox.append({"k": "status", "v": "FINISHED"})
run_id = outbox.await_run_id(200)
assert outbox.close(200)
print(run_id)
"""


@pytest.mark.slow
def test_eight_runs_at_once_into_one_fresh_store(tmp_path):
    command = [sys.executable, "-c", EIGHT, str(tmp_path / "mlruns")]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 8, outputs
    store = local_store(tmp_path / "mlruns")
    for out, _ in outputs:
        run = store.find_run(out.strip())
        assert run.info.status == "FINISHED"
        for key in ("a", "b"):
            points = store.client.get_metric_history(run.info.run_id, key)
            assert sorted(p.step for p in points) == list(range(50))
    assert list((tmp_path / "mlruns" / "spool").iterdir()) == []


def test_environment_and_argument_choose_the_address(tmp_path, monkeypatch):
    assert Store(tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:1")
    assert Store(tmp_path).uri == "http://server:1"
    assert Store(tmp_path).is_server
    assert Store(tmp_path, "https://other").uri == "https://other"
    assert not local_store(tmp_path).is_server


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "mlruns"])
def test_plain_folders_are_refused(tmp_path, uri):
    with pytest.raises(TrackingError, match="sqlite"):
        Store(tmp_path, uri)


def test_unusable_roots_are_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "odd?name"):
        with pytest.raises(TrackingError) as caught:
            local_store(root).client  # noqa: B018
        assert "\n" not in str(caught.value)


def test_half_built_database_of_a_killed_process_is_replaced(tmp_path):
    root = tmp_path / "mlruns"
    root.mkdir()
    (root / ".mlflow.db.new").write_bytes(b"half")
    (root / ".mlflow.db.new-journal").write_bytes(b"half")
    store = local_store(root)
    assert store.client.search_experiments()
    assert not list(root.glob(".mlflow.db.new*"))


def test_runs_are_found_by_id_prefix_and_offline_id(store):
    local_id = "offline-" + "ab" * 16
    run_id = store.create_run("e", "name", {"eigenexp.local_id": local_id})
    other = store.create_run("e")
    assert store.find_run(run_id).info.run_id == run_id
    unique = next(run_id[:n] for n in range(1, 33) if not other.startswith(run_id[:n]))
    assert store.find_run(unique).info.run_id == run_id
    assert store.find_run(local_id[:14]).info.run_id == run_id
    for wrong in ("zzzz", "", "../x", "a b", "'; DROP TABLE runs", "x" * 65):
        with pytest.raises(RunNotFoundError):
            store.find_run(wrong)


def test_ambiguous_prefix_names_the_candidates(store):
    runs = [store.create_run("e") for _ in range(17)]
    shared = next(a[0] for i, a in enumerate(runs) if any(b[0] == a[0] for b in runs[:i]))
    with pytest.raises(RunNotFoundError, match="give more letters"):
        store.find_run(shared)


def test_status_and_resumption(store):
    run_id = store.create_run("e")
    store.finish_run(run_id, "FAILED")
    assert store.find_run(run_id).info.status == "FAILED"
    for count in (1, 2):
        store.resume_run(run_id)
        run = store.find_run(run_id)
        assert run.info.status == "RUNNING"
        assert run.data.tags["eigenexp.resume_count"] == str(count)
    with pytest.raises(TrackingError, match="status"):
        store.finish_run(run_id, "DONE")


def test_changed_params_become_drift_tags(store):
    run_id = store.create_run("e")
    log_params(store, run_id, {f"p{i}": i for i in range(150)})
    log_params(store, run_id, {"p0": 5, "p1": 1, "new": "x", "long": "y" * 9000})
    run = store.find_run(run_id)
    assert run.data.params["p0"] == "0"
    assert run.data.tags["drift.p0"] == "0 → 5"
    assert "drift.p1" not in run.data.tags
    assert run.data.params["new"] == "x"
    assert len(run.data.params["long"]) == 500
    assert len(run.data.params) == 152


def test_deleted_experiment_is_told(store):
    store.client.delete_experiment(store.experiment_id("e"))
    with pytest.raises(TrackingError, match="deleted"):
        store.experiment_id("e")


def test_dead_server_is_told_in_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="answers"):
        Store(tmp_path, "http://127.0.0.1:9").find_run("abc")


@pytest.mark.parametrize(
    "key",
    ["residual/-1", "a:b", "λ max", "../../x", "/abs", "a//b", "", "<b>", "x" * 400, "..", "a\n"],
)
def test_names_become_ones_mlflow_takes(store, key):
    cleaned = clean_key(key)
    assert re.fullmatch(r"[\w\-./ :]+", cleaned)
    run_id = store.create_run("e")
    store.client.log_metric(run_id, cleaned, 1.0)
    assert clean_key(cleaned) == cleaned
