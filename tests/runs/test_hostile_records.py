"""Records and names of runs made by somebody who means harm."""

from __future__ import annotations

import io
import os

import pytest

from eigenexp.cli import main
from eigenexp.runs.folder import find_run, list_runs
from tests.attacks import (
    Attacks,
    Place,
    check_nothing_happens,
    saved_run,
)

ATTACKS = Attacks()
attack = ATTACKS.add


@attack
def run_id_with_separators(place: Place) -> object:
    return find_run("../../outside", place.here / "mlruns")


@attack
def record_nested_a_hundred_thousand_deep(place: Place) -> object:
    run = saved_run(place)
    run.record_path.write_text("[" * 100_000 + "]" * 100_000)
    return run.read_record()


@attack
def record_with_nan_and_endless_numbers(place: Place) -> object:
    run = saved_run(place)
    run.record_path.write_text('{"a": NaN, "b": -Infinity, "c": ' + "9" * 10_000 + "}")
    return run.read_record()


@attack
def record_that_is_a_pipe(place: Place) -> object:
    run = saved_run(place)
    run.record_path.unlink()
    os.mkfifo(run.record_path)
    assert list_runs(run.root) == []
    return run.read_record()


@attack
def record_linked_to_a_device(place: Place) -> object:
    run = saved_run(place)
    run.record_path.unlink()
    run.record_path.symlink_to("/dev/zero")
    assert list_runs(run.root) == []
    return run.read_record()


@attack
def record_of_terabytes(place: Place) -> object:
    run = saved_run(place)
    os.truncate(run.record_path, 1 << 40)
    return run.read_record()


@attack
def escape_codes_in_a_title(place: Place) -> object:
    """A terminal obeys escape codes: the title is printed without them."""
    run = saved_run(place)
    run.write_record(title="\x1b]0;owned\x07\x1b[2J\r\nname", created="\x1b[31m", status="\x9b1m")
    output = io.StringIO()
    import contextlib

    with contextlib.redirect_stdout(output):
        assert main(["show", "--root", str(run.root)]) == 0
        assert main(["show", run.run_id, "--root", str(run.root)]) == 0
    assert not set(output.getvalue()) & {"\x1b", "\x07", "\x9b", "\r"}
    assert "name" in output.getvalue()
    return None


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)
