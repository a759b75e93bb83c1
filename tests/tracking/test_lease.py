"""Two machines that work on one run of a server are told of each other."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from eigenexp.tracking import Store, lease, local_store
from eigenexp.tracking.outbox import Outbox
from tests.tracking.conftest import drain, history, new_spool, point


def test_both_are_told_and_no_point_is_double(server, tmp_path, monkeypatch, caplog):
    here, there = (Store(tmp_path / name, server.uri) for name in ("here", "there"))
    old = new_spool(here)
    for step in range(5):
        old.append(point(step, a=float(step)))
    first = drain(old)
    run_id = first.state.run_id
    assert first.state.rival is None
    new = new_spool(there, run_id=run_id, resume=True)
    for step in range(3, 12):
        new.append(point(step, stamp=9999, a=float(step)))
    second = drain(new)
    assert socket.gethostname() in second.state.rival
    assert "seems to be at work" in second.state.rival
    for step in range(5, 9):
        old.append(point(step, a=float(step)))
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.0)
    while first.step():
        pass
    assert "has resumed it" in first.state.rival
    assert history(here, run_id, "a") == [(s, float(s)) for s in range(12)]
    new.append({"k": "status", "v": "FINISHED"})
    assert drain(new).store.find_run(run_id).info.status == "FINISHED"
    third = drain(new_spool(Store(tmp_path / "third", server.uri), run_id=run_id, resume=True))
    assert third.state.rival is None  # nobody was at work any more


def test_a_run_says_what_its_sender_saw_once(root, caplog, monkeypatch):
    monkeypatch.setattr(Outbox, "_launch", lambda self: None)  # nobody else writes the state
    outbox = Outbox(local_store(root), experiment="e")
    state = outbox.spool.read_state()
    state.rival = "laptop (process 7)\x1b[31m has resumed it"
    outbox.spool.write_state(state)
    with caplog.at_level(logging.WARNING):
        outbox.sync()
        outbox.sync()
    assert caplog.text.count("laptop (process 7)") == 1
    assert "\x1b" not in caplog.text
    outbox.close(0.0)


CLAIMS = [{"writer": "x", "until": "soon"}, {"writer": "x", "until": 1.0}, {}, [1]]


@pytest.mark.parametrize("tag", ["", "{", "[" * 100_000, *map(json.dumps, CLAIMS)])
def test_a_claim_that_is_over_or_no_claim_is_nobodys(store, tag):
    assert lease.Lease(store, "me").holder({"eigenexp.lease": tag}) is None
