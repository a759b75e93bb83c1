"""Answers and journals of tracking made by somebody who means harm."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from eigenexp.tracking import download_artifact, list_artifacts
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.records import session_record
from eigenexp.tracking.spool import Spool
from tests.attacks import (
    Attacks,
    Place,
    check_nothing_happens,
)

ATTACKS = Attacks()
attack = ATTACKS.add


@attack
def experiment_name_that_climbs(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("..")
    folder = store.local_artifacts(run_id)
    assert folder is not None
    assert (place.here / "mlruns" / "artifacts") in folder.resolve().parents
    store.create_run("../../outside/x")
    return None


@attack
def artifact_paths_that_climb(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    return download_artifact(store, run_id, "../../../outside/secret", place.here / "got")


@attack
def artifact_path_from_the_root(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    return download_artifact(store, run_id, str(place.outside / "secret"), place.here / "got")


@attack
def artifact_that_is_a_link(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    folder = store.local_artifacts(run_id)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(place.outside / "secret")
    return download_artifact(store, run_id, "link", place.here / "got")


@attack
def listing_with_hostile_names(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    names = ("../../outside/x", str(place.outside / "x"), "a\n", "..\\x", "C:/x", "good")
    entries = [SimpleNamespace(path=name, is_dir=False) for name in names]
    store.client.list_artifacts = lambda *_: entries  # type: ignore[method-assign]
    assert list_artifacts(store, run_id) == ["good"]
    return None


@attack
def download_that_lands_elsewhere(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    secret = str(place.outside / "secret")
    store.client.download_artifacts = lambda *_: secret  # type: ignore[method-assign]
    return download_artifact(store, run_id, "a.txt", place.here / "got")


@attack
def journal_that_names_files_elsewhere(place: Place) -> object:
    """Neither is a file outside the spool sent, nor is it removed as delivered."""
    store = place.store()
    meta = {"root": str(store.root), "uri": store.uri, "experiment": "e", "run_name": "r"}
    spool = Spool.create(store.root, {**meta, "tags": {}, "run_id": None})
    spool.append(session_record(resume=False, run_id=None))
    secret = str(place.outside / "secret")
    for name in (secret, os.path.relpath(secret, spool.folder)):
        spool.append({"k": "a", "slot": "s", "to": "x", "files": [name]})
    sender = Sender(spool)
    while sender.step():
        pass
    assert list_artifacts(store, str(sender.state.run_id)) == []
    return None


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)
