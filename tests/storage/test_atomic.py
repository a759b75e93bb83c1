"""Files that are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eigenexp.storage.atomic import copy_atomic, remove_orphans, replacing, write_json_atomic


def test_temporary_file_of_a_living_writer_stays(tmp_path):
    with replacing(tmp_path / "last.ckpt") as file:
        file.write(b"half")
        assert remove_orphans(tmp_path) == []
        file.write(b" whole")
    assert (tmp_path / "last.ckpt").read_bytes() == b"half whole"
    (tmp_path / ".last.ckpt.1-1.eigenexp-tmp").write_bytes(b"dead")
    (tmp_path / ".last.ckpt.tmp").write_bytes(b"somebody else's")
    assert [p.name for p in remove_orphans(tmp_path)] == [".last.ckpt.1-1.eigenexp-tmp"]
    assert (tmp_path / ".last.ckpt.tmp").exists()


def test_orphans_are_found_in_folders_inside(tmp_path):
    deep = tmp_path / "a" / "b"
    copy_atomic(Path(__file__), deep / "copy.py")
    assert (deep / "copy.py").read_bytes() == Path(__file__).read_bytes()
    (deep / ".copy.py.1-1.eigenexp-tmp").write_bytes(b"dead")
    assert remove_orphans(tmp_path) == []
    assert [p.name for p in remove_orphans(tmp_path, deep=True)] == [".copy.py.1-1.eigenexp-tmp"]
    assert [p.name for p in deep.iterdir()] == ["copy.py"]


def test_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "a").write_text("before")

    def write_half() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "before")]


def test_json_is_strict(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"x": [float("nan"), float("-inf"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": ["nan", "-inf", 1.0]}
