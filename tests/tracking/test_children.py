"""Child runs of a study: one a picture, made once, made anew when a picture is solved again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from eigenexp.tracking import children, local_store
from eigenexp.tracking.children import PictureWatch, publish_pictures
from eigenexp.tracking.watching import deliver


def finish(folder: Path, position: int, **facts: Any) -> None:
    picture = folder / "pictures" / f"{position:06d}-p"
    picture.mkdir(parents=True, exist_ok=True)
    record = {"position": position, "name": "p", "where": "p.png", "status": "solved", "turn": 9,
              "seconds": 1.5, "num_products": 12, "picture": {"sha256": "x"}, **facts}  # fmt: skip
    (picture / "record.json").write_text(json.dumps(record))


def test_a_picture_is_published_once_and_again_when_solved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = local_store(tmp_path / "mlruns")
    parent = store.create_run("study")
    folder = tmp_path / "study"
    published: dict[str, int] = {}
    assert publish_pictures(store, parent, folder, published) == 0
    (folder / "pictures" / "000005-p").mkdir(parents=True)  # at work
    for position in range(3):
        finish(folder, position)
    assert publish_pictures(store, parent, folder, published) == 3

    def read(_: Path) -> bool:
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(children, "_is_published", read)
        assert publish_pictures(store, parent, folder, published) == 0
    assert publish_pictures(store, parent, folder) == 0  # another process looks for itself
    finish(folder, 1, turn=11, num_products=40)
    finish(folder, 3, status="failed", error="no picture")
    assert publish_pictures(store, parent, folder, published) == 2
    client = store.client
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    by_position = {run.data.tags["eigenexp.position"]: run for run in runs}
    assert len(runs) == len(by_position) == 4
    assert by_position["3"].info.status == "FAILED"
    assert by_position["3"].data.tags["error"] == "no picture"
    assert by_position["1"].info.status == "FINISHED"


def test_after_a_failure_everything_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    finish(folder, 0)
    calls: list[dict[str, int]] = []

    def fail_once(store: Any, parent: str, folder: Path, published: dict[str, int]) -> int:
        calls.append(dict(published))
        published["000000-p"] = 1
        if len(calls) == 1:
            raise OSError("the store is away")
        return 0

    monkeypatch.setattr(children, "publish_pictures", fail_once)
    gone = threading.Event()
    gone.set()
    store: Any = None
    assert deliver(PictureWatch(store, "parent", folder), gone, 60.0)
    assert calls == [{}, {}]
