"""A password, a token and a user's name: in no file, argument, message, artifact or page.

Real commands against a real server: a fit, a study, a sweep, a resume, a report, a sync, with the
password in the address and a token in the environment.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.processes import SMALL, only_run, run
from tests.tracking.conftest import Server

USER, PASSWORD, TOKEN = "bob7c1", "pw-5e2f90", "tok-a41bd8"
SECRETS = (USER, PASSWORD, TOKEN)
SHORT = [
    *SMALL,
    "solver=power",
    "solver.tol=1e-9",
    "trainer.max_steps=6",
    "trainer.accelerator=cpu",
]


class Arguments(threading.Thread):
    """Reads the argument list of every process there is, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for process in psutil.process_iter():
                try:
                    self.seen.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
            self.over.wait(0.05)


def grep(folder: Path) -> list[str]:
    """Return the files with a secret in them, or in their names."""
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        told = [secret for secret in SECRETS if secret in path.name or secret.encode() in data]
        found += [f"{path}: {told}"] if told else []
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["environment", "command line"])
def test_no_secret_is_anywhere(way: str, tmp_path: Path) -> None:
    place = tmp_path / "server"
    place.mkdir()
    server = Server(place)
    server.start()
    address = server.uri.replace("http://", f"http://{USER}:{PASSWORD}@")
    here = tmp_path / "here"
    (here / "photos").mkdir(parents=True)
    for i in range(2):
        Image.new("L", (20, 20), 40 * i + 40).save(here / "photos" / f"{i}.png")
        Image.effect_noise((20, 20), 40).save(here / "photos" / f"{i}.png")
    # An address on a command line is in its own argument list: the user wrote it there. The
    # processes that it starts are to have it by other means.
    given = [f"logger.tracking_uri='{address}'"] if way == "command line" else []
    variables = {"MLFLOW_TRACKING_TOKEN": TOKEN}
    if not given:
        variables["MLFLOW_TRACKING_URI"] = address
        variables["MLFLOW_TRACKING_PASSWORD"] = PASSWORD
        variables["MLFLOW_TRACKING_USERNAME"] = USER
    told: list[str] = []

    def call(*arguments: str, codes: tuple[int, ...] = (0, 3), secret: list[str] = given) -> str:
        done = run(here, *arguments, *secret, **variables)
        told.extend([done.stdout, done.stderr])
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    watch = Arguments()
    watch.start()
    try:
        call("fit", *SHORT)
        run_id = only_run(here).run_id
        assert len(run_id) == 32  # the server's: it was reached
        call("resume", run_id, "trainer.max_steps=9")
        call("fit", *SHORT[1:], "image=folder", "image.path=photos")
        call("fit", "-m", *SHORT, "solver.seed=1,2")
        call("report", run_id, secret=[])
        call("show", secret=[])
        call("show", run_id, secret=[])
        call("sync", codes=(0, 1), secret=[])
        end = time.monotonic() + 60
        while any(here.glob("mlruns/spool/*/meta.json")) and time.monotonic() < end:
            call("sync", codes=(0, 1), secret=[])
    finally:
        watch.over.set()
        watch.join()
        server.stop()
    assert list(here.glob("*.html"))
    assert list(place.glob("artifacts/**/last.ckpt"))
    assert grep(here) + grep(place) == []
    assert not [text for text in told if any(secret in text for secret in SECRETS)]
    mine = [line for line in watch.seen if not any(text in line for text in given)]
    assert any("eigenexp.tracking" in line for line in mine)
    assert not [line for line in mine if any(secret in line for secret in SECRETS)]
