"""Picture files made by somebody who means harm."""

from __future__ import annotations

import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch

import eigenexp as ee
from eigenexp.pictures.saving import load_saved_picture, save_picture
from tests.attacks import (
    Attacks,
    Payload,
    Place,
    bomb,
    check_nothing_happens,
    safetensors_file,
)

ATTACKS = Attacks()
attack = ATTACKS.add


@attack
def safetensors_shape_that_overflows(place: Place) -> object:
    entry = {"dtype": "F64", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}
    header = json.dumps({"picture": entry}).encode()
    return load_saved_picture(safetensors_file(place.here / "p.safetensors", header))


@attack
def picture_is_an_endless_device(place: Place) -> object:
    return ee.load_picture("/dev/zero")


@attack
def picture_is_a_pipe(place: Place) -> object:
    os.mkfifo(place.here / "p.png")
    return ee.load_picture(str(place.here / "p.png"))


@attack
def picture_linked_to_a_secret(place: Place) -> object:
    (place.here / "p.png").symlink_to(place.outside / "secret")
    return ee.load_picture(str(place.here / "p.png"))


@attack
def png_that_unpacks_to_gigabytes(place: Place) -> object:
    side = 60_000

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(side + 1)) for _ in range(200)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    (place.here / "p.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )
    return ee.load_picture(str(place.here / "p.png"))


@attack
def tiff_that_unpacks_to_gigabytes(place: Place) -> object:
    """16-bit RGB of 2³¹ pixels: Pillow cannot read it, so it goes the other way."""
    entries = [(256, 4, 1, 1 << 16), (257, 4, 1, 1 << 15), (258, 3, 3, 200), (259, 3, 1, 1),
               (262, 3, 1, 2), (273, 4, 1, 300), (277, 3, 1, 3), (278, 4, 1, 1 << 15),
               (279, 4, 1, 64)]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    content = bytearray(b"II*\0" + struct.pack("<I", 8) + directory).ljust(500, b"\0")
    content[200:206] = struct.pack("<HHH", 16, 16, 16)
    (place.here / "p.tif").write_bytes(content)
    return ee.load_picture(str(place.here / "p.tif"))


@attack
def torch_picture_with_a_payload(place: Place) -> object:
    torch.save(Payload(os.system, place.touch()), place.here / "p.pt")
    return ee.load_picture(str(place.here / "p.pt"))


@attack
def torch_picture_that_unpacks_to_gigabytes(place: Place) -> object:
    bomb(place.here / "p.pt", 1 << 29)
    return ee.load_picture(str(place.here / "p.pt"))


@attack
def torch_picture_of_one_number_repeated(place: Place) -> object:
    torch.save(torch.zeros(1).expand(1 << 20, 1 << 20), place.here / "p.pt")
    return ee.load_picture(str(place.here / "p.pt"))


@attack
def numpy_picture_with_a_payload(place: Place) -> object:
    array = np.array([Payload(os.system, place.touch())], dtype=object)
    np.save(place.here / "p.npy", array, allow_pickle=True)
    return ee.load_picture(str(place.here / "p.npy"))


@attack
def numpy_picture_that_claims_terabytes(place: Place) -> object:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1048576, 1048576), }"
    header = header.ljust(117) + b"\n"
    (place.here / "p.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    )
    return ee.load_picture(str(place.here / "p.npy"))


@attack
def numpy_header_that_is_code(place: Place) -> object:
    header = f"{{'descr': __import__('os').system({place.touch()!r})}}".encode().ljust(117) + b"\n"
    (place.here / "p.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    )
    return ee.load_picture(str(place.here / "p.npy"))


@attack
def stored_picture_of_another_run(place: Place) -> object:
    path = save_picture(ee.load_picture("coins", crop=16), place.here / "picture.safetensors")
    return load_saved_picture(path, "0" * 64)


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)
