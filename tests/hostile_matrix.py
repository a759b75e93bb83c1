"""Every reader against every kind of damage and malice, in one process that is watched.

    python -m tests.hostile_matrix FOLDER                 a JSON line a file, about 750
    python -m tests.hostile_matrix FOLDER --every 5       a fifth of them, without spools
    python -m tests.hostile_matrix FOLDER --readers spectrum checkpoint

Each file is opened the way a user would, in a folder of its own. The process has limits (memory,
seconds, size of what it writes) and an audit hook: what would start a program, open a connection or
touch a file outside that folder is noted and refused.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import itertools
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import eigenexp as ee
from eigenexp.checkpoints.files import METADATA_KEY, load_checkpoint, save_checkpoint
from eigenexp.cli import main as command
from eigenexp.errors import EigenexpError
from eigenexp.experiments.config import compose_config, plain_config
from eigenexp.experiments.experiment import resume
from eigenexp.experiments.targets import build_model
from eigenexp.pictures.saving import load_saved_picture, save_picture
from eigenexp.report import load_runs, render_report
from eigenexp.runs.folder import RunFolder
from eigenexp.spectrum import Spectrum
from eigenexp.sweeps import SweepFolder, retry
from eigenexp.tracking import sync
from eigenexp.tracking.records import session_record
from eigenexp.tracking.spool import Spool
from tests.attacks import Payload, bomb, peak_memory
from tests.report.conftest import make_spectrum
from tests.stimuli.test_manifest import manifest as make_manifest

MOST_MEMORY = 500.0  # MB beyond what a process holds that has imported everything
MOST_SECONDS = 20.0


# -- what is read --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """How a sound file is made in a folder, and what opens it.

    Attributes
    ----------
    make
        Makes a sound file and all that belongs to it; returns its path.
    open
        Opens what lies in the folder.
    kind
        Of the damages that are tried: ``binary``, ``json``, ``torch``.
    """

    make: Callable[[Path], Path]
    open: Callable[[Path], object]
    kind: str = "binary"


READERS: dict[str, Reader] = {}


def _picture(ending: str) -> Reader:
    def make(here: Path) -> Path:
        values = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(values).save(here / f"p.{ending}")
        return here / f"p.{ending}"

    return Reader(make, lambda here: ee.load_picture(str(here / f"p.{ending}")))


for _ending in ("png", "jpg", "tif", "bmp", "gif", "webp", "ppm"):
    READERS[f"picture.{_ending}"] = _picture(_ending)


def reader(name: str, kind: str = "binary") -> Callable[[Any], Any]:
    """Add a class with ``make`` and ``open``."""

    def add(cls: Any) -> Any:
        READERS[name] = Reader(cls.make, cls.open, kind)
        return cls

    return add


@reader("picture.npy")
class _NumpyPicture:
    @staticmethod
    def make(here: Path) -> Path:
        np.save(here / "p.npy", np.random.default_rng(0).random((24, 24)))
        return here / "p.npy"

    @staticmethod
    def open(here: Path) -> object:
        return ee.load_picture(str(here / "p.npy"))


@reader("picture.pt", "torch")
class _TorchPicture:
    @staticmethod
    def make(here: Path) -> Path:
        torch.save(torch.rand(1, 1, 24, 24), here / "p.pt")
        return here / "p.pt"

    @staticmethod
    def open(here: Path) -> object:
        return ee.load_picture(str(here / "p.pt"))


@reader("picture.safetensors")
class _SavedPicture:
    @staticmethod
    def make(here: Path) -> Path:
        return save_picture(ee.load_picture("coins", crop=16), here / "picture.safetensors")

    @staticmethod
    def open(here: Path) -> object:
        return load_saved_picture(here / "picture.safetensors")


@reader("checkpoint", "torch")
class _Checkpoint:
    @staticmethod
    def make(here: Path) -> Path:
        facts = {"metadata": {"schema_version": 1}}
        content = {"global_step": 1, "x": torch.zeros(999), METADATA_KEY: facts}
        save_checkpoint(content, here / "last.ckpt")
        return here / "last.ckpt"

    @staticmethod
    def open(here: Path) -> object:
        return load_checkpoint(here / "last.ckpt")


@reader("spectrum")
class _Spectrum:
    @staticmethod
    def make(here: Path) -> Path:
        return make_spectrum().save(here / "spectrum.safetensors")

    @staticmethod
    def open(here: Path) -> object:
        return str(Spectrum.load(here / "spectrum.safetensors"))


@reader("plenoptic's file", "torch")
class _PlenopticFile:
    @staticmethod
    def make(here: Path) -> Path:
        torch.save({"_image": torch.rand(1, 1, 16, 16)}, here / "eig.pt")
        return here / "eig.pt"

    @staticmethod
    def open(here: Path) -> object:
        model = ee.models.OnOff().eval()
        return ee.Eigendistortion(torch.rand(1, 1, 16, 16), model).load(here / "eig.pt")


@reader("weights.pt", "torch")
class _Weights:
    @staticmethod
    def make(here: Path) -> Path:
        torch.save(torch.nn.Conv2d(1, 1, 3).state_dict(), here / "w.pt")
        return here / "w.pt"

    @staticmethod
    def open(here: Path) -> object:
        conv = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1}
        return build_model({**conv, "kernel_size": 3, "weights": str(here / "w.pt")})


@reader("weights.safetensors")
class _SafeWeights:
    @staticmethod
    def make(here: Path) -> Path:
        from safetensors.torch import save_file

        save_file(torch.nn.Conv2d(1, 1, 3).state_dict(), here / "w.safetensors")
        return here / "w.safetensors"

    @staticmethod
    def open(here: Path) -> object:
        conv = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1}
        return build_model({**conv, "kernel_size": 3, "weights": str(here / "w.safetensors")})


# -- runs, studies, sweeps, spools ---------------------------------------------------------------


def _config() -> dict[str, Any]:
    if not _CONFIG:
        _CONFIG.update(plain_config(compose_config(["image.crop=[120,220,20,20]", "logger=none"])))
    return dict(_CONFIG)


_CONFIG: dict[str, Any] = {}


def _run(here: Path, **config: Any) -> RunFolder:
    run = RunFolder(here / "mlruns", "abc123")
    config = {**_config(), **config}
    run.write_record(status="FINISHED", config=config, title="Net at coins")
    facts = {"metadata": {"schema_version": 1, "config": config}}
    save_checkpoint({"global_step": 1, METADATA_KEY: facts}, run.checkpoints / "last.ckpt")
    run.results.mkdir(parents=True)
    make_spectrum().save(run.results / "spectrum.safetensors")
    save_picture(ee.load_picture("coins", crop=[0, 0, 12, 16]), run.results / "picture.safetensors")
    (run.results / "convergence.csv").write_text("products,seconds,residual/0\n1,0.1,0.5\n2,1,.1\n")
    return run


def _report(here: Path) -> object:
    page = render_report(load_runs("abc123", here / "mlruns"))
    assert "<script>alert" not in page
    return page


for _name, _kind in (
    ("picture.safetensors", "binary"),
    ("spectrum.safetensors", "binary"),
    ("convergence.csv", "binary"),
):
    READERS[f"report of {_name}"] = Reader(
        lambda here, name=_name: _run(here).results / name, _report, _kind
    )
READERS["report of run.json"] = Reader(lambda here: _run(here).record_path, _report, "json")


def _commands(*lines: list[str]) -> Callable[[Path], object]:
    """Return what calls ``eigenexp`` so, and sees that every failure is one line."""

    def call(here: Path) -> object:
        for line in lines:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = command([*line, "--root", str(here / "mlruns")])
            said = out.getvalue() + err.getvalue()
            assert code in (0, 1, 3), f"exit code {code}"
            assert "Traceback" not in said, said[-500:]
            wrong = {c for c in said if not c.isprintable()} - {"\n"}
            assert not wrong, f"control characters {wrong} on the screen"
            assert len(err.getvalue().splitlines()) <= 3, err.getvalue()[:500]
        return None

    return call


def _resumed(here: Path) -> object:
    return resume("abc123", root=here / "mlruns", say=lambda _: None)


_SHOWN = _commands(["show"], ["show", "abc123"], ["show", "abc123", "--json"])
READERS["show of run.json"] = Reader(lambda here: _run(here).record_path, _SHOWN, "json")
READERS["resume of run.json"] = Reader(
    lambda here: _drop(_run(here), "last.ckpt").record_path,
    _resumed,
    "json",
)


READERS["manifest of stimuli"] = Reader(
    lambda here: ee.stimuli.write_manifest(make_manifest(), here), ee.stimuli.read_manifest, "json"
)


def _drop(run: RunFolder, name: str) -> RunFolder:
    for path in run.checkpoints.glob(f"{name.partition('.')[0]}.*"):
        path.unlink()
    return run


def _study(here: Path) -> RunFolder:
    run = _run(here)
    run.write_record(study=True)
    folder = run.results / "pictures" / "000000-coins"
    folder.mkdir(parents=True)
    shutil.move(run.results / "spectrum.safetensors", folder / "spectrum.safetensors")
    pair = {"index": 0, "eigenvalue": 1.0, "error_bound": 0.1, "residual": 0.0}
    record = {"position": 0, "name": "coins", "where": "coins", "status": "finished", "error": None}
    record |= {"converged": True, "stop_reason": "converged", "pairs": [pair], "num_products": 3}
    (folder / "record.json").write_text(json.dumps(record))
    plan = {"schema_version": 1, "pictures": ["coins"]}
    (run.results / "study.json").write_text(json.dumps(plan))
    return run


def _study_part(name: str) -> Callable[[Path], Path]:
    return lambda here: _study(here).results / name


def _shown_and_reported(here: Path) -> object:
    _SHOWN(here)
    return _report(here)


for _part in ("study.json", "pictures/000000-coins/record.json"):
    READERS[f"study's {Path(_part).name}"] = Reader(_study_part(_part), _shown_and_reported, "json")


def _sweep(here: Path) -> SweepFolder:
    sweep = SweepFolder(here / "mlruns", "20260101-s")
    sweep.create([["threads=1"], ["threads=2"]], rows=[{"k": 1}, {"k": 2}])
    sweep.write_job(0, "finished", row={"k": 1}, run_id="abc123")
    return sweep


def _sweep_shown(here: Path) -> object:
    _commands(["show", "20260101-s"], ["show"])(here)
    (here / "mlruns" / "sweeps" / "20260101-s" / "table.csv").unlink(missing_ok=True)
    with _no_job_runs():
        return retry("20260101-s", root=here / "mlruns", say=lambda _: None)


@contextlib.contextmanager
def _no_job_runs() -> Iterator[None]:
    """A sound sweep would be run: that is not what is looked at."""
    from eigenexp.sweeps import launching

    real = launching.launch
    launching.launch = lambda *_, **__: 0  # type: ignore[assignment]
    try:
        yield
    finally:
        launching.launch = real


def _spool(here: Path) -> Spool:
    root = here / "mlruns"
    root.mkdir()
    shutil.copyfile(DATABASE[0], root / "mlflow.db")
    meta = {"root": str(root), "uri": f"sqlite:///{root}/mlflow.db", "experiment": "e"}
    spool = Spool.create(root, {**meta, "run_name": "r", "tags": {}, "run_id": None})
    spool.append({**session_record(resume=False, run_id=None), "pid": 2**22 + 1})
    spool.append({"k": "m", "t": 1, "s": 1, "v": {"a": 1.0}})
    spool.append({"k": "p", "v": {"x": 1}})
    (spool.folder / "state.json").write_text(json.dumps(asdict(spool.read_state())))
    spool.close()
    return spool


DATABASE: list[Path] = []
_SPOOL = "spool's"


def _synced(here: Path) -> object:
    sync(here / "mlruns")
    _commands(["sync"])(here)
    return None


for _part, _kind in (("meta.json", "json"), ("state.json", "json"), ("journal-000001.jsonl", "")):
    READERS[f"{_SPOOL} {_part}"] = Reader(
        lambda here, name=_part: _spool(here).folder / name, _synced, _kind or "binary"
    )


# -- damage --------------------------------------------------------------------------------------

Damage = Callable[[Path, Path], None]
DAMAGES: dict[str, dict[str, Damage]] = {"binary": {}, "json": {}, "torch": {}}


def damage(*kinds: str) -> Callable[[Damage], Damage]:
    """Add a function of a sound file and a place outside."""

    def add(function: Damage) -> Damage:
        for kind in kinds:
            DAMAGES[kind][function.__name__.strip("_")] = function
        return function

    return add


ALL = ("binary", "json", "torch")


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@damage(*ALL)
def empty(path: Path, _: Path) -> None:
    _replace(path, b"")


@damage(*ALL)
def zeros(path: Path, _: Path) -> None:
    _replace(path, bytes(5000))


@damage(*ALL)
def noise(path: Path, _: Path) -> None:
    _replace(path, np.random.default_rng(1).bytes(5000))


@damage(*ALL)
def half(path: Path, _: Path) -> None:
    content = path.read_bytes()
    _replace(path, content[: len(content) // 2])


@damage(*ALL)
def all_but_one_byte(path: Path, _: Path) -> None:
    _replace(path, path.read_bytes()[:-1])


@damage("binary", "torch")
def flipped_bits(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(8, len(content), 97):
        content[place] ^= 0x55
    _replace(path, bytes(content))


@damage(*ALL)
def twice(path: Path, _: Path) -> None:
    _replace(path, path.read_bytes() * 2)


@damage(*ALL)
def a_terabyte_of_holes(path: Path, _: Path) -> None:
    content = path.read_bytes()
    _replace(path, content)
    os.truncate(path, 1 << 40)


@damage(*ALL)
def a_pipe(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@damage(*ALL)
def a_socket(path: Path, _: Path) -> None:
    path.unlink()
    before = os.getcwd()
    os.chdir(path.parent)  # a long address does not fit
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


@damage(*ALL)
def a_folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


@damage(*ALL)
def a_link_to_an_endless_device(path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@damage(*ALL)
def a_link_to_a_secret(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "secret")


@damage(*ALL)
def a_link_to_itself(path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@damage(*ALL)
def a_link_to_nothing(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "made")


@damage(*ALL)
def a_program(path: Path, outside: Path) -> None:
    _replace(path, f"#!/bin/sh\ntouch {outside}/executed\n".encode())
    path.chmod(0o755)


@damage(*ALL)
def postscript(path: Path, outside: Path) -> None:
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({outside}/executed) (w) file\n"
    _replace(path, text.encode())


@damage(*ALL)
def bare_pickle(path: Path, outside: Path) -> None:
    _replace(path, pickle.dumps(Payload(os.system, f"touch {outside}/executed")))


@damage(*ALL)
def foreign_archive(path: Path, outside: Path) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside/executed", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(os.system, "true")))


@damage("torch")
def torch_payload(path: Path, outside: Path) -> None:
    path.unlink()
    torch.save({"x": Payload(os.system, f"touch {outside}/executed")}, path)


@damage("torch")
def torch_payload_of_before(path: Path, outside: Path) -> None:
    path.unlink()
    content = {"x": Payload(os.system, f"touch {outside}/executed")}
    torch.save(content, path, _use_new_zipfile_serialization=False)


@damage("torch")
def a_module_pickled_whole(path: Path, _: Path) -> None:
    path.unlink()
    torch.save(torch.nn.Linear(2, 2), path)


@damage("torch")
def archive_that_unpacks_to_gigabytes(path: Path, _: Path) -> None:
    path.unlink()
    bomb(path, 1 << 30)


@damage("torch")
def one_number_repeated(path: Path, _: Path) -> None:
    path.unlink()
    endless = torch.zeros(1).expand(1, 1, 60_000, 60_000)
    torch.save({"weight": endless, "bias": endless, "_image": endless}, path)


@damage("torch")
def strings_and_lists(path: Path, _: Path) -> None:
    path.unlink()
    torch.save({"a\x1b[31m": ["x" * 100_000], 3: {"weight": "x"}, "global_step": "\x07"}, path)


@damage("torch")
def nested_deep(path: Path, _: Path) -> None:
    value: Any = []
    for _level in range(150):
        value = [value]
    path.unlink()
    torch.save({"global_step": value, "state_dict": value}, path)


def _as_json(name: str, make: Callable[[Any], str | bytes]) -> None:
    def function(path: Path, _: Path) -> None:
        made = make(json.loads(path.read_text()))
        _replace(path, made.encode("utf-8", "surrogatepass") if isinstance(made, str) else made)

    DAMAGES["json"][name] = function


def _every(value: Any, other: Any) -> Any:
    """Put another value in every place."""
    return {key: other for key in value}


_SCRIPT = "</script><script>alert(1)</script>"
_as_json("nested a hundred thousand deep", lambda _: "[" * 100_000 + "]" * 100_000)
_as_json("objects nested deep", lambda _: '{"a":' * 50_000 + "1" + "}" * 50_000)
_as_json("numbers without end", lambda v: json.dumps(v)[:-1] + ', "n": ' + "9" * 5000 + "}")
_as_json("not a number", lambda v: json.dumps(_every(v, float("nan"))))
_as_json("infinity", lambda v: json.dumps(_every(v, float("-inf"))).replace("Infinity", "1e999"))
_as_json("a list", lambda v: json.dumps([v]))
_as_json("null", lambda _: "null")
_as_json("every value null", lambda v: json.dumps(_every(v, None)))
_as_json("every value a list", lambda v: json.dumps(_every(v, [[], {}])))
_as_json("every value a mapping", lambda v: json.dumps(_every(v, {"x": {"_target_": "os.system"}})))
_as_json("every value a text", lambda v: json.dumps(_every(v, f"../../x\x1b[2J\x07{_SCRIPT}")))
_as_json("every value true", lambda v: json.dumps(_every(v, True)))
_as_json("every value a long number", lambda v: json.dumps(_every(v, 10**300)))
_as_json("half a surrogate pair", lambda v: json.dumps(_every(v, "\ud800")))
_as_json("keys twice", lambda v: json.dumps(v)[:-1] + ", " + json.dumps(_every(v, 3))[1:])
_as_json("a byte order mark", lambda v: b"\xef\xbb\xbf" + json.dumps(v).encode())
_as_json("another encoding", lambda v: json.dumps(v).encode("utf-16"))
_as_json("bytes of no text", lambda v: json.dumps(v).encode()[:-1] + b', "\xff\xfe": 1}')


def _in_texts(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {key: _in_texts(entry, text) for key, entry in value.items()}
    if isinstance(value, list):
        return [_in_texts(entry, text) for entry in value]
    return text if isinstance(value, str) else value


_as_json("every text hostile", lambda v: json.dumps(_in_texts(v, f"\x1b[31m{_SCRIPT}\r\n../x")))
_as_json("every text a path", lambda v: json.dumps(_in_texts(v, "../../../outside/made")))


# -- configurations ------------------------------------------------------------------------------


def hostile_settings(outside: Path) -> dict[str, dict[str, Any]]:
    """Return saved configurations by name: each group with something that is to be refused."""
    touch = f"touch {outside}/executed"
    system = {"_target_": "os.system", "command": touch}
    usual = _config()
    found: dict[str, dict[str, Any]] = {}
    for group in (*usual, "others"):
        given = usual.get(group)
        inside = dict(given) if isinstance(given, dict) else {}
        found[f"{group} is a program"] = {group: system}
        found[f"{group} holds a program"] = {group: {**inside, "mine": system}}
        found[f"{group} holds an interpolation"] = {group: {**inside, "x": "${oc.env:HOME}"}}
        found[f"{group} is of another kind"] = {group: [1, {"a": [touch]}]}
    for target in (
        "builtins.eval",
        "builtins.__import__",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.os.system",
        "eigenexp.models.networks.Path.unlink",
        "pickle.loads",
        f"{outside}/evil.py:Net",
        "torch.nn.__dict__",
        "torch.nn..Linear",
    ):
        found[f"model {Path(target).name}"] = {"model": {"_target_": target, "args": touch}}
    found["a root outside"] = {"root": str(outside / "made"), "image": {"source": "absent.png"}}
    found["the trainer's folder outside"] = {
        "trainer": {**usual["trainer"], "default_root_dir": str(outside / "made")}
    }
    found["a picture of gigabytes"] = {"image": {**usual["image"], "resize": 10**7}}
    found["endless threads"] = {"threads": 10**6, "image": {"source": "absent.png"}}
    found["a tracking store elsewhere"] = {
        "logger": {**usual["logger"], "mlflow": True, "tracking_uri": "http://127.0.0.1:9/"}
    }
    return found


# -- watching ------------------------------------------------------------------------------------


@dataclass
class Row:
    """What became of one file."""

    reader: str
    damage: str
    told: str | None = None
    fault: str | None = None
    noted: list[str] = field(default_factory=list)
    memory: float = 0.0
    seconds: float = 0.0


class TooLong(BaseException):
    """A file held its reader up."""


class Watch:
    """Notes, and refuses, what no reader may do."""

    programs = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
                "os.forkpty", "pty.spawn", "os.startfile")  # fmt: skip
    changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
               "os.chmod", "os.chown", "os.truncate", "os.utime", "shutil.rmtree")  # fmt: skip

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.noted: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event == "subprocess.Popen" and "core.hooksPath=/dev/null" in given[1]:
            return  # git, asked for a run's commit, with nothing of the folder's own executed
        if event in self.programs or event in ("socket.connect", "socket.sendto"):
            self._refuse(f"{event} {given[:2]!r:.200}")
        elif event in self.changes:
            for path in given[:2]:
                self._look(event, path)
        elif event == "open":
            path, mode, flags = given
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            if writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                self._look("open", path)

    def _look(self, event: str, path: Any) -> None:
        inside = self.inside
        if not isinstance(path, (str, bytes, os.PathLike)) or inside is None:
            return
        self.inside = None
        name = os.fsdecode(path)
        if event == "open":
            place = Path(os.path.realpath(name))
        else:  # of the name itself, whatever it links to
            place = Path(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name))
        self.inside = inside
        if inside not in (place, *place.parents) and str(place) != os.devnull:
            self._refuse(f"{event} {place}")

    def _refuse(self, what: str) -> None:
        self.noted.append(what)
        raise PermissionError(13, f"not allowed here: {what}")

    @contextlib.contextmanager
    def within(self, folder: Path) -> Iterator[list[str]]:
        """Watch for the time of a block."""
        self.noted = []
        self.inside = folder.resolve()
        try:
            yield self.noted
        finally:
            self.inside = None


def attempt(watch: Watch, here: Path, row: Row, act: Callable[[Path], object]) -> None:
    """Open what lies in a folder; note what came of it."""
    before = peak_memory(reset=True)
    began = time.process_time()
    previous = Path.cwd()
    os.chdir(here)
    try:
        with limits(), watch.within(here) as noted:
            act(here)
    except (EigenexpError, FileNotFoundError) as error:
        row.told = str(error)
        if not isinstance(error, EigenexpError) and row.reader != "plenoptic's file":
            row.fault = f"no error of ours: {error!r}"
        if not row.told.isprintable():
            row.fault = f"told in no plain line: {row.told!r:.300}"
        if "root:x:0" in row.told:
            row.fault = "told the secret"
    except BaseException as error:
        row.fault = f"{type(error).__name__}: {error!s:.300}"
    finally:
        os.chdir(previous)
    row.noted = noted
    row.memory = round(peak_memory() - before, 1)
    row.seconds = round(time.process_time() - began, 2)
    kept = sorted(path.name for path in (here.parent / "outside").iterdir())
    if kept not in (["secret"], ["evil.py", "secret"]):
        row.noted.append(f"left outside: {kept}")
    shutil.rmtree(here.parent)


def cases(
    home: Path, wanted: list[str], every: int
) -> Iterator[tuple[Row, Path, Callable[[Path], object]]]:
    """Yield the folder of every so-many-th file, and what opens it."""
    count = 0
    for name, each in READERS.items():
        for kind, change in DAMAGES[each.kind].items() if name in wanted else ():
            count += 1
            if count % every:
                continue
            here, outside = _fresh(home)
            change(each.make(here), outside)
            yield Row(name, kind.replace("_", " ")), here, each.open
    for name in hostile_settings(home) if "configuration" in wanted else ():
        count += 1
        if count % every:
            continue
        here, outside = _fresh(home)
        (outside / "evil.py").write_text(f"open({str(outside / 'executed')!r}, 'w')")
        config = hostile_settings(outside)[name]
        run = RunFolder(here / "mlruns", "abc123")
        run.write_record(status="KILLED", config=_config(), title="x")
        facts = {"schema_version": 1, "config": {**_config(), **config}}
        content = {"global_step": 1, METADATA_KEY: {"metadata": facts}}
        save_checkpoint(content, run.checkpoints / "last.ckpt")
        yield Row("configuration", name), here, _resumed


def _fresh(home: Path) -> tuple[Path, Path]:
    """Return a folder to work in and one outside of it, of names that were never there before.

    MLflow keeps open what it has opened by a name.
    """
    place = home / f"{next(_COUNT)}"
    for name in ("here", "outside"):
        (place / name).mkdir(parents=True)
    (place / "outside" / "secret").write_text("root:x:0:0")
    return place / "here", place / "outside"


_COUNT = itertools.count()


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Give this process no more than it may need: what goes beyond fails in it alone."""
    held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    wanted = {resource.RLIMIT_DATA: held + (3 << 30), resource.RLIMIT_FSIZE: 64 << 20}
    for what, most in wanted.items():
        resource.setrlimit(what, (most, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for what in wanted:
            resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _too_long(*_: object) -> None:
    raise TooLong(f"more than {MOST_SECONDS:.0f} s")


def main(arguments: list[str]) -> int:
    """Try all, or some; print a JSON line each."""
    faulthandler.enable()
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--readers", nargs="+", choices=[*READERS, "configuration"])
    options = parser.parse_args(arguments)
    home, told = options.home, sys.stdout
    home.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr
    wanted = options.readers or [*READERS, "configuration"]
    if options.every > 1:
        wanted = [name for name in wanted if not name.startswith(_SPOOL)]
    if any(name.startswith(_SPOOL) for name in wanted):
        from eigenexp.tracking import local_store

        store = local_store(home / "template" / "mlruns")
        store.client.search_experiments()
        DATABASE.append(store.database)
    _warm_up(home, wanted)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _too_long)
    watch = Watch()
    for row, here, act in cases(home, wanted, options.every):
        attempt(watch, here, row, act)
        print(json.dumps(asdict(row)), file=told, flush=True)
    return 0


def _warm_up(home: Path, wanted: list[str]) -> None:
    """Read what is sound, once: lazy imports and caches are nobody's malice."""
    for each in [READERS[name] for name in wanted if name in READERS]:
        here, _ = _fresh(home)
        each.make(here)
        with contextlib.suppress(EigenexpError):
            before = Path.cwd()
            os.chdir(here)
            each.open(here)
        os.chdir(before)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
