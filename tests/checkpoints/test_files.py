"""Checkpoint files: whole or absent, verified, and harmless to read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from eigenexp.checkpoints.files import (
    CheckpointWarning,
    find_checkpoint,
    load_checkpoint,
    load_metadata,
    metadata_path,
    save_checkpoint,
)
from eigenexp.checkpoints.lightning_io import AtomicCheckpointIO
from eigenexp.checkpoints.provenance import checkpoint_metadata
from eigenexp.checkpoints.seals import verify_checkpoint
from eigenexp.errors import CheckpointError


def make(step: int, size: int = 100, **facts) -> dict:
    return {
        "global_step": step,
        "state_dict": {},
        "eigenexp": {
            "solver": {"basis": torch.arange(size, dtype=torch.float64) + step},
            "progress": {"eigenvalues": [2.0, 1.0], "residuals": [1e-5, float("inf")]},
            "metadata": checkpoint_metadata(**facts),
        },
    }


def test_round_trip_is_bitwise_and_sealed(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    saved = make(7)
    file_sha256 = save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["eigenexp"]["solver"]["basis"], saved["eigenexp"]["solver"]["basis"])
    assert verify_checkpoint(path).step == 7
    told = json.loads(metadata_path(path).read_text())
    assert told["step"] == 7
    assert told["residuals"] == [1e-5, "inf"]
    assert told["file_sha256"] == file_sha256
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256
    assert load_metadata(path)["step"] == 7
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.metadata.json"]


def test_any_torch_reads_a_sealed_file(tmp_path):
    save_checkpoint(make(1), tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 1
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None


def test_plugin_reads_and_writes_through_lightning(tmp_path):
    plugin = AtomicCheckpointIO()
    path = tmp_path / "x.ckpt"
    plugin.save_checkpoint(make(3), path)
    assert plugin.load_checkpoint(path, weights_only=False)["global_step"] == 3
    plugin.remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make(1, size=4000), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make(1), path)
    content = path.read_bytes()
    for place in [*range(0, len(content), 97), *range(len(content) - 130, len(content))]:
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)


def test_file_of_another_writer_is_checked_by_its_zip_checksums(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save(make(4, size=1000), path)
    assert verify_checkpoint(path).step is None
    content = bytearray(path.read_bytes())
    place = content.index(b"\0\0\0\0\0\x10\x40") if b"\0\0\0\0\0\x10\x40" in content else 4000
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        verify_checkpoint(path)


def test_newest_valid_one_is_found(tmp_path):
    for step in (10, 20):
        save_checkpoint(make(step), tmp_path / f"step-{step}.ckpt")
    save_checkpoint(make(30), tmp_path / "last.ckpt")
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-500])
    with pytest.warns(CheckpointWarning, match="last.ckpt"):
        assert find_checkpoint(tmp_path).name == "step-20.ckpt"


def test_last_wins_a_tie_and_a_newer_history_wins_over_last(tmp_path):
    save_checkpoint(make(10), tmp_path / "step-10.ckpt")
    save_checkpoint(make(10), tmp_path / "last.ckpt")
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    save_checkpoint(make(11), tmp_path / "step-11.ckpt")
    assert find_checkpoint(tmp_path).name == "step-11.ckpt"


def test_nothing_usable_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="got none"):
        find_checkpoint(tmp_path)
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "gone")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(CheckpointError, match="only damaged ones"),
    ):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        find_checkpoint(tmp_path / "nowhere")


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    code = """
import resource, signal, sys, torch
from eigenexp.checkpoints import save_checkpoint
from eigenexp.errors import CheckpointError
save_checkpoint({"global_step": 1}, sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint({"global_step": 2, "big": torch.zeros(10**6)}, sys.argv[1])
except CheckpointError as error:
    print(error)
"""
    path = tmp_path / "last.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "intact" in done.stdout
    assert verify_checkpoint(path).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.metadata.json"]


WRITER = """
import sys, torch
from eigenexp.checkpoints import save_checkpoint
step = 0
while True:
    step += 1
    checkpoint = {"global_step": step, "x": torch.full((200_000,), float(step))}
    save_checkpoint(checkpoint, sys.argv[1] + "/last.ckpt")
    if step == 1:
        print("saved", flush=True)
"""


def wait_for_a_write(folder: Path, size: int) -> None:
    """Return when a temporary file holds ``size`` bytes; writes are seen while they last."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        for path in folder.glob(".*.eigenexp-tmp"):
            with contextlib.suppress(FileNotFoundError):  # renamed since
                if path.stat().st_size >= size:
                    return
    raise TimeoutError(f"expected a temporary file of {size} bytes in {folder}")


def kill_while_writing(folder: Path, times: int) -> int:
    """Kill a writer at many stages of a write; return how many left a temporary file behind."""
    orphans = 0
    for i in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        wait_for_a_write(folder, 800_000 * i // times)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        orphans += len(list(folder.glob(".*.eigenexp-tmp")))
        if (folder / "last.ckpt").exists():
            loaded = load_checkpoint(find_checkpoint(folder))
            assert bool((loaded["x"] == float(loaded["global_step"])).all())
            assert not list(folder.glob(".*.eigenexp-tmp"))
    return orphans


def test_killed_writer_never_leaves_a_broken_checkpoint(tmp_path):
    kill_while_writing(tmp_path, 4)
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.slow
def test_kill_storm(tmp_path):
    assert kill_while_writing(tmp_path, 40) > 0  # else no kill fell into a write


# -- hostile files ---------------------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_objects(marker: Path) -> dict:
    shell = f"touch {marker}"
    return {
        "os.system": Payload(os.system, shell),
        "eval": Payload(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Payload(exec, f"open({str(marker)!r}, 'w')"),
        "subprocess": Payload(subprocess.call, ["touch", str(marker)]),
        "open": Payload(open, str(marker), "w"),
        "getattr": Payload(getattr, "x", "upper"),
        "import": Payload(__import__, "antigravity"),
        "path": Path("/tmp"),
        "module": nn.Linear(2, 2),
        "nested": {"a": [1, {"b": Payload(os.system, shell)}]},
        "torch.load": Payload(torch.load, str(marker)),
        "exception": ValueError("x"),
    }


@pytest.mark.parametrize("kind", sorted(hostile_objects(Path("x"))))
@pytest.mark.parametrize("sealed", [True, False])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, kind, sealed):
    marker, path = tmp_path / "executed", tmp_path / "last.ckpt"
    checkpoint = {"global_step": 1, "payload": hostile_objects(marker)[kind]}
    if sealed:
        save_checkpoint(checkpoint, path)
    else:
        torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="refused" if kind != "getattr" else ":"):
        load_checkpoint(path)
    assert not marker.exists()


def test_other_kinds_of_files_are_refused(tmp_path):
    marker = tmp_path / "executed"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "raw.ckpt").write_bytes(pickle.dumps(Payload(os.system, f"touch {marker}")))
    (bad / "empty.ckpt").write_bytes(b"")
    (bad / "text.ckpt").write_text("PK\x03\x04 is how a zip begins")
    (bad / "folder.ckpt").mkdir()
    os.mkfifo(bad / "pipe.ckpt")
    (bad / "device.ckpt").symlink_to("/dev/zero")
    with zipfile.ZipFile(bad / "zip.ckpt", "w") as archive:
        archive.writestr("../../escape", "x")
    legacy = bad / "legacy.ckpt"
    torch.save(
        {"x": Payload(os.system, f"touch {marker}")}, legacy, _use_new_zipfile_serialization=False
    )
    torch.save([1, 2], bad / "list.ckpt")
    for path in sorted(bad.iterdir()):
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert not marker.exists()
    assert not (tmp_path / "escape").exists()
