"""A store that loses things, moves, or answers late: nothing is lost with it, nothing doubled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mlflow.exceptions import MlflowException

from eigenexp.checkpoints.files import METADATA_KEY, load_checkpoint, metadata_path, save_checkpoint
from eigenexp.errors import TrackingError
from eigenexp.runs.folder import RunFolder
from eigenexp.tracking import download_artifact, download_checkpoint, local_store, sync
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.mlflow_logger import MLflowLogger
from eigenexp.tracking.spool import Spool, find_spools
from eigenexp.tracking.syncing import settle
from tests.tracking.conftest import drain, history, new_spool, point


def fill(spool: Spool, steps: range) -> Spool:
    for step in steps:
        spool.append(point(step, a=float(step)))
    return spool


def runs(store):
    return store.client.search_runs([store.experiment_id("e")])


# -- deleted and restored --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_is_deleted_waits_and_goes_on_when_it_is_restored(store, what):
    spool = fill(new_spool(store), range(5))
    sender = drain(spool)
    run_id, experiment = sender.state.run_id, store.experiment_id("e")
    chosen = run_id if what == "run" else experiment
    getattr(store.client, f"delete_{what}")(chosen)
    fill(spool, range(5, 50)).append({"k": "status", "v": "FINISHED"})
    spool.append({"k": "end"})
    for _ in range(3):
        with pytest.raises(Exception, match=r"deleted|active"):
            sender.step()
    (report,) = sync(store.root)
    assert not report.complete
    assert "restored" in report.problem
    assert report.refused == 0
    getattr(store.client, f"restore_{what}")(chosen)
    (report,) = sync(store.root)
    assert report.complete
    assert report.points == 50
    assert report.refused == 0
    assert history(store, run_id, "a") == [(s, float(s)) for s in range(50)]
    assert store.find_run(run_id).info.status == "FINISHED"


# -- processes that die ----------------------------------------------------------------------------


def dead(spool: Spool) -> Sender:
    sender = drain(spool)
    sender.mark_dead()
    return sender


def test_a_run_that_came_to_nothing_is_deleted_until_it_is_gone_on_with(store):
    sender = dead(new_spool(store))
    assert runs(store) == []
    assert not sender.spool.folder.exists()
    again = fill(new_spool(store, run_id=sender.state.run_id, resume=True), range(3))
    run_id = drain(again).state.run_id
    assert [run.info.run_id for run in runs(store)] == [run_id] == [sender.state.run_id]
    assert history(store, run_id, "a") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_run_with_anything_in_it_is_kept(store, tmp_path):
    with_point = dead(fill(new_spool(store), range(1)))
    param = new_spool(store)
    param.append({"k": "p", "v": {"a": 1}})
    with_param, with_file, with_record = dead(param), drain(new_spool(store)), new_spool(store)
    (tmp_path / "x.txt").write_text("x")
    store.upload(with_file.state.run_id, tmp_path / "x.txt", "")
    with_file.mark_dead()
    sender = drain(with_record)
    RunFolder(store.root, sender.state.run_id).write_record(status="RUNNING")
    sender.mark_dead()
    kept = {each.state.run_id for each in (with_point, with_param, with_file, sender)}
    assert {run.info.run_id for run in runs(store)} == kept
    assert {run.info.status for run in runs(store)} == {"FAILED"}


def test_the_checkpoint_a_dead_process_had_not_handed_over_is_sent(store, tmp_path):
    spool = fill(new_spool(store), range(5))
    sender = drain(spool)
    folder = RunFolder(store.root, sender.state.run_id)
    folder.write_record(status="RUNNING")
    last = folder.checkpoints / "last.ckpt"
    for step in (10, 20):
        facts = {"metadata": {"schema_version": 1}}
        save_checkpoint({"global_step": step, METADATA_KEY: facts}, last)
        if step == 10:  # that one was
            store.upload(sender.state.run_id, last, "checkpoints/last")
            store.upload(
                sender.state.run_id, metadata_path(last), "checkpoints/last", "metadata.json"
            )
    metadata_path(last).unlink()  # and it died before this one
    sender.mark_dead()
    got = download_checkpoint(store, sender.state.run_id, tmp_path / "elsewhere", "last")
    assert load_checkpoint(got)["global_step"] == 20
    told = download_artifact(
        store, sender.state.run_id, "checkpoints/last/metadata.json", tmp_path / "elsewhere"
    )
    assert json.loads(told.read_text())["step"] == 20
    before = store.client.get_run(sender.state.run_id).info.end_time
    sender.mark_dead()
    assert store.client.get_run(sender.state.run_id).info.end_time == before


def test_who_shows_the_store_marks_dead_runs_before(root, store):
    code = """
import os, sys
sys.path.insert(0, sys.argv[2])
from tests.tracking.conftest import new_spool, point
from eigenexp.tracking import local_store
spool = new_spool(local_store(sys.argv[1]))
spool.append(point(1, a=1.0))
os.kill(os.getpid(), 9)
"""
    here = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(root), here], check=False)
    living = fill(new_spool(store), range(3))
    settle(root)
    assert sorted(run.info.status for run in runs(store)) == ["FAILED", "RUNNING"]
    assert [spool.folder for spool in find_spools(root)] == [living.folder]


# -- answers that are lost -------------------------------------------------------------------------


def repeat_creations(monkeypatch, client) -> None:
    """Create each run twice, as a client does whose first answer is lost."""
    real = client.create_run

    def create_run(*arguments, **named):
        real(*arguments, **named)
        return real(*arguments, **named)

    monkeypatch.setattr(client, "create_run", create_run)


def test_a_creation_whose_answer_was_lost_leaves_no_twin(store, monkeypatch):
    spool = fill(new_spool(store), range(5))
    sender = Sender(spool, store)
    with monkeypatch.context() as patched:
        repeat_creations(patched, store.client)
        while sender.step():
            pass
    (run,) = runs(store)
    assert run.info.run_id == sender.state.run_id
    assert history(store, run.info.run_id, "a") == [(s, float(s)) for s in range(5)]


def test_a_twin_of_an_older_version_is_adopted_and_makes_no_third_run(store):
    spool = fill(new_spool(store), range(5))
    first = drain(spool).state.run_id
    local_id = spool.meta["local_id"]
    store.create_run("e", "twin", {"eigenexp.local_id": local_id})
    spool.remove()
    again = fill(new_spool(store, run_id=local_id, resume=True), range(3, 9))
    assert drain(again).state.run_id == first
    assert history(store, first, "a") == [(s, float(s)) for s in range(9)]


def test_a_child_run_whose_answer_was_lost_has_no_twin(store, monkeypatch, tmp_path):
    from eigenexp.tracking.children import publish_pictures
    from tests.tracking.test_children import finish

    parent = store.create_run("e")
    finish(tmp_path, 0)
    with monkeypatch.context() as patched:
        repeat_creations(patched, store.client)
        assert publish_pictures(store, parent, tmp_path) == 1
    assert len(runs(store)) == 2


# -- databases that are lost -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_a_lost_database_is_made_anew_and_gets_everything_once_more(root, store, damage):
    spool = fill(new_spool(store), range(40))
    spool.append({"k": "p", "v": {"x": 1}})
    before = drain(spool).state.run_id
    if damage == "gone":
        store.database.unlink()
    else:
        store.database.write_bytes(os.urandom(5000))
    fill(spool, range(40, 60)).append({"k": "status", "v": "FINISHED"})
    spool.append({"k": "end"})
    # MLflow keeps a database open for as long as a process lives: the next one sees what is there.
    code = (
        "import sys; from eigenexp.tracking import sync; (r,) = sync(sys.argv[1]);"
        "print(r.complete, r.points, r.problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "60", "None"], done.stdout + done.stderr
    look = (
        "import sys, json; from eigenexp.tracking import local_store; s = local_store(sys.argv[1]);"
        "run = s.find_run(sys.argv[2]);"
        "points = s.client.get_metric_history(run.info.run_id, 'a');"
        "print(json.dumps([run.info.status, run.data.params, sorted(p.step for p in points)]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", look, str(root), before], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == ["FINISHED", {"x": "1"}, list(range(60))]
    assert len(list(root.glob("mlflow.db.damaged-*"))) == (damage == "garbage")


def test_a_sender_notices_that_another_file_lies_in_its_databases_place(store, root):
    spool = fill(new_spool(store), range(3))
    sender = drain(spool, store)
    shutil.copyfile(store.database, root / "copy.db")
    os.replace(root / "copy.db", store.database)
    assert store.was_replaced
    with pytest.raises(TrackingError, match="another file"):
        sender.step()


def test_a_store_that_answers_not_found_to_everything_loses_and_doubles_nothing(store, monkeypatch):
    spool = fill(new_spool(store), range(5))
    run_id = drain(spool).state.run_id
    fill(spool, range(5, 9))

    def nothing(*_, **__):
        raise MlflowException("no", error_code=1003)  # RESOURCE_DOES_NOT_EXIST

    sender = Sender(spool, store)
    with monkeypatch.context() as patched:
        for name in ("get_run", "search_runs", "search_experiments"):
            patched.setattr(store.client, name, nothing)
        with pytest.raises(MlflowException):
            sender.step()
    assert drain(spool).state.run_id == run_id
    assert history(store, run_id, "a") == [(s, float(s)) for s in range(9)]


# -- names and places ------------------------------------------------------------------------------

ODD_NAMES = ["v1..v2", "..", ".", "畫" * 32, "a/b", "x" * 499, "%41", "a?b#c", "Default"]


def test_artifacts_of_odd_experiments_lie_under_the_root(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fresh = local_store(tmp_path / "fresh")
    (tmp_path / "note.txt").write_text("x")
    for name in ODD_NAMES:
        run_id = fresh.create_run(name)
        fresh.upload(run_id, tmp_path / "note.txt", "results")
        folder = fresh.local_artifacts(run_id)
        assert fresh.root in folder.parents, name
        assert (folder / "results" / "note.txt").is_file()
        assert [f.path for f in fresh.client.list_artifacts(run_id)] == ["results"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["", "x" * 501, "a\nb", "a\x1b[31mb"])
def test_names_no_store_takes_are_refused_before_the_run(root, name):
    with pytest.raises(TrackingError, match="experiment_name") as caught:
        MLflowLogger(name, root=root)
    assert str(caught.value).isprintable()
    assert not (root / "spool").exists()


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%b"])
def test_a_root_no_database_can_lie_under_is_refused_before_the_run(tmp_path, name):
    with pytest.raises(TrackingError, match="choose another root"):
        MLflowLogger("e", root=tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_root_that_was_moved_or_copied_keeps_its_runs_and_its_spool(store, root, how, tmp_path):
    spool = fill(new_spool(store), range(5))
    run_id = drain(spool).state.run_id
    (tmp_path / "note.txt").write_text("old")
    store.upload(run_id, tmp_path / "note.txt", "results")
    fill(spool, range(5, 9)).append({"k": "end"})
    spool.close()
    there = tmp_path / "else where" / "mlruns"
    there.parent.mkdir()
    if how == "moved":
        root.rename(there)
    else:
        shutil.copytree(root, there)
    before = sorted(root.rglob("*")) if how == "copied" else []
    (report,) = sync(there)
    assert (report.complete, report.run_id) == (True, run_id)
    here = local_store(there)
    assert history(here, run_id, "a") == [(s, float(s)) for s in range(9)]
    for run in (run_id, here.create_run("e")):  # old and new
        here.upload(run, tmp_path / "note.txt", "more")
        place = Path(unquote(urlsplit(here.client.get_run(run).info.artifact_uri).path))
        assert there in place.parents
        assert "more" in {file.path for file in here.client.list_artifacts(run)}
    assert (here.local_artifacts(run_id) / "results" / "note.txt").read_text() == "old"
    if how == "moved":
        assert not root.exists()
    else:
        assert sorted(root.rglob("*")) == before


def test_artifacts_that_somebody_put_elsewhere_stay_there(store, tmp_path):
    place = tmp_path / "disk" / "artifacts" / "big"
    place.mkdir(parents=True)
    store.client.create_experiment("mine", artifact_location=place.as_uri())
    again = local_store(store.root)
    assert again.client.get_experiment_by_name("mine").artifact_location == place.as_uri()
