"""Passports and manifests: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eigenexp as ee
from eigenexp.errors import CheckpointError, InputError
from eigenexp.stimuli import Display, Manifest, Passport, Prediction, Reference


def passport(**changes: Any) -> Passport:
    fields: dict[str, Any] = {
        "id": "camera-onoff-top-0-L1p",
        "file": "stimuli/camera-onoff-top-0-L1p.png",
        "file_sha256": "ab" * 32,
        "reference": "camera",
        "picture": "camera",
        "picture_sha256": "cd" * 32,
        "model": "OnOff",
        "fingerprint": "ef" * 32,
        "noise": "gaussian(std=0.01)",
        "perturbations": "everything",
        "distortion": "camera-onoff-top-0",
        "pair": "top",
        "index": 0,
        "eigenvalue": 0.1 + 0.2,
        "error_bound": None,
        "status": "converged",
        "level": 1,
        "alpha": 0.05,
        "sign": -1,
        "d_prime_linear": 1.01,
        "d_prime_true": 1 / 3,
        "d_prime_rounded": 0.97,
        "gain": 1.0,
        "fraction_correct": 0.76,
        "peak_grey_levels": 4.5,
        "rms_grey_levels": 0.5,
        "clipped_pixels": 3,
        "display_gamma": "2.2",
        "pixels_per_degree": None,
        "run_id": "0123abcd",
        "flags": ("rounding", "clipping"),
        "predictions": (Prediction("OnOff", "ef" * 32, "gaussian(std=0.01)", 0.3, 1.0, 1.0, 0.9),),
    }
    return Passport(**{**fields, **changes})


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "task": "2afc",
        "alternatives": 2,
        "display": Display("srgb", False, 8, "plain", 0.0, 1.0, None),
        "references": (Reference("camera", "camera", "cd" * 32, "camera.png", "12" * 32),),
        "stimuli": (passport(), passport(id="other", level=None, flags=(), predictions=())),
    }
    return Manifest(**{**fields, **changes})


def test_both_files_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    written = manifest()
    path = ee.stimuli.write_manifest(written, tmp_path)
    assert ee.stimuli.read_manifest(tmp_path) == ee.stimuli.read_manifest(path) == written
    assert ee.stimuli.read_table(tmp_path) == written.stimuli
    assert written.by_id["other"].level is None
    assert ee.stimuli.read_manifest(path).id == written.id
    assert json.loads(path.read_text())["id"] == written.id
    changed = replace(written, stimuli=(passport(alpha=0.06),))
    assert changed.id != written.id


def changed(path: Path, **changes: Any) -> None:
    facts = json.loads(path.read_text())
    facts["stimuli"][0] |= changes
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"alpha": 0.06}, "changed by hand"),
        ({"alpha": "0.06"}, r"stimuli\[0\].alpha: expected float, got str"),
        ({"alpha": True}, "expected float, got bool"),
        ({"alpha": -1}, "above 0"),
        ({"sign": 0}, "expected -1 or 1"),
        ({"pair": "side"}, "expected one of top"),
        ({"file": "../../etc/passwd"}, "a path inside the folder"),
        ({"file": "/etc/passwd"}, "a path inside the folder"),
        ({"file": "C:\\x.png"}, "a path inside the folder"),
        ({"id": "<script>"}, "expected letters"),
        ({"file_sha256": "abc"}, "64 hexadecimal"),
        ({"reference": "none"}, "expected the reference among 1 pictures"),
        ({"id": "other"}, "more than once"),
        ({"more": 1}, r"unknown fields \['more'\]"),
        ({"predictions": [{"model": "x"}]}, "missing fields"),
    ],
)
def test_what_was_changed_by_hand_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = ee.stimuli.write_manifest(manifest(), tmp_path)
    changed(path, **changes)
    with pytest.raises(CheckpointError, match=told):
        ee.stimuli.read_manifest(tmp_path)


def test_a_folder_without_one_a_newer_one_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the manifest"):
        ee.stimuli.read_manifest(tmp_path)
    path = ee.stimuli.write_manifest(manifest(), tmp_path)
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "schema_version": 99}))
    with pytest.raises(CheckpointError, match="update eigenexp"):
        ee.stimuli.read_manifest(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        ee.stimuli.read_manifest(tmp_path)
    table = tmp_path / "manifest.csv"
    table.write_text(table.read_text().replace(",converged,", ",converged,x,"))
    with pytest.raises(CheckpointError, match="expected a table of stimuli"):
        ee.stimuli.read_table(table)


def test_an_id_stands_for_one_stimulus() -> None:
    with pytest.raises(InputError, match="more than once"):
        manifest(stimuli=(passport(), passport()))
