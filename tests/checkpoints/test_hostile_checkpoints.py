"""Checkpoints made by somebody who means harm."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch

from eigenexp.checkpoints.files import (
    METADATA_KEY,
    find_checkpoint,
    load_checkpoint,
    load_metadata,
    save_checkpoint,
)
from tests.attacks import (
    Attacks,
    Payload,
    Place,
    bomb,
    check_nothing_happens,
)

ATTACKS = Attacks()
attack = ATTACKS.add


@attack
def pickle_payload_in_a_checkpoint(place: Place) -> object:
    torch.save({"global_step": 1, "x": Payload(os.system, place.touch())}, place.here / "a.ckpt")
    return load_checkpoint(place.here / "a.ckpt")


@attack
def pickle_payload_under_a_right_seal(place: Place) -> object:
    save_checkpoint({"global_step": 1, "x": Payload(exec, f"open({str(place.canary)!r}, 'w')")},
                    place.here / "a.ckpt")  # fmt: skip
    return find_checkpoint(place.here) and load_checkpoint(place.here / "a.ckpt")


@attack
def bare_pickle_called_checkpoint(place: Place) -> object:
    (place.here / "a.ckpt").write_bytes(pickle.dumps(Payload(os.system, place.touch())))
    return load_checkpoint(place.here / "a.ckpt")


@attack
def legacy_pickle_called_checkpoint(place: Place) -> object:
    torch.save({"x": Payload(os.system, place.touch())}, place.here / "a.ckpt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    return load_checkpoint(place.here / "a.ckpt")


@attack
def global_reached_through_a_trusted_class(place: Place) -> object:
    torch.save({"x": Payload(torch.hub.load, "a/b", "c")}, place.here / "a.ckpt")
    return load_checkpoint(place.here / "a.ckpt")


@attack
def zip_bomb_checkpoint(place: Place) -> object:
    bomb(place.here / "a.ckpt", 1 << 29)
    return load_checkpoint(place.here / "a.ckpt")


@attack
def zip_bomb_under_a_right_seal(place: Place) -> object:
    bomb(place.here / "a.ckpt", 1 << 29, seal=True)
    return load_checkpoint(place.here / "a.ckpt")


@attack
def tensor_larger_than_its_storage(place: Place) -> object:
    """A kilobyte that a copy, a cast or a move would turn into 14 GB."""
    endless = torch.zeros(1).expand(1, 60_000, 60_000)
    save_checkpoint({"global_step": 1, "state": [{"x": endless}]}, place.here / "a.ckpt")
    return load_checkpoint(place.here / "a.ckpt")


@attack
def overlapping_zip_entries(place: Place) -> object:
    """A thousand names for one megabyte: the directory points at the same bytes."""
    path = place.here / "a.ckpt"
    torch.save({"global_step": 1, "x": torch.zeros(1 << 18)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo(next(n for n in archive.namelist() if n.endswith("data/0")))
        for i in range(1000):
            other = zipfile.ZipInfo(f"archive/data/{i + 1}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(other, name, getattr(entry, name))
            archive.filelist.append(other)
        archive._didModify = True
    return load_checkpoint(path)


@attack
def wrong_seal(place: Place) -> object:
    save_checkpoint({"global_step": 1, "x": torch.zeros(9)}, place.here / "a.ckpt")
    content = bytearray((place.here / "a.ckpt").read_bytes())
    content[-1] = ord("0") if content[-1] != ord("0") else ord("1")
    (place.here / "a.ckpt").write_bytes(content)
    return load_checkpoint(place.here / "a.ckpt")


@attack
def truncated_checkpoint(place: Place) -> object:
    save_checkpoint({"global_step": 1, "x": torch.zeros(999)}, place.here / "last.ckpt")
    content = (place.here / "last.ckpt").read_bytes()
    (place.here / "last.ckpt").write_bytes(content[: len(content) // 2])
    return load_checkpoint(place.here / "last.ckpt")


@attack
def checkpoint_linked_to_a_device(place: Place) -> object:
    (place.here / "last.ckpt").symlink_to("/dev/zero")
    return load_checkpoint(place.here / "last.ckpt")


@attack
def checkpoint_is_a_pipe(place: Place) -> object:
    os.mkfifo(place.here / "last.ckpt")
    return load_checkpoint(place.here / "last.ckpt")


@attack
def checkpoint_linked_to_a_secret(place: Place) -> object:
    (place.here / "last.ckpt").symlink_to(place.outside / "secret")
    return load_checkpoint(place.here / "last.ckpt")


@attack
def metadata_of_wrong_kinds(place: Place) -> object:
    own = {"metadata": {"schema_version": "1; import os"}, "progress": {"num_products": []}}
    save_checkpoint({"global_step": 1, METADATA_KEY: own}, place.here / "a.ckpt")
    return load_metadata(place.here / "a.ckpt")


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)
