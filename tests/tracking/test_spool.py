"""The journal: nothing logged is lost, nothing torn is read."""

import errno
import os
import subprocess
import sys

import pytest

from eigenexp.errors import TrackingError
from eigenexp.tracking import files, spool
from eigenexp.tracking.outbox import Outbox
from eigenexp.tracking.spool import Spool, SpoolState, find_spools


@pytest.fixture
def journal(tmp_path) -> Spool:
    return Spool.create(tmp_path, {"uri": "sqlite:///x"})


def steps(journal: Spool, state: SpoolState | None = None) -> list[int]:
    return [record["s"] for record, *_ in journal.read(state or SpoolState(), 10**6)]


def test_records_are_read_in_order_and_from_any_place(journal):
    for step in range(5):
        journal.append({"s": step})
    assert steps(journal) == [0, 1, 2, 3, 4]
    places = [(segment, offset) for _, segment, offset in journal.read(SpoolState(), 100)]
    assert places[-1] == journal.position
    assert steps(journal, SpoolState(segment=places[1][0], offset=places[1][1])) == [2, 3, 4]
    assert [r["s"] for r, *_ in journal.read(SpoolState(), 2)] == [0, 1]


def test_segments_follow_each_other_and_are_dropped(journal, monkeypatch):
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 50)
    for step in range(40):
        journal.append({"s": step})
    assert len(list(journal.folder.glob("journal-*"))) > 5
    assert steps(journal) == list(range(40))
    last = [(s, o) for _, s, o in journal.read(SpoolState(), 20)][-1]
    journal.drop_segments(last[0])
    assert steps(journal, SpoolState(segment=last[0], offset=last[1])) == list(range(20, 40))


def test_torn_last_line_is_not_read_and_is_cut_by_the_next_writer(journal):
    journal.append({"s": 0})
    journal.close()
    path = next(journal.folder.glob("journal-*"))
    with path.open("ab") as file:
        file.write(b'{"s": 1')
    assert steps(journal) == [0]
    again = Spool(journal.folder)
    again.append({"s": 2})
    assert steps(again) == [0, 2]


def test_damaged_lines_are_told_apart_from_records(journal):
    journal.append({"s": 0})
    journal.close()
    path = next(journal.folder.glob("journal-*"))
    deep = b'{"k": ' + b"[" * 100_000 + b"\n"
    path.write_bytes(path.read_bytes() + b"\xff\x00garbage\n[1]\n" + deep)
    again = Spool(journal.folder)
    again.append({"s": 2})
    records = [record for record, *_ in again.read(SpoolState(), 99)]
    assert [r.get("s") for r in records] == [0, None, None, None, 2]
    assert [r.get("k") for r in records] == [None, "damaged", "damaged", "damaged", None]


def test_files_are_on_disk_before_the_record_that_names_them(tmp_path, monkeypatch):
    from eigenexp.tracking import local_store

    monkeypatch.setattr(Outbox, "_launch", lambda self: None)
    box = Outbox(local_store(tmp_path), experiment="e")
    (tmp_path / "a.txt").write_text("x")
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")),
                                                 real(fd)))  # fmt: skip
    written = []
    monkeypatch.setattr(box, "append", lambda record: written.append((record, list(synced))))
    box.append_files({"k": "a", "slot": None}, [(tmp_path / "a.txt", "a.txt")], "results")
    box.append_made(two_files)
    assert len(written) == 3
    for record, before in written:
        (name,) = record["files"]
        assert {str(box.spool.folder / name), str((box.spool.folder / name).parent)} <= set(before)
    assert len(synced) == 3 + 4  # each file, its folder, the folder of that


def two_files(folder):
    made = []
    for name in ("1", "2"):
        (folder / name).write_text(name)
        made.append(({"k": "a", "slot": None, "to": ""}, [folder / name]))
    return made


def test_killed_writer_loses_nothing(tmp_path):
    code = """
import os, sys
from eigenexp.tracking.spool import Spool
journal = Spool.create(sys.argv[1], {})
for step in range(1000):
    journal.append({"s": step})
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (found,) = find_spools(tmp_path)
    assert steps(found) == list(range(1000))


def test_unwritable_root_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="expected a folder that can be written") as caught:
        Spool.create(tmp_path / "file", {})
    assert "\n" not in str(caught.value)


def test_full_disk_holds_records_back_and_goes_on(tmp_path, monkeypatch, caplog):
    from eigenexp.tracking import local_store

    monkeypatch.setattr(Outbox, "_launch", lambda self: None)
    outbox = Outbox(local_store(tmp_path), experiment="e")
    real, full = os.write, [True]

    def write(fd: int, data: bytes) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(spool.os, "write", write)
    for step in range(3):
        outbox.append({"s": step})
    full[0] = False
    outbox.append({"s": 3})
    assert [r["s"] for r, *_ in outbox.spool.read(SpoolState(), 99) if "s" in r] == [0, 1, 2, 3]
    assert caplog.text.count("No space left") == 1
    outbox.close(0.0)


def test_partial_write_is_taken_back(journal, monkeypatch):
    journal.append({"s": 0})
    real = os.write
    monkeypatch.setattr(spool.os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(OSError, match="No space"):
        journal.append({"s": 1})
    monkeypatch.undo()
    journal.append({"s": 2})
    assert steps(journal) == [0, 2]


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/.", "a\\b", "C:/x", "a\x00b", "a\nb"],
)
def test_paths_that_leave_their_folder_are_refused(path):
    with pytest.raises(TrackingError, match="relative path"):
        files.safe_relative(path)


def test_ordinary_paths_pass():
    for path in ("a", "checkpoints/last/last.ckpt", "images/a+step+1.png", "..a/b.."):
        assert files.safe_relative(path) == path


def test_snapshot_keeps_the_content_when_the_file_is_replaced(tmp_path):
    from eigenexp.storage.atomic import write_atomic

    write_atomic(tmp_path / "a", b"old")
    (tmp_path / "kept").mkdir()
    kept = files.snapshot(tmp_path / "a", tmp_path / "kept", "a")
    write_atomic(tmp_path / "a", b"new")
    assert kept.read_bytes() == b"old"
