"""Pictures: what comes in, what comes out, and what the record says about it."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from PIL import __version__ as pillow
from safetensors.torch import save_file

from eigenexp.errors import ImageError, InputTypeError
from eigenexp.pictures.bundled import bundled_pictures, bundled_sha256
from eigenexp.pictures.picture import load_picture
from eigenexp.storage.hashing import tensor_sha256

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (12, 10), dtype=np.uint16)


def one_line(error) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", bundled_pictures())
def test_bundled_pictures_equal_scikit_images(name):
    import skimage.data
    from skimage.util import img_as_float64

    theirs = img_as_float64(getattr(skimage.data, name)())
    ours = load_picture(name, channels="keep", dtype="float64")
    values = ours.tensor[0].permute(1, 2, 0).numpy()
    if theirs.ndim == 2:  # scikit-image turns some gray pictures stored as RGB into gray
        values = load_picture(name, dtype="float64").tensor[0, 0].numpy()
    elif theirs.shape[-1] == 4:
        theirs = theirs[..., :3]
    np.testing.assert_allclose(values, theirs, atol=1e-12)
    assert ours.record["source"] == f"skimage.data.{name}"
    assert ours.name == name


def test_the_usual_pictures_are_bundled():
    usual = {"camera", "astronaut", "chelsea", "coffee", "coins", "grass", "gravel", "brick"}
    assert usual | {"moon", "rocket"} <= set(bundled_pictures())


def test_gray_has_rgb2grays_weights():
    from skimage.color import rgb2gray
    from skimage.data import astronaut

    ours = load_picture("astronaut", dtype=torch.float64)
    np.testing.assert_allclose(ours.tensor[0, 0].numpy(), rgb2gray(astronaut()), atol=1e-12)
    assert ours.record["conversion"] == "0.2125 R + 0.7154 G + 0.0721 B"


def test_bundled_pictures_come_with_the_wheel(monkeypatch):
    """Each by scikit-image's public function, without a network; their files are those recorded."""
    import socket

    import skimage.data

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a download"))
    folder = Path(skimage.data.__file__).parent
    files = {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}
    for name in bundled_pictures():
        assert load_picture(name, crop=8).record["file_sha256"] == bundled_sha256(name)
        assert bundled_sha256(name) in files


def test_record_is_json_ready_and_tells_the_whole_story():
    picture = load_picture("camera", crop=[120, 220, 64, 48], resize=[32, 24], channels="color")
    record = json.loads(json.dumps(picture.record))
    assert record == picture.record
    assert record["crop"] == [120, 220, 64, 48]
    assert record["resize"] == [32, 24]
    assert record["channels"] == "color"
    assert record["conversion"] == "gray repeated"
    assert record["scaled_from"] == [0.0, 255.0]
    assert record["shape"] == [1, 3, 32, 24] == list(picture.tensor.shape)
    assert record["source_shape"] == [1, 512, 512]
    assert record["minimum"] == float(picture.tensor.min())
    assert record["sha256"] == tensor_sha256(picture.tensor)


def test_the_hash_follows_the_values():
    hashes = {
        load_picture("coins", crop=crop, dtype=dtype).record["sha256"]
        for crop in (32, [0, 0, 32, 32])
        for dtype in ("float32", "float64")
    }
    assert len(hashes) == 4
    assert load_picture("coins", crop=32).record["sha256"] in hashes


def test_crop_is_exact_and_an_int_is_the_middle():
    whole = load_picture("camera").tensor
    part = load_picture("camera", crop=[120, 220, 64, 48]).tensor
    assert torch.equal(part, whole[..., 120:184, 220:268])
    middle = load_picture("camera", crop=65)
    assert middle.record["crop"] == [223, 223, 65, 65]
    assert torch.equal(middle.tensor, whole[..., 223:288, 223:288])


def test_resize_is_antialiased_and_stays_in_range():
    stripes = np.zeros((64, 64))
    stripes[:, ::2] = 1.0
    small = load_picture(stripes, resize=16, dtype="float64").tensor
    # Subsampling would give 0 or 1; the stripes' mean is one half.
    inside = small[..., 2:-2]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.5), atol=0.02, rtol=0)
    edge = load_picture((np.arange(64) > 31) * np.ones((64, 1)), resize=[64, 150]).tensor
    assert edge.min() == 0
    assert edge.max() == 1
    again = load_picture(stripes, resize=16, dtype="float64").tensor
    assert torch.equal(small, again)


def test_resize_to_the_same_size_changes_nothing():
    assert torch.equal(
        load_picture("moon", crop=40).tensor, load_picture("moon", crop=40, resize=40).tensor
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_lossless_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(COLOR).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    picture = load_picture(path, channels="keep", dtype="float64")
    values = torch.from_numpy(COLOR / 255).permute(2, 0, 1)[None]
    torch.testing.assert_close(picture.tensor, values, atol=1e-15, rtol=0)
    assert picture.name == "a"
    assert picture.record["kind"] == "file"
    assert len(picture.record["file_sha256"]) == 64


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_gray_files(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(GRAY16).save(path)
    picture = load_picture(str(path), dtype="float64")
    np.testing.assert_allclose(picture.tensor[0, 0].numpy(), GRAY16 / 65535, atol=1e-15)
    assert picture.record["scaled_from"] == [0.0, 65535.0]


def test_sixteen_bit_color_keeps_every_bit(tmp_path):
    deep = RNG.integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    picture = load_picture(tmp_path / "deep.tif", channels="color", dtype="float64")
    np.testing.assert_allclose(picture.tensor[0].permute(1, 2, 0).numpy(), deep / 65535, atol=1e-15)


def test_sixteen_bit_color_png_is_refused_rather_than_cut_to_eight(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 4))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    with pytest.raises(ImageError, match="8 would be lost") as error:
        load_picture(path)
    one_line(error)


def test_tiff_whose_zero_is_white_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "w.tif", GRAY16, photometric="miniswhite")
    with pytest.raises(ImageError, match="MINISWHITE"):
        load_picture(tmp_path / "w.tif")


def test_float_tiff(tmp_path):
    values = RNG.random((5, 6, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "f.tif", values, photometric="rgb")
    picture = load_picture(tmp_path / "f.tif", channels="keep")
    np.testing.assert_array_equal(picture.tensor[0].permute(1, 2, 0).numpy(), values)


def test_exif_orientation_is_applied_and_recorded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(COLOR).save(tmp_path / "turned.png", exif=exif)
    picture = load_picture(tmp_path / "turned.png", channels="keep")
    upright = np.rot90(COLOR, -1).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(picture.tensor[0].numpy(), upright, atol=1e-7)
    assert picture.record["orientation"] == "EXIF 6, applied"
    assert load_picture("camera").record["orientation"] is None


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_recorded(tmp_path, mode):
    opaque = Image.fromarray(COLOR).convert(mode.removesuffix("A"))
    see_through = opaque.copy()
    see_through.putalpha(Image.fromarray(COLOR[..., 0]))
    see_through.save(tmp_path / "alpha.png")
    opaque.save(tmp_path / "opaque.png")
    picture = load_picture(tmp_path / "alpha.png")
    assert picture.record["alpha"] == "dropped"
    assert torch.equal(picture.tensor, load_picture(tmp_path / "opaque.png").tensor)
    assert load_picture(tmp_path / "opaque.png").record["alpha"] is None


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "I", "F"])
def test_pillows_other_modes(tmp_path, mode):
    image = Image.fromarray(COLOR).convert("L")
    image = image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else image.convert(mode)
    if mode == "F":
        image = Image.fromarray(np.asarray(image) / np.float32(255))
    path = tmp_path / ("a.png" if mode in ("1", "P") else "a.tiff")
    image.save(path)
    if mode == "I":  # 32-bit integers: taken as the 16 bits they hold
        assert load_picture(path).record["scaled_from"] == [0.0, 65535.0]
        return
    if mode == "YCbCr" and int(pillow.split(".")[0]) < 13:
        with pytest.raises(ImageError, match="truncated"):  # what Pillow itself wrote
            load_picture(path)
        return
    picture = load_picture(path)
    assert picture.tensor.shape == (1, 1, 12, 10)
    if mode in ("P", "F", "CMYK"):
        expected = np.asarray(Image.fromarray(COLOR).convert("L")) / 255
        np.testing.assert_allclose(picture.tensor[0, 0].numpy(), expected, atol=1e-6)


def test_saved_arrays_and_tensors(tmp_path):
    values = torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "a.npy", values[0].permute(1, 2, 0).numpy())
    torch.save(values, tmp_path / "a.pt")
    save_file({"picture": values}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.pt", "a.safetensors"):
        picture = load_picture(tmp_path / name, channels="keep", dtype=torch.float64)
        assert torch.equal(picture.tensor, values)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (torch.rand(6, 7), (1, 1, 6, 7)),
        (torch.rand(1, 3, 6, 7), (1, 3, 6, 7)),
        (torch.rand(3, 6, 7, dtype=torch.float16), (1, 3, 6, 7)),
        (np.zeros((6, 7, 3), ">f4"), (1, 3, 6, 7)),
        (np.zeros((6, 7, 4)), (1, 3, 6, 7)),
        (np.zeros((3, 6, 7))[:, ::-1], (1, 3, 6, 7)),
        (np.ones((6, 7), bool), (1, 1, 6, 7)),
    ],
)
def test_arrays_and_tensors(given, shape):
    picture = load_picture(given, channels="keep")
    assert picture.tensor.shape == shape
    assert picture.tensor.dtype == torch.float32
    assert picture.tensor.is_contiguous()


def test_the_picture_shares_nothing_with_its_source():
    for source in (torch.full((4, 4), 0.5), np.full((4, 4), np.float32(0.5))):
        picture = load_picture(source)
        source[:] = 1
        assert bool((picture.tensor == 0.5).all())
    leaf = torch.rand(4, 4, requires_grad=True)
    assert not load_picture(leaf).tensor.requires_grad


def test_value_range_scales_integers_and_bounds_floats():
    bytes_ = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8)
    scaled = load_picture(bytes_, value_range=[-1, 1]).tensor[0, 0]
    torch.testing.assert_close(scaled, torch.tensor([[-1, -0.6], [-0.2, 1]]))
    floats = load_picture(bytes_.float(), value_range=(0, 255))
    assert torch.equal(floats.tensor[0, 0], bytes_.float())
    assert floats.record["scaled_from"] is None
    assert floats.record["value_range"] == [0.0, 255.0]
    wide = load_picture(bytes_.long(), value_range=(0, 255))
    assert torch.equal(wide.tensor, floats.tensor)


def test_a_phones_several_frames_are_read_as_the_first(tmp_path):
    frames = [Image.fromarray(COLOR), Image.fromarray(COLOR[:3, :3])]
    frames[0].save(tmp_path / "phone.mpo", save_all=True, append_images=frames[1:], quality=100)
    assert load_picture(tmp_path / "phone.mpo").tensor.shape == (1, 1, 12, 10)


NAN = torch.tensor([[0.5, float("nan")], [float("inf"), 0.0]])


@pytest.mark.parametrize(
    ("source", "options", "error", "says"),
    [
        ("camra", {}, ImageError, "did you mean camera"),
        ("Astronaut", {}, ImageError, "did you mean astronaut"),
        ("skin", {}, ImageError, "coins"),
        ("no/such/picture.png", {}, ImageError, "existing file"),
        ("", {}, ImageError, "empty string"),
        ("a\0b", {}, ImageError, "picture's name or an existing file"),
        ("x" * 5000, {}, ImageError, "x"),
        (3, {}, InputTypeError, "got int"),
        (None, {}, InputTypeError, "NoneType"),
        (NAN, {}, ImageError, "NaN or inf at 2 of 4"),
        (torch.full((2, 2), 1.01), {}, ImageError, "got 1.01 to 1.01"),
        (torch.full((2, 2), -0.1), {}, ImageError, "got -0.1 to -0.1"),
        (torch.full((2, 2), 200.0), {}, ImageError, "value_range=\\[black, white\\]"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, InputTypeError, "white is unknown"),
        (torch.zeros(2, 2, dtype=torch.complex64), {}, InputTypeError, "real numbers"),
        (np.array([["a"]]), {}, InputTypeError, "real numbers"),
        (torch.zeros(5, 8, 8), {}, ImageError, "got 5"),
        (torch.zeros(8), {}, ImageError, r"got \(8,\)"),
        (torch.zeros(2, 3, 8, 8), {}, ImageError, r"got \(2, 3, 8, 8\)"),
        (torch.zeros(1, 1, 1, 8, 8), {}, ImageError, "one picture"),
        (torch.zeros(0, 8), {}, ImageError, "expected pixels"),
        ("camera", {"crop": [0, 0, 0, 4]}, ImageError, "at least 1, got 0x4"),
        ("camera", {"crop": 0}, ImageError, "at least 1"),
        ("camera", {"crop": [500, 0, 64, 64]}, ImageError, "rows 500 to 564"),
        ("camera", {"crop": [-1, 0, 64, 64]}, ImageError, "512x512"),
        ("camera", {"crop": 513}, ImageError, "512x512"),
        ("camera", {"crop": [1, 2, 3]}, ImageError, "top, left, height, width"),
        ("camera", {"crop": [0.5, 0, 4, 4]}, InputTypeError, "whole numbers"),
        ("camera", {"crop": "head"}, InputTypeError, "whole numbers"),
        ("camera", {"crop": True}, InputTypeError, "whole numbers"),
        ("camera", {"resize": 0}, ImageError, "at least 1"),
        ("camera", {"resize": [64, -1]}, ImageError, "at least 1"),
        ("camera", {"resize": [64, 64, 3]}, ImageError, "height, width"),
        ("camera", {"resize": 32.0}, InputTypeError, "whole numbers"),
        ("camera", {"channels": "grey"}, ImageError, "gray, color, keep"),
        ("camera", {"value_range": [1, 0]}, ImageError, "black < white"),
        ("camera", {"value_range": [0, float("inf")]}, ImageError, "finite"),
        ("camera", {"value_range": 255}, InputTypeError, "two numbers"),
        ("camera", {"dtype": torch.float16}, InputTypeError, "float32 or float64"),
        ("camera", {"dtype": "half"}, InputTypeError, "float32 or float64"),
    ],
)
def test_bad_input_gets_one_line(source, options, error, says):
    with pytest.raises(error, match=says) as raised:
        load_picture(source, **options)
    one_line(raised)


def test_bad_files_get_one_line(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(COLOR).save(whole)
    content = whole.read_bytes()
    bad = {
        "cut.png": (content[:90], "cannot be read as a picture"),
        "text.png": (b"no picture", "got a file of unknown kind"),
        "empty.png": (b"", "empty file"),
        "array.npy": (b"no array", "NumPy array"),
        "tensor.pt": (b"no tensor", "saved by torch.save"),
        "a.safetensors": (b"no tensor", "safetensors"),
        "cut.tif": (b"II*\0\xff\xff\0\0", "cannot be read"),
    }
    for name, (data, says) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=says) as raised:
            load_picture(tmp_path / name)
        assert name in one_line(raised)
    with pytest.raises(ImageError, match="got a folder"):
        load_picture(tmp_path)
    with pytest.raises(ImageError, match="device or pipe"):
        load_picture("/dev/zero")
    with pytest.raises(ImageError, match=r"did you mean .*whole\.png"):
        load_picture(str(tmp_path / "whole.pgn"))
    with pytest.raises(ImageError, match="found none"):
        load_picture(tmp_path / "gone.png")


def test_a_file_runs_no_code(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    torch.save({"a": print}, tmp_path / "objects.pt")
    for name in ("objects.npy", "objects.pt"):
        with pytest.raises(ImageError):
            load_picture(tmp_path / name)


def test_files_of_several_pictures_are_refused(tmp_path):
    frames = [Image.fromarray(COLOR[..., i]) for i in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    np.savez(tmp_path / "many.npz", a=COLOR)
    (tmp_path / "many.npy").write_bytes((tmp_path / "many.npz").read_bytes())
    torch.save({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "many.pt")
    for name, says in (("film.gif", "3 frames"), ("many.npy", "archive"), ("many.pt", "2 entries")):
        with pytest.raises(ImageError, match=says):
            load_picture(tmp_path / name)


def test_a_suspiciously_large_picture_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(COLOR).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="bomb") as raised:
        load_picture(tmp_path / "bomb.png")
    one_line(raised)


def test_a_name_wins_over_a_file_and_a_path_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(COLOR).save(tmp_path / "camera", format="PNG")
    assert load_picture("camera").record["source_shape"] == [1, 512, 512]
    assert load_picture("./camera").record["source_shape"] == [3, 12, 10]
