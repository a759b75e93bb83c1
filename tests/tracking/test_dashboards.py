"""The two dashboards: started together, answering, stopped together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from eigenexp.errors import TrackingError
from eigenexp.runs.folder import RunFolder
from eigenexp.tracking import local_store
from eigenexp.tracking.dashboards import _named_logs, _runs_page, serve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"port {port} to be free.*--tensorboard-port"):
            serve(tmp_path, free_port(), port)


def test_tensorboard_lists_runs_by_title_and_no_title_leads_out(tmp_path: Path) -> None:
    titles = {"a" * 32: "OnOff at camera", "b" * 32: "../../etc <script>", "c" * 32: None}
    for run_id, title in titles.items():
        (tmp_path / "tb" / run_id).mkdir(parents=True)
        if title is not None:
            RunFolder(tmp_path, run_id).write_record(title=title)
    named = _named_logs(tmp_path)
    links = {link.name: link.resolve().name for link in named.iterdir()}
    assert links["OnOff at camera aaaaaaaa"] == "a" * 32
    assert links["c" * 32] == "c" * 32
    assert sorted(links.values()) == sorted(titles)
    RunFolder(tmp_path, "a" * 32).write_record(title="renamed")
    assert {link.name for link in _named_logs(tmp_path).iterdir()} >= {"renamed aaaaaaaa"}
    assert len(list(named.iterdir())) == 3


def test_mlflow_is_opened_at_the_newest_table_of_runs(tmp_path: Path) -> None:
    assert _runs_page(tmp_path) == ""
    store = local_store(tmp_path)
    store.create_run("first")
    time.sleep(0.01)
    store.create_run("second")
    experiment = store.experiment_id("second")
    assert _runs_page(tmp_path).startswith(f"/#/experiments/{experiment}/runs?")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_both_answer_and_a_signal_stops_both(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    ports = {"MLflow": free_port(), "TensorBoard": free_port()}
    command = [sys.executable, "-m", "eigenexp.cli", "ui", "--root", str(tmp_path / "mlruns")]
    for name, port in ports.items():
        command += [f"--{name.lower()}-port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell that started the tests in the background has SIGINT ignored in all of them.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        for name, port in ports.items():
            assert any(name in line and f"http://127.0.0.1:{port}" in line for line in lines)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                assert name.lower() in answer.read().decode().lower()
        assert "Ctrl-C" in lines[2]
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        deadline = time.monotonic() + 30
        for port in ports.values():  # nobody listens any more, workers included
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) != 0:
                        break
                time.sleep(0.2)
            else:
                pytest.fail(f"port {port} is still served")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_mlflow_alone_is_shown_in_the_browser(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/shown\n')
    browser.chmod(0o755)
    port = free_port()
    command = [sys.executable, "-m", "eigenexp.cli", "ui", "--root", str(tmp_path / "mlruns")]
    process = subprocess.Popen(
        [*command, "--no-tensorboard", "--open", "--mlflow-port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "BROWSER": f"{browser} %s"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].split() == ["MLflow:", f"http://127.0.0.1:{port}"]
        assert lines[1] == "Ctrl-C ends it\n"
        end = time.monotonic() + 20
        while not (tmp_path / "shown").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (tmp_path / "shown").read_text().strip() == f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
