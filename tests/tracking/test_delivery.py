"""Delivery: in order, exactly once, whatever fails in between."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eigenexp.errors import RunNotFoundError, TrackingError
from eigenexp.tracking import Store, list_artifacts, sync
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.mlflow_logger import MLflowLogger
from eigenexp.tracking.records import session_record
from eigenexp.tracking.spool import SpoolState, find_spools
from eigenexp.tracking.uploads import Uploads
from tests.tracking.conftest import drain, history, new_spool, point


def test_points_arrive_once_and_in_batches(store):
    spool = new_spool(store)
    for step in range(400):
        spool.append(point(step, a=float(step), b=-1.0, c=0.5))
    sender = drain(spool)
    assert sender.state.points == 1200
    for key in ("a", "b", "c"):
        assert [s for s, _ in history(store, sender.state.run_id, key)] == list(range(400))
    assert sender.is_drained


def test_lost_acknowledgement_sends_nothing_twice(store):
    spool = new_spool(store)
    spool.append({"k": "p", "v": {"x": 1}})
    for step in range(30):
        spool.append(point(step, a=float(step)))
    sent = drain(spool)
    spool.write_state(SpoolState(run_id=sent.state.run_id))
    again = drain(spool)
    assert [s for s, _ in history(store, again.state.run_id, "a")] == list(range(30))


def test_run_is_created_once_though_the_process_died_after_creating_it(store):
    spool = new_spool(store)
    run_id = drain(spool).state.run_id
    begun = SpoolState(creating=True)  # and the process died before it noted the id
    spool.write_state(begun)
    again = drain(spool)
    assert again.state.run_id == run_id
    assert len(store.client.search_runs([store.experiment_id("e")])) == 1


def test_failure_in_the_middle_is_repeated_without_gap_or_double(store, monkeypatch):
    spool = new_spool(store)
    for step in range(3000):
        spool.append(point(step, a=float(step)))
    sender = Sender(spool)
    real, calls = store.client.log_batch, [0]
    monkeypatch.setattr(sender, "store", store)

    def log_batch(*arguments, **named):
        calls[0] += 1
        real(*arguments, **named)
        if calls[0] == 2:  # the store took it, the answer was lost
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(store.client, "log_batch", log_batch)
    assert sender.step()
    with pytest.raises(ConnectionError):
        sender.step()
    while sender.step():
        pass
    assert [s for s, _ in history(store, sender.state.run_id, "a")] == list(range(3000))


def test_resumed_run_does_not_repeat_steps_and_leaves_no_gap(store):
    spool = new_spool(store)
    for step in range(10):
        spool.append(point(step, a=float(step)))
    for step in range(8):  # killed between the two metrics' last points
        spool.append(point(step, b=float(step)))
    first = drain(spool)
    spool.append(session_record(resume=True, run_id=first.state.run_id))
    for step in range(5, 15):  # the checkpoint was at 5; the same values, later
        spool.append(point(step, stamp=9999, a=float(step), b=float(step)))
    drain(spool)
    run_id = first.state.run_id
    for key in ("a", "b"):
        assert history(store, run_id, key) == [(s, float(s)) for s in range(15)]
    assert store.find_run(run_id).data.tags["eigenexp.resume_count"] == "1"


def test_resumed_from_a_fresh_spool_asks_the_store(store):
    first = drain(fill(new_spool(store), range(10)))
    second = new_spool(store, run_id=first.state.run_id, resume=True)
    drain(fill(second, range(5, 15), stamp=9999))
    assert history(store, first.state.run_id, "a") == [(s, float(s)) for s in range(15)]


def test_late_spool_of_a_run_taken_over_changes_nothing(store, tmp_path):
    """Steps 8 and 9 stayed on a dead machine; another one resumed from the checkpoint at 7."""
    old = fill(new_spool(store), range(8))
    first = drain(old)
    run_id = first.state.run_id
    fill(old, range(8, 10))
    (tmp_path / "last.ckpt").write_text("old")
    old.append({"k": "a", "files": [], "to": "checkpoints/last", "slot": "checkpoints/last"})
    old.append({"k": "status", "v": "FAILED"})
    second = new_spool(store, run_id=run_id, resume=True)
    second = fill(second, range(7, 20), stamp=9999)
    second.append({"k": "status", "v": "FINISHED"})
    drain(second)
    drain(old)
    assert history(store, run_id, "a") == [(s, float(s)) for s in range(20)]
    assert store.find_run(run_id).info.status == "FINISHED"


def fill(spool, steps, stamp=1000):
    for step in steps:
        spool.append(point(step, stamp=stamp, a=float(step)))
    return spool


def test_user_metrics_may_go_back_in_steps_within_a_session(store):
    spool = new_spool(store)
    for step in (3, 1, 2, 2):
        spool.append(point(step, a=float(step)))
    sender = drain(spool)
    assert [s for s, _ in history(store, sender.state.run_id, "a")] == [1, 2, 3]


def test_infinite_and_nan_points_keep_their_place(store):
    spool = new_spool(store)
    spool.append(point(0, a=math.inf))
    spool.append(point(1, a=math.nan))
    spool.append(point(2, a=1.0))
    sender = drain(spool)
    values = [v for _, v in history(store, sender.state.run_id, "a")]
    assert math.isnan(values[0])
    assert math.isnan(values[1])
    assert values[2] == 1.0


def test_refused_points_do_not_stop_the_others(store, monkeypatch):
    from mlflow.exceptions import MlflowException

    spool = new_spool(store)
    for step in range(5):
        spool.append(point(step, a=1.0, bad=1.0))
    sender = Sender(spool, store)
    real = store.client.log_batch

    def log_batch(run_id, metrics=(), **named):
        if any(m.key == "bad" for m in metrics):
            raise MlflowException.invalid_parameter_value("no")
        return real(run_id, metrics=metrics, **named)

    monkeypatch.setattr(store.client, "log_batch", log_batch)
    while sender.step():
        pass
    assert len(history(store, sender.state.run_id, "a")) == 5
    assert sender.state.rejected == 5
    assert sender.state.points == 5  # what was refused was not sent
    assert len(spool.refused_path.read_text().splitlines()) == 5


def test_what_a_gateway_refuses_in_a_servers_place_waits(store, monkeypatch):
    """Its page has the status of a refusal, to which MLflow's client gives a code of MLflow's."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    spool = fill(new_spool(store), range(5))
    sender = Sender(spool, store)

    def log_batch(*_, **__):
        page = "failed with error code 400 != 200. Response body: '<html><h1>400 no</h1>"
        raise MlflowException(page, error_code=BAD_REQUEST)

    with monkeypatch.context() as patched:
        patched.setattr(store.client, "log_batch", log_batch)
        for _ in range(3):
            with pytest.raises(MlflowException) as caught:
                sender.step()
            sender.fail(caught.value)
    assert "<" not in str(spool.read_state().error)
    assert sender.state.rejected == 0
    while sender.step():
        pass
    assert history(store, sender.state.run_id, "a") == [(s, float(s)) for s in range(5)]
    assert not spool.refused_path.exists()


def test_an_upload_that_a_page_answered_is_sent_again(server, tmp_path, monkeypatch):
    store = Store(tmp_path, server.uri)
    spool = new_spool(store)
    queue_file(spool, "note.txt", "x", "results")
    sender = Sender(spool, store)
    with monkeypatch.context() as patched:
        # "200 OK" and a page that asks for a login: the client takes it for done.
        patched.setattr(store.client, "log_artifact", lambda *_, **__: None)
        with pytest.raises(ConnectionError, match="has not got it"):
            sender.step()
    while sender.step():
        pass
    assert list_artifacts(store, sender.state.run_id) == ["results/note.txt"]


def queue_file(spool, name, content, to, slot=None):
    folder = spool.new_file_folder()
    (folder / name).write_text(content)
    files = [str((folder / name).relative_to(spool.folder))]
    spool.append({"k": "a", "files": files, "to": to, "slot": slot})
    return folder / name


def test_only_the_newest_of_a_slot_is_uploaded(store):
    spool = new_spool(store)
    paths = [
        queue_file(spool, "last.ckpt", f"{i}", "checkpoints/last", "checkpoints/last")
        for i in range(4)
    ]
    queue_file(spool, "note.txt", "x", "")
    sender = Sender(spool, store)
    uploads = []
    real = store.upload
    sender.store.upload = lambda *a, **k: (uploads.append(a[1].name), real(*a, **k))
    while sender.step():
        pass
    assert sorted(uploads) == ["last.ckpt", "note.txt"]
    run_id = sender.state.run_id
    assert list_artifacts(store, run_id) == ["checkpoints/last/last.ckpt", "note.txt"]
    stored = store.local_artifacts(run_id) / "checkpoints/last/last.ckpt"
    assert stored.read_text() == "3"
    assert not any(path.exists() for path in paths)


def test_failing_uploads_hold_up_neither_points_nor_each_other_nor_the_status(store, monkeypatch):
    spool = new_spool(store)
    queue_file(spool, "full.bin", "x", "a")
    queue_file(spool, "good.bin", "x", "a")
    spool.append(point(1, a=1.0))
    spool.append({"k": "status", "v": "FINISHED"})
    sender = Sender(spool, store)
    real = store.upload

    def upload(run_id, path, *rest):
        if path.name == "full.bin":
            raise OSError(28, "No space left on device")
        return real(run_id, path, *rest)

    monkeypatch.setattr(store, "upload", upload)
    for _ in range(6):
        try:
            sender.step()
        except OSError as error:
            sender.fail(error)
    run_id = sender.state.run_id
    assert store.find_run(run_id).info.status == "FINISHED"
    assert history(store, run_id, "a") == [(1, 1.0)]
    assert list_artifacts(store, run_id) == ["a/good.bin"]
    assert len(sender.state.uploads) == 1
    monkeypatch.undo()
    (report,) = sync(store.root)
    assert report.complete
    assert list_artifacts(store, run_id) == ["a/full.bin", "a/good.bin"]


def test_hostile_journal_writes_nowhere_else(store, tmp_path):
    spool = new_spool(store)
    for to in ("../../../escape", "/tmp/escape", "a/../../b"):
        queue_file(spool, "x.txt", "x", to)
    queue_file(spool, "x.txt", "x", "good")
    sender = drain(spool)
    assert list_artifacts(store, sender.state.run_id) == ["good/x.txt"]
    assert not list(tmp_path.rglob("escape"))


def test_pictures_are_stored_once_under_names_the_slider_reads(store):
    spool = new_spool(store)
    folder = spool.new_file_folder()
    np.save(folder / "picture.npy", np.zeros((300, 400, 3), np.uint8))
    relative = [str((folder / "picture.npy").relative_to(spool.folder))]
    record = {"k": "i", "key": "distortion/0", "s": 3, "t": 5, "files": relative}
    spool.append(record)
    run_id = drain(new_spool(store)).state.run_id
    Uploads(spool, store).send(run_id, record)  # and the process dies before the acknowledgement
    (spool.folder / "meta.json").write_text(json.dumps({**spool.meta, "run_id": run_id}))
    sender = drain(spool)
    names = list_artifacts(store, sender.state.run_id)
    assert len(names) == 2
    assert all(n.startswith("images/distortion~0+step+3+timestamp+5+") for n in names)
    assert store.find_run(sender.state.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_sync_delivers_what_a_dead_process_left_and_marks_the_run(root, store):
    code = """
import os, sys
sys.path.insert(0, sys.argv[2])
from tests.tracking.conftest import new_spool, point
from eigenexp.tracking import local_store
spool = new_spool(local_store(sys.argv[1]))
for step in range(20):
    spool.append(point(step, a=1.0))
os.kill(os.getpid(), 9)
"""
    here = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(root), here], check=False)
    assert len(find_spools(root)) == 1
    (report,) = sync(root)
    assert report.complete
    assert report.points == 20
    assert store.find_run(report.run_id).info.status == "FAILED"
    assert find_spools(root) == []
    assert sync(root) == []
    with pytest.raises(RunNotFoundError):
        sync(root, "abc")


def test_sync_leaves_a_living_run_alone_and_reports_broken_spools(root, store):
    from filelock import FileLock

    spool = new_spool(store)
    spool.append(point(1, a=1.0))
    with FileLock(spool.folder / "lock"):
        (report,) = sync(root)
    assert not report.complete
    (report,) = sync(root)
    assert report.complete
    assert spool.folder.exists()  # its writer (this process) lives
    broken = root / "spool" / "0-broken"
    broken.mkdir()
    (broken / "meta.json").write_text("{")
    assert [r.complete for r in sync(root)] == [False, True]


def test_state_survives_fields_of_another_version(store):
    spool = new_spool(store)
    drain(spool)
    path = spool.folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unknown": 1}))
    assert spool.read_state().run_id


@pytest.mark.parametrize("damage", ["", "[1]", '{"segment": "x"}', '{"uploads": 3}', "[" * 100_000])
def test_a_damaged_state_sends_nothing_twice_and_loses_nothing(
    store, monkeypatch, tmp_path, damage
):
    monkeypatch.setattr("eigenexp.tracking.spool.SEGMENT_BYTES", 2000)
    spool = new_spool(store)
    for step in range(100):
        spool.append(point(step, a=float(step)))
    run_id = drain(spool).state.run_id
    assert not (spool.folder / "journal-000001.jsonl").exists()  # sent and dropped
    (spool.folder / "state.json").write_text(damage)
    for step in range(100, 120):
        spool.append(point(step, a=float(step)))
    again = drain(spool)
    assert again.state.run_id == run_id
    assert [s for s, _ in history(store, run_id, "a")] == list(range(120))
    assert not again.state.lost
    assert again.state.points == 20  # what the store has is not sent again
    assert drain(spool).state.run_id == run_id


@pytest.mark.parametrize(
    "line",
    [
        {"k": "m", "s": 2**63, "t": 1, "v": {"a": 1.0}},
        {"k": "m", "s": 1, "t": -(2**70), "v": {"a": 1.0}},
        {"k": "m", "s": 5, "t": 1, "v": {"a": 10**400}},
        {"k": "status", "v": "DONE"},
        {"k": "p", "v": {"deep": json.loads("[" * 500 + "]" * 500)}},
        {"k": "i", "files": ["files/gone.npy"], "key": "x", "t": 1, "s": 1},
        {"k": "a", "files": ["files/gone.bin"], "to": "a", "slot": None},
        {"k": "m", "s": "x", "t": 1, "v": {"a": 1.0}},
        {"k": "m", "s": 1, "t": 1, "v": {"a": "one"}},
        {"k": "m", "s": 1, "t": 1},
        {"k": "p", "v": [1]},
        {"k": "t"},
        {"k": "a", "files": [3], "to": "x"},
        {"k": "a", "files": "abc", "to": "x"},
        {"k": "i", "files": []},
        {"k": "status", "v": None},
        {"k": "session", "pid": "x"},
        {"k": ["m"]},
    ],
)
def test_malformed_records_hold_up_nothing_and_are_kept_aside(store, line):
    spool = new_spool(store)
    spool.append(point(0, a=0.0))
    spool.append(line)
    spool.append(point(1, a=1.0))
    spool.append({"k": "end"})
    (report,) = sync(store.root)
    assert report.complete
    assert report.points == 2
    assert history(store, report.run_id, "a") == [(0, 0.0), (1, 1.0)]
    assert report.refused == 1
    (kept,) = report.refused_path.read_text().splitlines()
    assert json.loads(kept)["why"]
    assert not spool.folder.exists()


def test_a_run_the_store_has_never_seen_begins_there_and_is_found_by_its_old_id(store):
    old = "0123456789abcdef0123456789abcdef"
    spool = new_spool(store, run_id=old, resume=True)
    spool.append(point(7, a=7.0))
    run_id = drain(spool).state.run_id
    assert run_id != old
    assert store.find_run(old).info.run_id == run_id
    again = new_spool(store, run_id=old, resume=True)  # another machine goes on with it
    again.append(point(7, a=7.0))
    again.append(point(8, a=8.0))
    assert drain(again).state.run_id == run_id
    assert history(store, run_id, "a") == [(7, 7.0), (8, 8.0)]


def test_a_run_made_offline_and_sent_can_be_resumed_by_its_offline_id(store):
    spool = new_spool(store)
    spool.append(point(1, a=1.0))
    run_id = drain(spool).state.run_id
    again = new_spool(store, run_id=spool.meta["local_id"], resume=True)
    again.append(point(2, a=2.0))
    assert drain(again).state.run_id == run_id


def test_broken_spools_hinder_no_other_run(root, store):
    run_id = store.create_run("e")
    for i, meta in enumerate(("", "[]", "{}", '{"root": 1}')):
        (root / "spool" / f"0-broken-{i}").mkdir(parents=True)
        (root / "spool" / f"0-broken-{i}" / "meta.json").write_text(meta)
    logger = MLflowLogger("e", run_id=run_id, root=root)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert logger.close()
    reports = sync(root)
    assert [report.complete for report in reports] == [False] * 4
    assert all("nothing of it can be sent" in str(report.problem) for report in reports)


@pytest.mark.parametrize(
    "uri", ["file:///", "file:///etc", "/etc", "file:///x/../RUN/artifacts", "/x/RUN/artifacts/.."]
)
def test_a_server_cannot_name_any_folder_of_this_machine(store, monkeypatch, uri):
    run_id = store.create_run("e")
    run = store.client.get_run(run_id)
    run.info._artifact_uri = uri.replace("RUN", run_id)
    monkeypatch.setattr(store.client, "get_run", lambda _: run)
    with pytest.raises(TrackingError, match="nothing is written there"):
        store.local_artifacts(run_id)


def test_a_spool_that_cannot_be_locked_is_told_and_hinders_no_other(root, store):
    """As on a file system that can only be read."""
    locked, other = fill(new_spool(store), range(3)), fill(new_spool(store), range(3))
    (locked.folder / "lock").mkdir()
    reports = {report.local_id: report for report in sync(root)}
    told = reports[locked.meta["local_id"]]
    assert not told.complete
    assert "cannot be written" in str(told.problem)
    assert reports[other.meta["local_id"]].complete
