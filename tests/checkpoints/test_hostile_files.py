"""Files and answers made by somebody who means harm: each is opened the way a user would open it.

Every kind must end in one line that says what is wrong, or do nothing; and nothing of it is
executed, no file outside the folder at hand is written, changed or removed, and no memory or time
is taken that the file's own size does not explain. The number of kinds is printed at the end.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import eigenexp as ee
from eigenexp.checkpoints.files import (
    METADATA_KEY,
    find_checkpoint,
    load_checkpoint,
    load_metadata,
    save_checkpoint,
)
from eigenexp.cli import main
from eigenexp.errors import EigenexpError
from eigenexp.experiments.building import build_model
from eigenexp.experiments.config import compose_config, override_config, plain_config
from eigenexp.experiments.experiment import fit, resume
from eigenexp.experiments.resuming import fetch_run
from eigenexp.pictures.saving import load_saved_picture, save_picture
from eigenexp.report import load_run, render_report
from eigenexp.report.sources import read_convergence
from eigenexp.runs.folder import RunFolder, find_run
from eigenexp.spectrum import Spectrum
from eigenexp.tracking import Store, download_artifact, list_artifacts, local_store
from eigenexp.tracking.delivery import Sender
from eigenexp.tracking.spool import Spool, session_record
from tests.report.conftest import make_run, make_spectrum


@dataclass(frozen=True)
class Place:
    """Where an attack happens: ``here`` is the user's, ``outside`` must stay as it is."""

    here: Path
    outside: Path
    database: Path

    @property
    def canary(self) -> Path:
        return self.outside / "executed"

    def store(self) -> Store:
        """Return an empty store; the database is copied, making one takes MLflow seconds."""
        store = local_store(self.here / "mlruns")
        store.root.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.database, store.database)
        return store

    def touch(self) -> str:
        return f"touch {self.canary}"


ATTACKS: dict[str, Callable[[Place], object]] = {}
"""By name; each opens its file, and raises an EigenexpError or returns what a page would show."""


def attack(function: Callable[[Place], object]) -> Callable[[Place], object]:
    ATTACKS[function.__name__] = function
    return function


class Payload:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


# -- checkpoints -----------------------------------------------------------------------------------


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


def bomb(path: Path, size: int, seal: bool = False) -> None:
    """Write a checkpoint whose storage is ``size`` zeros, deflated to a thousandth."""
    torch.save({"global_step": 1, "x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as entry:
                for _ in range(size >> 20):
                    entry.write(bytes(1 << 20))
    if seal:
        seal_by_hand(path)


def seal_by_hand(path: Path) -> None:
    import hashlib

    from eigenexp.checkpoints import files as checkpoints

    body = path.read_bytes()[:-2]
    magic = checkpoints._MAGIC % 1
    comment = magic + hashlib.sha256(body + magic).hexdigest().encode()
    path.write_bytes(body + struct.pack("<H", len(comment)) + comment)


@attack
def zip_bomb_checkpoint(place: Place) -> object:
    bomb(place.here / "a.ckpt", 1 << 29)
    return load_checkpoint(place.here / "a.ckpt")


@attack
def zip_bomb_under_a_right_seal(place: Place) -> object:
    bomb(place.here / "a.ckpt", 1 << 29, seal=True)
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


@attack
def plenoptic_file_with_a_payload(place: Place) -> object:
    torch.save({"_image": Payload(os.system, place.touch())}, place.here / "eig.pt")
    model = ee.models.OnOff().eval()
    eigendistortion = ee.Eigendistortion(torch.rand(1, 1, 32, 32), model)
    return eigendistortion.load(place.here / "eig.pt")


@attack
def plenoptic_file_that_unpacks_to_gigabytes(place: Place) -> object:
    bomb(place.here / "eig.pt", 1 << 29)
    eigendistortion = ee.Eigendistortion(torch.rand(1, 1, 32, 32), ee.models.OnOff().eval())
    return eigendistortion.load(place.here / "eig.pt")


# -- configurations --------------------------------------------------------------------------------


def saved_run(place: Place, **config: Any) -> RunFolder:
    """A run whose checkpoint holds a configuration of the attacker's choice."""
    settings = plain_config(compose_config(["image.crop=[120,220,20,20]", "logger=none"]))
    run = RunFolder(place.here / "mlruns", "abc123")
    run.write_record(status="KILLED", config=settings, title="x")
    facts = {"schema_version": 1, "config": {**settings, **config}}
    save_checkpoint({"global_step": 1, METADATA_KEY: {"metadata": facts}},
                    run.checkpoints / "last.ckpt")  # fmt: skip
    return run


def resume_with(place: Place, **config: Any) -> object:
    run = saved_run(place, **config)
    return resume(run.run_id, root=run.root, say=lambda _: None)


@attack
def target_os_system(place: Place) -> object:
    return resume_with(place, model={"_target_": "os.system", "command": place.touch()})


@attack
def target_reached_through_a_trusted_module(place: Place) -> object:
    target = "torch.nn.parallel.distributed.os.system"
    return resume_with(place, model={"_target_": target, "command": place.touch()})


@attack
def target_partial_through_a_trusted_module(place: Place) -> object:
    target = "torch.nn.modules.module.functools.partial"
    return build_model({"_target_": target, "func": {"_target_": "os.system"}}, trust=False)


@attack
def target_deep_in_an_argument(place: Place) -> object:
    inner = {"_target_": "os.system", "command": place.touch()}
    return resume_with(place, model={"_target_": "torch.nn.Sequential", "args": [[{"a": inner}]]})


@attack
def target_as_an_argument_of_a_trusted_class(place: Place) -> object:
    inner = {"_target_": "subprocess.getoutput", "cmd": place.touch()}
    model = {"_target_": "torch.nn.Conv2d", "in_channels": inner, "out_channels": 1,
             "kernel_size": 1}  # fmt: skip
    return resume_with(place, model=model)


@attack
def target_with_a_prefix_that_looks_trusted(place: Place) -> object:
    return resume_with(place, model={"_target_": "torch.nnx.evil", "x": 1})


@attack
def environment_read_by_an_interpolation(place: Place) -> object:
    return resume_with(place, tags={"leak": "${oc.env:PATH}"})


@attack
def file_read_by_an_interpolation(place: Place) -> object:
    return resume_with(place, run_name="${oc.decode:${oc.env:PATH}}")


@attack
def python_tag_in_yaml(place: Place) -> object:
    text = f"run_name=!!python/object/apply:os.system [{place.touch()!r}]"
    return override_config(plain_config(compose_config()), [text])


@attack
def python_tag_on_the_command_line(place: Place) -> object:
    return compose_config([f"run_name=!!python/object/apply:os.system ['{place.touch()}']"])


@attack
def root_in_a_saved_configuration(place: Place) -> object:
    """A saved root is not where the resumed run writes."""
    return resume_with(place, root=str(place.outside / "elsewhere"), image={"source": "absent.png"})


@attack
def experiment_name_that_climbs(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("..")
    folder = store.local_artifacts(run_id)
    assert folder is not None
    assert (place.here / "mlruns" / "artifacts") in folder.resolve().parents
    store.create_run("../../outside/x")
    return None


# -- records and names of runs ---------------------------------------------------------------------


@attack
def run_id_with_separators(place: Place) -> object:
    return find_run("../../outside", place.here / "mlruns")


@attack
def server_that_names_a_run_with_a_path(place: Place) -> object:
    info = SimpleNamespace(run_id="../../outside/x", status="FAILED", run_name="x")
    store = SimpleNamespace(find_run=lambda _: SimpleNamespace(info=info), uri="http://x")
    return fetch_run(store, "x", place.here / "mlruns", lambda _: None)  # type: ignore[arg-type]


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


# -- results ---------------------------------------------------------------------------------------


def safetensors_file(
    path: Path, header: bytes, length: int | None = None, body: bytes = b""
) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


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


@attack
def safetensors_shape_that_overflows(place: Place) -> object:
    entry = {"dtype": "F64", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}
    header = json.dumps({"picture": entry}).encode()
    return load_saved_picture(safetensors_file(place.here / "p.safetensors", header))


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


# -- pictures --------------------------------------------------------------------------------------


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


@attack
def picture_source_in_a_saved_configuration(place: Place) -> object:
    return resume_with(place, image={"source": str(place.outside / "secret")})


# -- tracking stores -------------------------------------------------------------------------------


@attack
def artifact_paths_that_climb(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    return download_artifact(store, run_id, "../../../outside/secret", place.here / "got")


@attack
def artifact_path_from_the_root(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    return download_artifact(store, run_id, str(place.outside / "secret"), place.here / "got")


@attack
def artifact_that_is_a_link(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    folder = store.local_artifacts(run_id)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(place.outside / "secret")
    return download_artifact(store, run_id, "link", place.here / "got")


@attack
def listing_with_hostile_names(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    names = ("../../outside/x", str(place.outside / "x"), "a\n", "..\\x", "C:/x", "good")
    entries = [SimpleNamespace(path=name, is_dir=False) for name in names]
    store.client.list_artifacts = lambda *_: entries  # type: ignore[method-assign]
    assert list_artifacts(store, run_id) == ["good"]
    return None


@attack
def download_that_lands_elsewhere(place: Place) -> object:
    store = place.store()
    run_id = store.create_run("e")
    secret = str(place.outside / "secret")
    store.client.download_artifacts = lambda *_: secret  # type: ignore[method-assign]
    return download_artifact(store, run_id, "a.txt", place.here / "got")


@attack
def journal_that_names_files_elsewhere(place: Place) -> object:
    """Neither is a file outside the spool sent, nor is it removed as delivered."""
    store = place.store()
    meta = {"root": str(store.root), "uri": store.uri, "experiment": "e", "run_name": "r"}
    spool = Spool.create(store.root, {**meta, "tags": {}, "run_id": None})
    spool.append(session_record(resume=False, run_id=None))
    secret = str(place.outside / "secret")
    for name in (secret, os.path.relpath(secret, spool.folder)):
        spool.append({"k": "a", "slot": "s", "to": "x", "files": [name]})
    sender = Sender(spool)
    while sender.step():
        pass
    assert list_artifacts(store, str(sender.state.run_id)) == []
    return None


# -- the test --------------------------------------------------------------------------------------


def peak_memory(reset: bool = False) -> float:
    """Return the most memory this process held since the last reset, in MB; 0 where unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return float(line.split()[1]) / 1024


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = local_store(tmp_path_factory.mktemp("template") / "mlruns")
    store.client.search_experiments()
    return store.database


def open_it(name: str, place: Place) -> tuple[object, str]:
    """Return what came of it, and what the user was told."""
    try:
        return ATTACKS[name](place), ""
    except EigenexpError as error:
        return None, str(error)


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Place(tmp_path / "here", tmp_path / "outside", database)
    place.here.mkdir()
    place.outside.mkdir()
    (place.outside / "secret").write_text("root:x:0:0")
    monkeypatch.chdir(place.here)
    before = tree(place.outside)
    before_memory = peak_memory(reset=True)
    began = time.process_time()
    shown, told = open_it(name, place)
    assert "\n" not in told
    assert "root:x" not in told
    assert shown is None or isinstance(shown, str), f"{name} was accepted: {shown!r}"
    assert tree(place.outside) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "outside"]
    assert time.process_time() - began < 60
    assert peak_memory() - before_memory < 350
    if isinstance(shown, str):
        assert "<script>alert" not in shown
        assert "<img src=x" not in shown


def test_there_are_many_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nhostile files: {len(ATTACKS)} kinds tried")
    assert len(ATTACKS) >= 30


def test_the_harness_sees_an_execution(tmp_path: Path) -> None:
    """What the test above relies on: the payloads do work where somebody runs them."""
    place = Place(tmp_path, tmp_path / "outside", tmp_path)
    place.outside.mkdir()
    pickle.loads(pickle.dumps(Payload(os.system, place.touch())))
    assert place.canary.exists()
    model = {"_target_": "torch.nn.parallel.distributed.os.system", "command": place.touch()}
    place.canary.unlink()
    build_model(model)
    assert place.canary.exists()
    with pytest.raises(EigenexpError):
        fit({"root": str(tmp_path / "mlruns"), "resume": "maybe"})
