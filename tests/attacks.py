"""What hostile files of all rooms share: a place, payloads, and what must not happen.

Each kind is opened the way a user would open it and must end in one line that says what is wrong,
or do nothing: nothing of it is executed, no file outside the folder at hand is written, changed or
removed, and no memory or time is taken that the file's own size does not explain.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eigenexp.checkpoints.files import METADATA_KEY, save_checkpoint
from eigenexp.errors import EigenexpError
from eigenexp.experiments.config import compose_config, plain_config
from eigenexp.runs.folder import RunFolder
from eigenexp.tracking import Store, local_store


@dataclass(frozen=True)
class Place:
    """Where an attack happens: ``here`` is the user's, ``outside`` must stay as it is."""

    here: Path
    outside: Path
    database: Callable[[], Path]

    @property
    def canary(self) -> Path:
        return self.outside / "executed"

    def store(self) -> Store:
        """Return an empty store; the database is copied, making one takes MLflow seconds."""
        store = local_store(self.here / "mlruns")
        store.root.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.database(), store.database)
        return store

    def touch(self) -> str:
        return f"touch {self.canary}"


Attack = Callable[[Place], object]
"""Opens its file, and raises an EigenexpError or returns what a page would show."""


class Attacks(dict[str, Attack]):
    """By name."""

    def add(self, function: Attack) -> Attack:
        self[function.__name__] = function
        return function


class Payload:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def bomb(path: Path, size: int, seal: bool = False) -> None:
    """Write a checkpoint whose storage is ``size`` zeros, deflated to a thousandth."""
    torch.save({"global_step": 1, "x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as entry:
                for _ in range(size >> 20):
                    entry.write(bytes(1 << 20))
    if seal:
        seal_by_hand(path)


def seal_by_hand(path: Path) -> None:
    """Give a file the seal of an attacker who knows how it is made."""
    body = path.read_bytes()[:-2]
    magic = b"eigenexp-seal-1 step=%020d sha256=" % 1
    comment = magic + hashlib.sha256(body + magic).hexdigest().encode()
    path.write_bytes(body + struct.pack("<H", len(comment)) + comment)


def safetensors_file(
    path: Path, header: bytes, length: int | None = None, body: bytes = b""
) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def saved_run(place: Place, **config: Any) -> RunFolder:
    """A run whose checkpoint holds a configuration of the attacker's choice."""
    settings = plain_config(compose_config(["image.crop=[120,220,20,20]", "logger=none"]))
    run = RunFolder(place.here / "mlruns", "abc123")
    run.write_record(status="KILLED", config=settings, title="x")
    facts = {"schema_version": 1, "config": {**settings, **config}}
    save_checkpoint({"global_step": 1, METADATA_KEY: {"metadata": facts}},
                    run.checkpoints / "last.ckpt")  # fmt: skip
    return run


def peak_memory(reset: bool = False) -> float:
    """Return the most memory this process held since the last reset, in MB; 0 where unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return float(line.split()[1]) / 1024


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def check_nothing_happens(attack: Attack, place: Place) -> None:
    """Let it be opened, and look at what came of it."""
    (place.outside / "secret").write_text("root:x:0:0")
    before = tree(place.outside)
    before_memory = peak_memory(reset=True)
    began = time.process_time()
    shown, told = None, ""
    try:
        shown = attack(place)
    except EigenexpError as error:
        told = str(error)
    assert "\n" not in told
    assert "root:x" not in told
    assert shown is None or isinstance(shown, str), f"it was accepted: {shown!r}"
    assert tree(place.outside) == before
    assert sorted(p.name for p in place.here.parent.iterdir()) == ["here", "outside"]
    assert time.process_time() - began < 60
    assert peak_memory() - before_memory < 350
    if isinstance(shown, str):
        assert "<script>alert" not in shown
        assert "<img src=x" not in shown
