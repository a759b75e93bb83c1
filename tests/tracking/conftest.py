"""Real parts: SQLite stores, a real tracking server, and a switch between it and its clients."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from eigenexp.tracking import Store, local_store
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.records import session_record
from eigenexp.tracking.spool import Spool


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """Return a database made once; making one takes MLflow over a second."""
    store = local_store(tmp_path_factory.mktemp("template") / "mlruns")
    store.client.search_experiments()
    return store.database


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def root(tmp_path, empty_database) -> Path:
    """Return an ``mlruns`` folder with an empty store."""
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def store(root) -> Store:
    return local_store(root)


def new_spool(store: Store, run_id: str | None = None, resume: bool = False) -> Spool:
    meta = {"root": str(store.root), "uri": store.uri, "experiment": "e", "run_name": "r"}
    spool = Spool.create(store.root, {**meta, "tags": {}, "run_id": run_id})
    spool.append(session_record(resume=resume, run_id=run_id))
    return spool


def drain(spool: Spool, store: Store | None = None) -> Sender:
    """Deliver everything in this process."""
    sender = Sender(spool, store)
    while sender.step():
        pass
    return sender


def point(step: int, stamp: int = 1000, **values: float) -> dict:
    return {"k": "m", "t": stamp + step, "s": step, "v": values}


def history(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    points = store.client.get_metric_history(run_id, key)
    return sorted((p.step, p.value) for p in points)


# -- a server --------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """A real ``mlflow server`` on SQLite, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--port", str(self.port), "--host", "127.0.0.1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environ = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environ, start_new_session=True
            )
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.stop()


class Switch:
    """A door before a server: it can be shut, and each answer can be made to take its time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.delay = 0.0
        self.is_open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self.is_open = False
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    def open(self) -> None:
        self.is_open = True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_open:
                client.close()
                continue
            upstream = socket.create_connection(("127.0.0.1", self.port))
            self._sockets += [client, upstream]
            for source, target, delay in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(
                    target=self._pump, args=(source, target, delay), daemon=True
                ).start()

    def _pump(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:
        try:
            while data := source.recv(65536):
                if delayed:
                    time.sleep(self.delay)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def close(self) -> None:
        self.shut()
        self._listener.close()


@pytest.fixture
def switch(server):
    door = Switch(server.port)
    yield door
    door.close()
