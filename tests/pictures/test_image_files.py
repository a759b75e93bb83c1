"""Picture files: every value as the file holds it, whatever reads it; nothing dropped unsaid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from eigenexp.errors import ImageError, InputTypeError
from eigenexp.pictures.picture import load_picture

RNG = np.random.default_rng(3)
FULL = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


def pixels(dtype: str, *shape: int) -> np.ndarray:
    if dtype == "float32":
        return RNG.random(shape, dtype=np.float32)
    return RNG.integers(0, int(FULL[dtype]), shape, dtype=dtype, endpoint=True)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """TIFF 6.0's table: which side of the picture the first row and the first column are."""
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }
    return turn[orientation](array)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_what_tifffile_wrote(
    tmp_path: Path, byteorder: str, dtype: str, channels: int, orientation: int
) -> None:
    array = pixels(dtype, *((6, 5) if channels == 1 else (6, 5, 3)))
    photometric = "minisblack" if channels == 1 else "rgb"
    tag = [(274, "H", 1, orientation, True)]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, byteorder=byteorder, photometric=photometric, extratags=tag)
    picture = load_picture(path, channels="keep", dtype="float64")
    expected = upright(array, orientation).reshape(*upright(array, orientation).shape[:2], -1)
    got = picture.tensor[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, expected / FULL[dtype], atol=1e-15)
    told = None if orientation == 1 else f"EXIF {orientation}, applied"
    assert picture.record["orientation"] == told


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_signed_numbers_have_no_known_white(tmp_path: Path, dtype: str) -> None:
    array = np.array([[-1, 0], [5, 100]], dtype=dtype)
    tifffile.imwrite(tmp_path / "s.tif", array, photometric="minisblack")
    with pytest.raises(InputTypeError, match="white is unknown"):
        load_picture(tmp_path / "s.tif")
    picture = load_picture(tmp_path / "s.tif", value_range=[-128, 127])
    np.testing.assert_array_equal(picture.tensor[0, 0].numpy(), array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [2, 4])
def test_a_channel_that_is_no_alpha_is_not_dropped(
    tmp_path: Path, dtype: str, channels: int
) -> None:
    kind = "minisblack" if channels == 2 else "rgb"
    array = pixels(dtype, 6, 5, channels)
    path = tmp_path / "c.tif"
    tifffile.imwrite(path, array, photometric=kind, planarconfig="contig",
                     extrasamples=["unspecified"])  # fmt: skip
    with pytest.raises(ImageError, match=f"got {channels} channels of which the last"):
        load_picture(path)
    tifffile.imwrite(path, array, photometric=kind, planarconfig="contig",
                     extrasamples=["unassalpha"])  # fmt: skip
    picture = load_picture(path, channels="keep", dtype="float64")
    assert picture.record["alpha"] == "dropped"
    got = picture.tensor[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, array[..., :-1] / FULL[dtype], atol=1e-15)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_see_through_colour_of_a_png_is_recorded(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pixels("uint8", 4, 4, 3)).convert(mode)
    image.save(tmp_path / "t.png", transparency=7 if mode == "L" else (1, 2, 3))
    assert load_picture(tmp_path / "t.png").record["alpha"] == "tRNS dropped"
    image.save(tmp_path / "o.png")
    assert load_picture(tmp_path / "o.png").record["alpha"] is None


@pytest.mark.parametrize("shape", [(4, 4, 3), (3, 5, 4), (1, 7, 2)])
def test_an_array_that_may_be_either_is_asked_about(tmp_path: Path, shape: tuple) -> None:
    array = RNG.random(shape)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy"):
        with pytest.raises(ImageError, match="may be either"):
            load_picture(source)
    if shape[-1] == 3:
        clear = load_picture(array.transpose(2, 0, 1)[None], channels="keep", dtype="float64")
        np.testing.assert_array_equal(clear.tensor[0].permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize("name", ["eps.png", "eps.eps", "eps.jpg"])
def test_postscript_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pillow would hand it to Ghostscript: a program of that name here would leave a mark."""
    tool = tmp_path / "gs"
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / name).write_text(page)
    with pytest.raises(ImageError, match="PostScript"):
        load_picture(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["jp2", "avif", "tga", "pcx", "sgi"])
def test_less_usual_formats(tmp_path: Path, suffix: str) -> None:
    array = pixels("uint8", 16, 16, 3)
    lossless = {"jp2": {"irreversible": False}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    Image.fromarray(array).save(tmp_path / f"a.{suffix}", **lossless.get(suffix, {}))
    got = load_picture(tmp_path / f"a.{suffix}", channels="keep").tensor[0].permute(1, 2, 0)
    np.testing.assert_allclose(got.numpy(), array / 255, atol=0.05 if suffix == "avif" else 1e-6)


def test_a_wrong_ending_is_named(tmp_path: Path) -> None:
    Image.fromarray(pixels("uint8", 4, 4)).save(tmp_path / "a.npy", format="PNG")
    with pytest.raises(ImageError, match=r"NumPy array file: got a PNG file"):
        load_picture(tmp_path / "a.npy")
    with (tmp_path / "b.png").open("wb") as file:
        np.save(file, np.zeros((4, 4)))
    with pytest.raises(ImageError, match=r"got a NumPy \(\.npy\) file"):
        load_picture(tmp_path / "b.png")


def test_a_name_with_a_tilde_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels("uint8", 4, 4)).save("~tilde.png")
    assert load_picture("~tilde.png").name == "~tilde"
    with pytest.raises(ImageError, match=r"did you mean ~tilde\.png"):
        load_picture("~tilda.png")


def test_a_file_of_200_gb_is_told_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.touch()
    os.truncate(path, 200 * 10**9)
    with pytest.raises(ImageError, match="got a file of 200 GB"):
        load_picture(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1, 6000, 6000), tmp_path / "a.pt")
    with pytest.raises(ImageError, match="more values than the file holds"):
        load_picture(tmp_path / "a.pt")
    torch.save(torch.zeros(6, 6).t(), tmp_path / "b.pt")
    assert load_picture(tmp_path / "b.pt").tensor.shape == (1, 1, 6, 6)


def test_a_part_of_a_large_picture_costs_no_copies_of_it(tmp_path: Path) -> None:
    """Crops are taken before anything is computed: the whole stays in its own dtype."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured by Linux' /proc")
    side = 4000
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((side, side, 3), np.uint16), photometric="rgb",
                     compression="zlib")  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    assert load_picture(tmp_path / "a.tif", crop=8).tensor.shape == (1, 1, 8, 8)
    assert resident(peak=True) - before < 2 * side * side * 6 / 1e6 + 100


def resident(peak: bool = False) -> float:
    """Return this process' memory, or the most it had, in MB."""
    key = "VmHWM" if peak else "VmRSS"
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)]
    return float(line.split()[1]) / 1024
