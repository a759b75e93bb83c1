"""Start MLflow and TensorBoard on the folder of runs, and stop both together."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from eigenexp.errors import CheckpointError, TrackingError
from eigenexp.runs.folder import RunFolder, open_root
from eigenexp.tracking import local_store
from eigenexp.tracking.syncing import settle

__all__ = ["commands", "serve"]

_START_SECONDS = 90.0
_RENAME_SECONDS = 5.0
_HOST = "127.0.0.1"


def commands(root: Path, mlflow_port: int, tensorboard_port: int | None) -> dict[str, list[str]]:
    """Return the command of each dashboard, by name; ``None`` for no TensorBoard."""
    store = local_store(root)
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", _HOST]
    mlflow += ["--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", store.uri]
    mlflow += ["--default-artifact-root", str(root / "artifacts")]
    if tensorboard_port is None:
        return {"MLflow": mlflow}
    tensorboard = [sys.executable, "-m", "tensorboard.main", "--host", _HOST]
    tensorboard += ["--port", str(tensorboard_port), "--logdir", str(_named_logs(root))]
    return {"MLflow": mlflow, "TensorBoard": tensorboard}


def serve(
    root: Path, mlflow_port: int, tensorboard_port: int | None, *, browse: bool = False
) -> int:
    """Run the dashboards until Ctrl-C (0) or SIGTERM (143), printing each address as it answers.

    Parameters
    ----------
    root
        Folder of the runs.
    mlflow_port, tensorboard_port
        ``None`` for no TensorBoard.
    browse
        Show each in the web browser, too.

    Raises
    ------
    TrackingError
        When a port is taken or a server ends by itself.
    """
    root = open_root(root)
    ports = {"MLflow": mlflow_port}
    if tensorboard_port is not None:
        ports["TensorBoard"] = tensorboard_port
    for name, port in ports.items():
        if not _is_free(port):
            raise TrackingError(
                f"{name}: expected port {port} to be free, got one in use; "
                f"pass --{name.lower()}-port"
            )
    if "TensorBoard" in ports and importlib.util.find_spec("tensorboard") is None:
        raise TrackingError(
            "TensorBoard: expected it installed; pip install tensorboard, or --no-tensorboard"
        )
    settle(root)  # no page is to say that a dead run goes on
    servers: dict[str, subprocess.Popen[bytes]] = {}
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    # Python alone would end at once on SIGTERM, and leave the servers behind.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        for name, command in commands(root, mlflow_port, tensorboard_port).items():
            log = (root / f"{name.lower()}.log").open("wb")
            with log:
                servers[name] = subprocess.Popen(
                    command, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
                )
        for name, process in servers.items():
            _wait(name, process, ports[name], root)
            page = _runs_page(root) if name == "MLflow" else ""
            address = f"http://{_HOST}:{ports[name]}{page}"
            print(f"{name + ':':<13}{address}", flush=True)
            if browse:
                webbrowser.open(address)
        print("Ctrl-C ends " + ("both" if len(servers) > 1 else "it"), flush=True)
        looked = time.monotonic()
        while all(process.poll() is None for process in servers.values()):
            time.sleep(0.5)
            if time.monotonic() - looked > _RENAME_SECONDS:
                if "TensorBoard" in servers:
                    _named_logs(root)
                settle(root)
                looked = time.monotonic()
        ended = next(name for name, process in servers.items() if process.poll() is not None)
        raise TrackingError(f"{ended} ended by itself; see {root / f'{ended.lower()}.log'}")
    except KeyboardInterrupt:
        return 128 + received[0] if received else 0
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in servers.values():
            process.terminate()
        for process in servers.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _runs_page(root: Path) -> str:
    """Return MLflow's page of the newest run's experiment: its table of runs, nothing to click."""
    client = local_store(root).client
    experiments = [e.experiment_id for e in client.search_experiments(max_results=1000)]
    newest = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    if not newest:
        return ""
    return f"/#/experiments/{newest[0].info.experiment_id}/runs?workflowType=machine_learning"


def _named_logs(root: Path) -> Path:
    """Return a folder of links by which TensorBoard lists runs by title and not by id alone.

    Where links cannot be made the runs keep their ids.
    """
    logs, named = root / "tb", root / ".tb"
    try:
        named.mkdir(exist_ok=True)
        wanted = {_log_name(root, log.name): log for log in logs.glob("*") if log.is_dir()}
        for link in named.iterdir():
            if link.is_symlink() and link.name not in wanted:
                link.unlink()
        for name, log in wanted.items():
            if not (named / name).is_symlink():
                (named / name).symlink_to(log, target_is_directory=True)
    except OSError:
        return logs
    return named


def _log_name(root: Path, run_id: str) -> str:
    """Return a run's title with the beginning of its id, as one plain name of a folder."""
    try:
        title = str(RunFolder(root, run_id).read_record()["title"])
    except (CheckpointError, KeyError):
        return run_id
    plain = re.sub(r"[^\w .=+-]", "_", title).strip(" .")[:80]
    return f"{plain} {run_id[:8]}".strip()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _wait(name: str, process: subprocess.Popen[bytes], port: int, root: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{port}/", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise TrackingError(
        f"{name}: expected an answer on port {port}, got none; see {root / f'{name.lower()}.log'}"
    )
