"""Files that people name: what is missing is said to be missing, what is damaged to be damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eigenexp.errors import CheckpointError, InputError
from eigenexp.storage.csv_files import read_csv
from eigenexp.storage.json_files import read_json


def test_json_is_missing_damaged_or_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(CheckpointError, match=r"expected a record, got no such file$"):
        read_json(file, "a record")
    file.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_json(file, "a record")
    file.write_text('{"a": 1}')
    assert read_json(file, "a record") == {"a": 1}


def test_table_is_missing_a_pipe_damaged_or_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with pytest.raises(InputError, match=r"expected a table as CSV, got no such file$"):
        read_csv(file, "a table")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="expected a table, got"):
        read_csv(tmp_path / "pipe.csv", "a table")
    file.write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(InputError, match="as CSV"):
        read_csv(file, "a table")
    file.write_text("\ufeffa,b\n1,2\n3\n")
    assert read_csv(file, "a table") == (["a", "b"], [{"a": "1", "b": "2"}, {"a": "3", "b": None}])
