"""Processes that send for many runs: ready early, handed on, let go."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from eigenexp.tracking.mlflow_logger import MLflowLogger
from eigenexp.tracking.senders import SENDERS
from eigenexp.tracking.spool import find_spools
from tests.tracking.conftest import history


def log_one(root, value: float) -> tuple[str, int]:
    logger = MLflowLogger("e", root=root)
    logger.log_metrics({"a": value}, 1)
    process = logger.sender.pid
    logger.finalize("success")
    logger.close()
    return logger.version, process


def test_a_sweep_hands_its_sender_on_and_waits_at_its_end(root, store):
    with SENDERS.staying(defers=True):
        first, process = log_one(root, 1.0)
        end = time.monotonic() + 60
        while find_spools(root) and time.monotonic() < end:
            time.sleep(0.02)
        second, again = log_one(root, 2.0)
        assert again == process
    assert find_spools(root) == []
    for run, value in ((first, 1.0), (second, 2.0)):
        assert history(store, run, "a") == [(1, value)]
        assert store.find_run(run).info.status == "FINISHED"


def test_a_killed_sender_is_replaced_by_the_next_run(root, store):
    with SENDERS.staying(defers=False):
        _, process = log_one(root, 1.0)
        os.kill(process, 9)
        second, again = log_one(root, 2.0)
        assert again != process
    assert history(store, second, "a") == [(1, 2.0)]


def test_a_sender_that_got_ready_is_taken_by_the_next_run(root, store):
    SENDERS.prepare(root)
    ready = SENDERS._ready[-1].pid
    run, process = log_one(root, 1.0)
    assert process == ready
    assert history(store, run, "a") == [(1, 1.0)]


def test_what_is_closed_is_stored_and_nobody_waits_for_the_end_of_its_sender(root, store):
    code = """
import sys
from eigenexp.tracking.mlflow_logger import MLflowLogger
from eigenexp.tracking.spool import find_spools
logger = MLflowLogger("e", root=sys.argv[1])
logger.log_metrics({"a": 1.0}, 1)
logger.finalize("success")
logger.close()
assert find_spools(sys.argv[1]) == []
print(logger.version)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    run = done.stdout.strip()
    assert done.stderr == ""
    assert store.find_run(run).info.status == "FINISHED"
    assert history(store, run, "a") == [(1, 1.0)]


def test_a_sender_that_is_never_needed_makes_nothing_and_ends_with_its_parent(tmp_path):
    root = tmp_path / "mlruns"
    code = """
import sys
from eigenexp.tracking.senders import SENDERS
SENDERS.prepare(sys.argv[1])
print(SENDERS._ready[0].pid)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{int(done.stdout)}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{int(done.stdout)}")
    assert done.stderr == ""
    assert not root.exists()
