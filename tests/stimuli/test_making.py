"""Exports: d′ that was asked for, files that hold it, flags by what the files hold."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import eigenexp as ee
from eigenexp.analysis.units import fraction_correct
from eigenexp.errors import EigenexpError, InputError
from eigenexp.pictures import Picture
from eigenexp.spectrum import PairStatus
from eigenexp.stimuli import FLAGS, Made, Source

from .conftest import solved


def shown(made: Made, file: str, bits: int = 8) -> np.ndarray[Any, Any]:
    """Picture values of a file by Pillow alone, in a display from 0 to 1."""
    return np.asarray(Image.open(made.folder / file)).astype(float)[None] / (2**bits - 1)


def seen(source: Source, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """d′ of two pictures for Gaussian noise, from the model itself."""
    std = source.noise.std  # type: ignore[attr-defined]
    with torch.no_grad():
        f, g = (source.model(torch.from_numpy(x)[None]) for x in (a, b))
    parts = [f - g] if isinstance(f, torch.Tensor) else [p - q for p, q in zip(f, g, strict=True)]
    return math.sqrt(sum(float(p.square().sum()) for p in parts)) / std


def test_each_stimulus_has_the_d_prime_that_its_passport_says(
    on_off: Source, tmp_path: Path
) -> None:
    made = ee.stimuli.make(on_off, tmp_path / "s", controls=1, signs="both", allow=FLAGS)
    assert len(made.manifest.stimuli) == 3 * 2 * 5
    assert made.left_out == ()
    x = on_off.picture.tensor[0].numpy()
    for one in made.manifest.stimuli:
        file, reference = shown(made, one.file), made.manifest.reference_of(one)
        if one.pair != "control":
            e = on_off.spectrum.distortion(one.index).numpy()
            wanted = x + one.sign * one.alpha * e
            assert np.abs(255 * (file - wanted.clip(0, 1))).max() <= 0.5 + 1e-4
            assert seen(on_off, wanted, x) == pytest.approx(one.d_prime_true, rel=1e-9)
            assert one.peak_grey_levels == pytest.approx(255 * one.alpha * np.abs(e).max())
            assert one.clipped_pixels == ((wanted < -1e-9) | (wanted > 1 + 1e-9)).sum()
            assert one.error_bound is not None
        assert one.d_prime_true == pytest.approx(one.level, rel=1e-4)
        assert one.d_prime_linear == pytest.approx(one.alpha * one.eigenvalue**0.5)
        read = seen(on_off, file, shown(made, reference.file))
        assert one.d_prime_rounded == pytest.approx(read, rel=1e-12, abs=1e-12)
        assert one.fraction_correct == fraction_correct(one.d_prime_rounded)
        spoiled = abs(one.d_prime_rounded - one.d_prime_true) > 0.1 * one.d_prime_true
        assert spoiled == bool({"rounding", "clipping"} & set(one.flags))
        assert one.predictions[0].d_prime_rounded == one.d_prime_rounded
        assert one.predictions[0].eigenvalue == pytest.approx(one.eigenvalue, rel=1e-6)
        content = (made.folder / one.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one.file_sha256
    assert ee.stimuli.read_manifest(made.folder) == made.manifest
    assert ee.stimuli.read_table(made.folder) == made.manifest.stimuli


def test_what_is_spoiled_is_left_out_unless_asked_for(on_off: Source, tmp_path: Path) -> None:
    all_made = ee.stimuli.make(on_off, tmp_path / "all", controls=2, allow=FLAGS)
    everything = all_made.manifest.stimuli
    good = {one.id for one in everything if not one.flags}
    flags = {flag for one in everything for flag in one.flags}
    assert {"rounding", "validity"} <= flags
    assert 0 < len(good) < len(everything)
    made = ee.stimuli.make(on_off, tmp_path / "good", controls=2)
    assert {one.id for one in made.manifest.stimuli} == good
    assert {one.id for one in made.left_out} == {one.id for one in everything} - good
    files = {path.name for path in (tmp_path / "good" / "pictures").iterdir()}
    assert files == {f"{name}.png" for name in good} | {"camera-reference.png"}
    (first, *_) = [one for one in made.left_out if "rounding" in one.why]
    assert "rounding leaves d′ =" in first.why


def test_rounding_adds_what_was_measured(on_off_std_1: Source, tmp_path: Path) -> None:
    vector = on_off_std_1.spectrum.distortion(-1).abs().max()
    peaks = {1: 356, 4: 21, 16: 2.0, 48: 1.1}
    amplitudes = [float(peak / 255 / vector) for peak in peaks]
    made = ee.stimuli.make(
        on_off_std_1, tmp_path / "b", amplitudes=amplitudes, pairs=["bottom"], allow=FLAGS
    )
    for one, (peak, ratio) in zip(made.manifest.stimuli, peaks.items(), strict=True):
        assert one.peak_grey_levels == pytest.approx(peak)
        measured = (one.d_prime_rounded / one.d_prime_true) ** 2
        assert measured == pytest.approx(ratio, rel=0.02)
    vector = on_off_std_1.spectrum.distortion(0).abs().max()
    made = ee.stimuli.make(
        on_off_std_1, tmp_path / "t", amplitudes=[float(0.4 / 255 / vector)], pairs=["top"],
        allow=FLAGS,
    )  # fmt: skip
    assert made.manifest.stimuli[0].d_prime_rounded == 0  # below half a level nothing is written
    assert made.manifest.stimuli[0].flags == ("rounding",)


def test_levels_beyond_a_radius_say_so_and_a_span_stays_inside(
    on_off_std_1: Source, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"none of 10; the first: .*beyond the validity radius.*gain="
    ):
        ee.stimuli.make(on_off_std_1, tmp_path / "none", bits=16)
    made = ee.stimuli.make(on_off_std_1, tmp_path / "s", span=(0.0005, 4, 4), bits=16, signs="both")
    assert len(made.manifest.stimuli) == 16
    assert made.left_out == ()
    levels = [one.level for one in made.manifest.stimuli[:4]]
    assert levels[0] == 0.0005
    ratios = np.diff(np.log(levels))
    assert ratios == pytest.approx(ratios[0])
    assert levels[-1] < 4
    for one in made.manifest.stimuli:
        assert abs(one.d_prime_true / one.d_prime_linear - 1) <= 0.1 + 1e-3
    gained = ee.stimuli.make(on_off_std_1, tmp_path / "g", levels=[1], gain=200, bits=16)
    top = gained.manifest.stimuli[0]
    assert top.d_prime_true == pytest.approx(1, rel=1e-4)
    assert top.alpha * top.eigenvalue**0.5 == pytest.approx(1 / 200, rel=0.1)


@pytest.mark.parametrize("rounding", ["plain", "dithered", "model"])
@pytest.mark.parametrize(
    ("linear_light", "display"), [(False, "srgb"), (True, "srgb"), (True, 2.2)]
)
def test_files_hold_what_was_meant(
    on_off: Source, tmp_path: Path, rounding: str, linear_light: bool, display: Any
) -> None:
    made = ee.stimuli.make(
        on_off, tmp_path / "s", levels=[0.5, 2], rounding=rounding, display=display,
        linear_light=linear_light, allow=FLAGS,
    )  # fmt: skip
    most = 0.5 if rounding == "plain" else 1.0
    x = on_off.picture.tensor[0].numpy()
    for one in made.manifest.stimuli:
        light = (x + one.signed_alpha * on_off.spectrum.distortion(one.index).numpy()).clip(0, 1)
        part = light
        if linear_light and display == 2.2:
            part = light ** (1 / 2.2)
        elif linear_light:
            curve = 1.055 * light ** (1 / 2.4) - 0.055
            part = np.where(light <= 0.0031308, 12.92 * light, curve)
        levels = 255 * shown(made, one.file)
        assert np.abs(levels - 255 * part).max() <= most + 1e-4
        assert one.display_gamma == str(display)


def test_sixteen_bits_hold_small_changes(on_off: Source, tmp_path: Path) -> None:
    made = ee.stimuli.make(on_off, tmp_path / "s", bits=16, levels=[0.25, 1])
    assert len(made.manifest.stimuli) == 4
    x = on_off.picture.tensor[0].numpy()
    for one in made.manifest.stimuli:
        assert one.d_prime_rounded == pytest.approx(one.level, rel=0.01)
        wanted = x + one.signed_alpha * on_off.spectrum.distortion(one.index).numpy()
        off = 65535 * (shown(made, one.file, 16) - wanted.clip(0, 1))
        assert np.abs(off).max() <= 0.5 + 1e-2


def test_colour_in_eight_and_sixteen_bits(tmp_path: Path) -> None:
    picture = ee.load_picture("coffee", crop=[100, 200, 8, 8], channels="color", dtype="float64")
    model, noise = ee.models.Gaussian(kernel_size=5, std=1.0).double(), ee.noise.Gaussian(0.01)
    operator = ee.FisherOperator(model, picture.tensor, noise=noise)
    source = Source(ee.solve(operator, method="exact", k=1), picture, model, noise=noise)
    for bits in (8, 16):
        made = ee.stimuli.make(source, tmp_path / str(bits), bits=bits, amplitudes=[0.1, 0.2],
                               allow=FLAGS, format=["raw", "matlab"])  # fmt: skip
        for one in made.manifest.stimuli:
            levels = np.load(made.folder / "raw" / f"{one.id}.npy")
            assert levels.shape == (8, 8, 3)
            e = source.spectrum.distortion(one.index)
            wanted = (picture.tensor[0] + one.signed_alpha * e).clamp(0, 1).numpy()
            off = np.moveaxis(levels, -1, 0) - (2**bits - 1) * wanted
            assert np.abs(off).max() <= 0.51
            assert (made.folder / one.file).suffix == (".png" if bits == 8 else ".tiff")


def test_several_models_each_predict_every_stimulus(tmp_path: Path) -> None:
    sources = [solved("OnOff", 0.002), solved("LGG", 0.002)]
    made = ee.stimuli.make(sources, tmp_path / "s", levels=[1], bits=16, allow=FLAGS)
    assert len(made.manifest.references) == 1
    kinds = {(one.model, one.pair) for one in made.manifest.stimuli}
    assert kinds >= {("OnOff", "top"), ("OnOff", "bottom"), ("LGG", "top")}
    for one in made.manifest.stimuli:
        assert one.predictions[0].model == one.model
        assert {p.model for p in one.predictions} == {"OnOff", "LGG"}
        other = next(s for s in sources if s.name == one.predictions[1].model)
        file, reference = (
            shown(made, made.manifest.by_id[one.id].file, 16),
            shown(made, made.manifest.reference_of(one).file, 16),
        )
        read = seen(other, file, reference)
        assert one.predictions[1].d_prime_rounded == pytest.approx(read, rel=1e-9)
    (blind,) = [one for one in made.left_out if "LGG-bottom" in one.id]
    assert "the model is blind to it" in blind.why


def test_directions_of_ones_own_are_calibrated_too(on_off: Source, tmp_path: Path) -> None:
    u = torch.zeros(24, 24, dtype=torch.float64)
    u[8:16, 8:16] = 3.0
    source = replace(on_off, directions=(u, -u.T.roll(4)))
    made = ee.stimuli.make(
        [source, solved("LGG", 0.002)], tmp_path / "s", bits=16, levels=[1], pairs=["none"]
    )
    assert [(one.pair, one.index) for one in made.manifest.stimuli] == [
        ("principal", 0), ("principal", 1)
    ]  # fmt: skip
    one = made.manifest.stimuli[0]
    e = (u / 24)[None].numpy()  # of unit norm
    x = on_off.picture.tensor[0].numpy()
    assert seen(on_off, x + one.alpha * e, x) == pytest.approx(1, rel=1e-4)
    fisher = ee.FisherOperator(on_off.model, on_off.picture.tensor, noise=on_off.noise)
    flat = torch.from_numpy(e).reshape(-1)
    assert one.eigenvalue == pytest.approx(float(flat @ (fisher @ flat)), rel=1e-9)
    assert one.predictions[1].model == "LGG"
    with pytest.raises(InputError, match="directions: expected 576 finite values"):
        replace(on_off, directions=(torch.zeros(24, 24),))


def test_pairs_that_are_not_certified_are_refused_and_the_rest_kept(
    on_off: Source, tmp_path: Path
) -> None:
    status = (PairStatus.UNVERIFIED, PairStatus.CONVERGED)
    source = replace(on_off, spectrum=replace(on_off.spectrum, status=status))
    made = ee.stimuli.make(source, tmp_path / "s", bits=16, levels=[1])
    assert [one.pair for one in made.manifest.stimuli] == ["bottom"]
    assert "expected a converged pair, got one that is unverified" in made.left_out[0].why
    made = ee.stimuli.make(source, tmp_path / "a", bits=16, levels=[1], allow=["unverified"])
    assert made.manifest.stimuli[0].flags == ("unverified",)
    assert made.manifest.stimuli[0].status == "unverified"


def test_a_picture_that_leaves_the_display_is_refused(on_off: Source, tmp_path: Path) -> None:
    picture = on_off.picture
    dark = Picture(picture.tensor, "dark", {**picture.record, "value_range": [0.0, 0.5]})
    with pytest.raises(InputError, match=r"in the display's range \[0, 0.5\], got values from"):
        ee.stimuli.make(replace(on_off, picture=dark), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"levels": [0]}, "levels: expected a finite number above 0, got 0.0"),
        ({"levels": [1], "amplitudes": [1]}, "one of levels, span and amplitudes"),
        ({"span": [2, 1, 4]}, "span: expected the lowest d′"),
        ({"bits": 10}, "bits: expected 8 or 16, got 10"),
        ({"bits": 16, "format": ["jspsych"]}, "browsers show 8 bits"),
        ({"display": "crt"}, "display: expected srgb, or an exponent"),
        ({"rounding": "up"}, "rounding: expected one of plain"),
        ({"task": "yesno"}, "task: expected one of 2afc"),
        ({"allow": ["all"]}, "allow: expected one of rounding"),
        ({"format": ["gif"]}, "format: expected one of psychopy"),
        ({"pairs": ["7"]}, r"pairs: expected some of \[0, 575\]"),
        ({"gain": -1}, "gain: expected a finite number above 0"),
        ({"controls": -1}, "controls: expected at least 0"),
    ],
)
def test_what_cannot_be_asked_for(
    on_off: Source, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        ee.stimuli.make(on_off, tmp_path / "s", **options)


def test_words_of_the_command_line_become_settings() -> None:
    words = "levels=1,0.5 display=2.2 bits=16 linear_light=true format=raw,matlab seed=3"
    settings = ee.stimuli.parse_settings(words.split())
    assert settings == ee.stimuli.Settings(
        levels=(0.5, 1), display=2.2, bits=16, linear_light=True, format=("raw", "matlab"), seed=3
    )
    for word, told in [
        ("level=1", r"no such setting \(did you mean levels\?\)"),
        ("bits=x", "bits: expected a whole number, got 'x'"),
        ("linear_light=2", "expected true or false"),
        ("levels=", "expected at least one number"),
    ]:
        with pytest.raises(EigenexpError, match=told):
            ee.stimuli.parse_settings([word])


def test_the_same_export_again_writes_nothing(on_off: Source, tmp_path: Path) -> None:
    options: dict[str, Any] = {"levels": [1, 2], "allow": FLAGS, "format": ["raw", "matlab"]}
    made = ee.stimuli.make(on_off, tmp_path / "s", **options)
    assert (made.num_written, made.num_kept) == (4, 0)
    files = [p for p in made.folder.rglob("*") if p.suffix in (".png", ".npy", ".mat")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = ee.stimuli.make(on_off, tmp_path / "s", **options)
    assert (again.num_written, again.num_kept) == (0, 4)
    assert again.manifest == made.manifest
    assert {path: path.stat().st_mtime_ns for path in files} == before
    damaged = made.folder / made.manifest.stimuli[1].file
    damaged.write_bytes(b"")
    mended = ee.stimuli.make(on_off, tmp_path / "s", **options)
    assert (mended.num_written, mended.num_kept) == (1, 3)
    assert mended.manifest == made.manifest
    with pytest.raises(InputError, match="stimuli of the same runs and settings, got others"):
        ee.stimuli.make(on_off, tmp_path / "s", levels=[3], allow=FLAGS)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"expected an empty folder.*thesis.tex"):
        ee.stimuli.make(on_off, foreign, **options)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import eigenexp as ee
from tests.stimuli.conftest import solved
from eigenexp.stimuli import FLAGS
ee.stimuli.make(solved("OnOff", 0.002), {folder!r}, controls=4, allow=FLAGS)
"""


def test_a_killed_export_goes_on(on_off: Source, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    root = str(Path(__file__).parents[2])
    script = SCRIPT.format(root=root, folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    journal = folder / "export.jsonl"
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 8):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "manifest.json").exists()
    with journal.open("ab") as file:
        file.write(b'{"id": "torn')
    whole = {path: path.stat().st_mtime_ns for path in (folder / "pictures").glob("[!.]*.png")}
    made = ee.stimuli.make(on_off, folder, controls=4, allow=FLAGS)
    assert len(made.manifest.stimuli) == 6 * 5
    assert 0 < made.num_kept < 6 * 5
    for path, written in whole.items():
        assert path.stat().st_mtime_ns == written
    fresh = ee.stimuli.make(on_off, tmp_path / "fresh", controls=4, allow=FLAGS)
    assert fresh.manifest == made.manifest
    assert json.loads((folder / "manifest.json").read_text())["id"] == made.manifest.id


def test_a_folder_in_use_is_left_alone(on_off: Source, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "s").mkdir()
    with (
        FileLock(tmp_path / "s" / ".export.lock"),
        pytest.raises(InputError, match="another export is at work"),
    ):
        ee.stimuli.make(on_off, tmp_path / "s")


@pytest.mark.slow
def test_a_thousand_stimuli_take_less_than_two_minutes(tmp_path: Path) -> None:
    source = solved("OnOff", 0.002, side=32)
    begin = time.process_time()
    made = ee.stimuli.make(source, tmp_path / "s", controls=198, allow=FLAGS)
    assert len(made.manifest.stimuli) == 1000
    assert time.process_time() - begin < 120
