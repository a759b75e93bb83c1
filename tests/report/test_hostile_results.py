"""Results made by somebody who means harm: opened, and shown as a page."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import eigenexp as ee
from eigenexp.pictures.saving import save_picture
from eigenexp.report import load_run, render_report
from eigenexp.report.sources import read_convergence
from eigenexp.spectrum import Spectrum
from tests.attacks import (
    Attacks,
    Place,
    check_nothing_happens,
    safetensors_file,
    saved_run,
)
from tests.report.conftest import make_run, make_spectrum

ATTACKS = Attacks()
attack = ATTACKS.add


@attack
def safetensors_header_of_endless_length(place: Place) -> object:
    return Spectrum.load(safetensors_file(place.here / "s.safetensors", b"{}", 2**63 - 1))


@attack
def safetensors_header_longer_than_the_file(place: Place) -> object:
    return Spectrum.load(safetensors_file(place.here / "s.safetensors", b"{}", 99_000_000))


@attack
def safetensors_header_nested_deep(place: Place) -> object:
    return Spectrum.load(safetensors_file(place.here / "s.safetensors", b'{"a":' * 100_000))


@attack
def safetensors_offsets_outside_the_file(place: Place) -> object:
    entry = {"dtype": "F64", "shape": [1 << 20], "data_offsets": [0, 8 << 20]}
    header = json.dumps({"eigenvalues": entry}).encode()
    return Spectrum.load(safetensors_file(place.here / "s.safetensors", header))


def spectrum_with(place: Place, **changes: Any) -> Path:
    """A spectrum file whose JSON header was altered."""
    path = make_spectrum().save(place.here / "s.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    facts = {**json.loads(header["__metadata__"]["eigenexp.spectrum"]), **changes}
    header["__metadata__"]["eigenexp.spectrum"] = json.dumps(facts)
    return safetensors_file(path, json.dumps(header).encode(), body=content[8 + length :])


@attack
def spectrum_with_unknown_words(place: Place) -> object:
    return Spectrum.load(spectrum_with(place, stop_reason="__import__('os')"))


@attack
def spectrum_with_facts_of_wrong_kinds(place: Place) -> object:
    return Spectrum.load(spectrum_with(place, schema_version=[1], metadata="x"))


@attack
def spectrum_with_numbers_beyond_all_bounds(place: Place) -> object:
    return Spectrum.load(spectrum_with(place, num_products=float("inf")))


@attack
def spectrum_with_facts_nested_deep(place: Place) -> object:
    path = make_spectrum().save(place.here / "s.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["eigenexp.spectrum"] = "[" * 100_000 + "]" * 100_000
    return Spectrum.load(
        safetensors_file(path, json.dumps(header).encode(), body=content[8 + length :])
    )


@attack
def spectrum_that_is_a_pipe(place: Place) -> object:
    os.mkfifo(place.here / "spectrum.safetensors")
    return Spectrum.load(place.here / "spectrum.safetensors")


@attack
def curves_that_are_a_pipe(place: Place) -> object:
    os.mkfifo(place.here / "convergence.csv")
    return render_report([make_run(history=read_convergence(place.here / "convergence.csv"))])


@attack
def curves_linked_to_a_device(place: Place) -> object:
    (place.here / "convergence.csv").symlink_to("/dev/zero")
    return render_report([make_run(history=read_convergence(place.here / "convergence.csv"))])


@attack
def spectrum_with_nan_and_infinity(place: Place) -> object:
    """NaN is a number one may meet: the page shows it and does not fail."""
    path = spectrum_with(place, scale=float("nan"), tol=float("inf"))
    spectrum = replace(Spectrum.load(path), eigenvalues=torch.full((4,), float("nan")))
    return render_report([ee.report_from(spectrum)])


@attack
def spectrum_linked_to_a_device(place: Place) -> object:
    (place.here / "spectrum.safetensors").symlink_to("/dev/zero")
    return Spectrum.load(place.here / "spectrum.safetensors")


@attack
def curves_with_hostile_cells(place: Place) -> object:
    path = place.here / "convergence.csv"
    path.write_text(
        "products,seconds,residual/0,residual/<script>,eigenvalue/0,__class__\n"
        "1,1,1e999,1,=cmd|'/c calc'!A1,x\n"
        'nan,2,-1,"' + "9" * 100_000 + '",2,\n3\n'
    )
    return render_report([make_run(history=read_convergence(path))])


@attack
def curves_with_endless_cells(place: Place) -> object:
    path = place.here / "convergence.csv"
    path.write_text('products\n"' + "1" * 3_000_000)
    return render_report([make_run(history=read_convergence(path))])


SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def script_in(place: Place, **changes: Any) -> object:
    """A results folder with a script in one of its texts, reported as a user would."""
    run = saved_run(place)
    run.results.mkdir(parents=True)
    facts = {key: changes.pop(key) for key in ("metadata", "notes", "method") if key in changes}
    spectrum = make_spectrum(**facts)
    spectrum.save(run.results / "spectrum.safetensors")
    picture = ee.load_picture("camera", crop=[0, 0, 12, 16])
    named = replace(picture, name=changes.pop("name", "camera"))
    save_picture(named, run.results / "picture.safetensors")
    run.write_record(**changes)
    loaded = replace(load_run(run.run_id, run.root))
    return render_report([loaded, loaded])


@attack
def script_in_a_run_name(place: Place) -> object:
    return script_in(place, title=SCRIPT, status=SCRIPT, created=SCRIPT)


@attack
def script_in_a_model_name(place: Place) -> object:
    return script_in(place, metadata={"model": {"class": SCRIPT, SCRIPT: [SCRIPT]}})


@attack
def script_in_notes_and_method(place: Place) -> object:
    return script_in(place, notes=(SCRIPT,), method=SCRIPT)


@attack
def script_in_tags_and_paths(place: Place) -> object:
    config = {"tags": {SCRIPT: SCRIPT}, "root": f"/{SCRIPT}", "image": {"source": SCRIPT}}
    return script_in(place, metadata={"config": config}, config=config)


@attack
def script_in_a_picture_name(place: Place) -> object:
    return script_in(place, name=SCRIPT)


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)
