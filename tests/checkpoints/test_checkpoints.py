"""Checkpoint files: whole or absent, verified, harmless to read, and honest about their origin."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from eigenexp.checkpoints.compatibility import (
    ProvenanceWarning,
    Severity,
    check_metadata,
    compare_metadata,
    migrate_metadata,
)
from eigenexp.checkpoints.files import (
    CheckpointWarning,
    find_checkpoint,
    load_checkpoint,
    load_metadata,
    metadata_path,
    save_checkpoint,
    verify_checkpoint,
)
from eigenexp.checkpoints.lightning_io import AtomicCheckpointIO
from eigenexp.checkpoints.provenance import checkpoint_metadata, model_fingerprint
from eigenexp.errors import CheckpointError
from eigenexp.storage.atomic import remove_orphans, write_json_atomic
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.storage.plain import plain

DATA = Path(__file__).parents[1] / "data"


def make(step: int, size: int = 100, **facts) -> dict:
    return {
        "global_step": step,
        "state_dict": {},
        "eigenexp": {
            "solver": {"basis": torch.arange(size, dtype=torch.float64) + step},
            "progress": {"eigenvalues": [2.0, 1.0], "residuals": [1e-5, float("inf")]},
            "metadata": checkpoint_metadata(**facts),
        },
    }


# -- files -----------------------------------------------------------------------------------------


def test_round_trip_is_bitwise_and_sealed(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    saved = make(7)
    file_sha256 = save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["eigenexp"]["solver"]["basis"], saved["eigenexp"]["solver"]["basis"])
    assert verify_checkpoint(path).step == 7
    told = json.loads(metadata_path(path).read_text())
    assert told["step"] == 7
    assert told["residuals"] == [1e-5, "inf"]
    assert told["file_sha256"] == file_sha256
    import hashlib

    assert hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256
    assert load_metadata(path)["step"] == 7
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.metadata.json"]


def test_any_torch_reads_a_sealed_file(tmp_path):
    save_checkpoint(make(1), tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 1
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None


def test_plugin_reads_and_writes_through_lightning(tmp_path):
    plugin = AtomicCheckpointIO()
    path = tmp_path / "x.ckpt"
    plugin.save_checkpoint(make(3), path)
    assert plugin.load_checkpoint(path, weights_only=False)["global_step"] == 3
    plugin.remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make(1, size=4000), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make(1), path)
    content = path.read_bytes()
    for place in [*range(0, len(content), 97), *range(len(content) - 130, len(content))]:
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)


def test_file_of_another_writer_is_checked_by_its_zip_checksums(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save(make(4, size=1000), path)
    assert verify_checkpoint(path).step is None
    content = bytearray(path.read_bytes())
    place = content.index(b"\0\0\0\0\0\x10\x40") if b"\0\0\0\0\0\x10\x40" in content else 4000
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        verify_checkpoint(path)


def test_newest_valid_one_is_found(tmp_path):
    for step in (10, 20):
        save_checkpoint(make(step), tmp_path / f"step-{step}.ckpt")
    save_checkpoint(make(30), tmp_path / "last.ckpt")
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-500])
    with pytest.warns(CheckpointWarning, match="last.ckpt"):
        assert find_checkpoint(tmp_path).name == "step-20.ckpt"


def test_last_wins_a_tie_and_a_newer_history_wins_over_last(tmp_path):
    save_checkpoint(make(10), tmp_path / "step-10.ckpt")
    save_checkpoint(make(10), tmp_path / "last.ckpt")
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    save_checkpoint(make(11), tmp_path / "step-11.ckpt")
    assert find_checkpoint(tmp_path).name == "step-11.ckpt"


def test_nothing_usable_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="got none"):
        find_checkpoint(tmp_path)
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "gone")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(CheckpointError, match="only damaged ones"),
    ):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        find_checkpoint(tmp_path / "nowhere")


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    code = """
import resource, signal, sys, torch
from eigenexp.checkpoints import save_checkpoint
from eigenexp.errors import CheckpointError
save_checkpoint({"global_step": 1}, sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint({"global_step": 2, "big": torch.zeros(10**6)}, sys.argv[1])
except CheckpointError as error:
    print(error)
"""
    path = tmp_path / "last.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "intact" in done.stdout
    assert verify_checkpoint(path).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.metadata.json"]


WRITER = """
import sys, torch
from eigenexp.checkpoints import save_checkpoint
print("ready", flush=True)
step = 0
while True:
    step += 1
    checkpoint = {"global_step": step, "x": torch.full((200_000,), float(step))}
    save_checkpoint(checkpoint, sys.argv[1] + "/last.ckpt")
"""


def kill_while_writing(folder: Path, times: int) -> int:
    """Kill a writer at many instants; return how many left a temporary file behind."""
    orphans = 0
    for i in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.0037 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        orphans += len(list(folder.glob(".*.eigenexp-tmp")))
        if (folder / "last.ckpt").exists():
            loaded = load_checkpoint(find_checkpoint(folder))
            assert bool((loaded["x"] == float(loaded["global_step"])).all())
            assert not list(folder.glob(".*.eigenexp-tmp"))
    return orphans


def test_killed_writer_never_leaves_a_broken_checkpoint(tmp_path):
    kill_while_writing(tmp_path, 4)
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.slow
def test_kill_storm(tmp_path):
    assert kill_while_writing(tmp_path, 40) > 0  # else no kill fell into a write


def test_temporary_file_of_a_living_writer_stays(tmp_path):
    from eigenexp.storage.atomic import replacing

    with replacing(tmp_path / "last.ckpt") as file:
        file.write(b"half")
        assert remove_orphans(tmp_path) == []
        file.write(b" whole")
    assert (tmp_path / "last.ckpt").read_bytes() == b"half whole"
    (tmp_path / ".last.ckpt.1-1.eigenexp-tmp").write_bytes(b"dead")
    (tmp_path / ".last.ckpt.tmp").write_bytes(b"somebody else's")
    assert [p.name for p in remove_orphans(tmp_path)] == [".last.ckpt.1-1.eigenexp-tmp"]
    assert (tmp_path / ".last.ckpt.tmp").exists()


def test_failed_write_leaves_nothing_behind(tmp_path):
    from eigenexp.storage.atomic import replacing

    (tmp_path / "a").write_text("before")

    def write_half() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "before")]


# -- hostile files ---------------------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_objects(marker: Path) -> dict:
    shell = f"touch {marker}"
    return {
        "os.system": Payload(os.system, shell),
        "eval": Payload(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Payload(exec, f"open({str(marker)!r}, 'w')"),
        "subprocess": Payload(subprocess.call, ["touch", str(marker)]),
        "open": Payload(open, str(marker), "w"),
        "getattr": Payload(getattr, "x", "upper"),
        "import": Payload(__import__, "antigravity"),
        "path": Path("/tmp"),
        "module": nn.Linear(2, 2),
        "nested": {"a": [1, {"b": Payload(os.system, shell)}]},
        "torch.load": Payload(torch.load, str(marker)),
        "exception": ValueError("x"),
    }


@pytest.mark.parametrize("kind", sorted(hostile_objects(Path("x"))))
@pytest.mark.parametrize("sealed", [True, False])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, kind, sealed):
    marker, path = tmp_path / "executed", tmp_path / "last.ckpt"
    checkpoint = {"global_step": 1, "payload": hostile_objects(marker)[kind]}
    if sealed:
        save_checkpoint(checkpoint, path)
    else:
        torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="refused" if kind != "getattr" else ":"):
        load_checkpoint(path)
    assert not marker.exists()


def test_other_kinds_of_files_are_refused(tmp_path):
    marker = tmp_path / "executed"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "raw.ckpt").write_bytes(pickle.dumps(Payload(os.system, f"touch {marker}")))
    (bad / "empty.ckpt").write_bytes(b"")
    (bad / "text.ckpt").write_text("PK\x03\x04 is how a zip begins")
    (bad / "folder.ckpt").mkdir()
    os.mkfifo(bad / "pipe.ckpt")
    (bad / "device.ckpt").symlink_to("/dev/zero")
    with zipfile.ZipFile(bad / "zip.ckpt", "w") as archive:
        archive.writestr("../../escape", "x")
    legacy = bad / "legacy.ckpt"
    torch.save(
        {"x": Payload(os.system, f"touch {marker}")}, legacy, _use_new_zipfile_serialization=False
    )
    torch.save([1, 2], bad / "list.ckpt")
    for path in sorted(bad.iterdir()):
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert not marker.exists()
    assert not (tmp_path / "escape").exists()


# -- provenance ------------------------------------------------------------------------------------


def test_metadata_is_plain_and_complete(tmp_path, monkeypatch):
    model, image = nn.Linear(3, 2), torch.randn(1, 3)
    metadata = checkpoint_metadata(
        model=model_fingerprint(model, image),
        picture={"sha256": tensor_sha256(image), "source": Path("/x")},
        config={"solver": {"k": 2}},
        dtype=torch.float32,
        device=torch.device("cpu"),
        step=3,
        num_products=12,
        eigenvalues=torch.tensor([2.0]),
        residuals=[0.5],
    )
    expected = {"schema_version", "created", "versions", "platform", "threads", "model", "picture"}
    expected |= {"config", "dtype", "device", "step", "num_products", "eigenvalues", "residuals"}
    assert expected <= metadata.keys()
    assert set(metadata["versions"]) == {"eigenexp", "torch", "lightning", "mlflow", "python"}
    torch.save(metadata, tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt", weights_only=True) == metadata
    assert json.loads(json.dumps(metadata)) == metadata


def test_git_state_inside_and_outside_a_repository(tmp_path):
    from eigenexp.checkpoints.provenance import git_state

    assert git_state(str(tmp_path)) is None
    repository = tmp_path / "r"
    repository.mkdir()
    marker = tmp_path / "executed"

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(
            ["git", "-C", str(repository), *identity, *arguments], check=True, capture_output=True
        )

    git("init", "-q")
    (repository / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    git("config", "core.fsmonitor", f"touch {marker}")
    state = git_state(str(repository))
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    git_state.cache_clear()
    (repository / "a").write_text("2")
    state = git_state(str(repository))
    assert state is not None
    assert state["dirty"] is True
    assert not marker.exists()


def test_fingerprint_sees_weights_buffers_and_output():
    torch.manual_seed(0)
    image = torch.randn(1, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    before = model_fingerprint(model, image)
    assert model_fingerprint(model, image) == before
    with torch.no_grad():
        model[1].running_mean[0] += 1
    after = model_fingerprint(model, image)
    assert after["weights_sha256"] != before["weights_sha256"]
    assert after["output_sha256"] != before["output_sha256"]
    assert after["class"] == before["class"] == "torch.nn.modules.container.Sequential"
    nested = model_fingerprint(lambda x: (x, {"a": [x * 2]}), image)
    assert "weights_sha256" not in nested
    assert nested["output_sha256"] == tensor_sha256(torch.cat([image, image * 2]).reshape(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool])
def test_tensor_hash_depends_on_values_shape_and_dtype(dtype):
    tensor = torch.ones(4, dtype=dtype)
    assert tensor_sha256(tensor) == tensor_sha256(tensor.clone())
    assert tensor_sha256(tensor) != tensor_sha256(tensor.reshape(2, 2))
    assert tensor_sha256(tensor) != tensor_sha256(tensor.to(torch.complex128))
    assert tensor_sha256(tensor[0]) != tensor_sha256(tensor[:1])


def base() -> dict:
    torch.manual_seed(0)
    image = torch.randn(1, 3)
    return checkpoint_metadata(
        model=model_fingerprint(nn.Linear(3, 50), image),
        picture={"sha256": "a", "source": "camera"},
        config={"solver": {"k": 2, "tol": float("nan")}},
        dtype=torch.float32,
        device="cpu",
        step=4,
    )


def test_equal_metadata_have_no_difference():
    later = {**base(), "step": 9, "created": "2030", "eigenvalues": [1.0]}
    assert compare_metadata(base(), later) == []


@pytest.mark.parametrize(
    ("path", "value", "field", "severity"),
    [
        ("versions.torch", "1.0", "versions.torch", "harmless"),
        ("platform", "Plan9", "platform", "harmless"),
        ("device", "cuda:0", "device", "harmless"),
        ("config.solver.k", 3, "config.solver.k", "harmless"),
        ("config.solver.new", 3, "config.solver.new", "harmless"),
        ("picture.source", "other", "picture.source", "harmless"),
        ("picture.sha256", "b", "picture.sha256", "harmful"),
        ("dtype", "torch.float64", "dtype", "harmful"),
        ("model.class", "other.Model", "model.class", "harmful"),
        ("model.weights_sha256", "b", "model.weights_sha256", "harmful"),
        ("schema_version", 99, "schema_version", "harmful"),
    ],
)
def test_each_difference_is_told_with_its_weight(path, value, field, severity):
    saved = base()
    place = saved
    *parents, leaf = path.split(".")
    for name in parents:
        place = place[name]
    place[leaf] = value
    (difference,) = compare_metadata(saved, base())
    assert difference.field == field
    assert difference.severity == severity
    assert "\n" not in difference.message
    if severity == "harmful" and field != "schema_version":
        with pytest.raises(CheckpointError, match=field.replace(".", r"\.")):
            check_metadata(saved, base())
        with pytest.warns(ProvenanceWarning, match=field):
            check_metadata(saved, base(), force=True)
        with pytest.warns(ProvenanceWarning, match="on purpose"):
            check_metadata(saved, base(), intended={field})
    elif field != "schema_version":
        with pytest.warns(ProvenanceWarning, match=field):
            check_metadata(saved, base())


@pytest.mark.parametrize(("scale", "severity"), [(1 + 1e-6, "harmless"), (1.01, "harmful")])
def test_output_that_differs_by_rounding_only_is_harmless(scale, severity):
    torch.manual_seed(0)
    image, model = torch.randn(1, 3), nn.Linear(3, 50)
    response = model(image).detach()
    a = {"model": model_fingerprint(model, image, response)}
    b = {"model": model_fingerprint(model, image, response * scale)}
    (difference,) = compare_metadata(a, b)
    assert (difference.field, difference.severity) == ("model.output", Severity(severity))


def test_missing_git_is_a_difference():
    commit = {"git": {"commit": "a", "dirty": False}}
    assert [d.field for d in compare_metadata(commit, {})] == ["git.commit", "git.dirty"]


@pytest.mark.parametrize("version", [None, 0, "1", 99])
def test_schemas_that_cannot_be_read_are_refused(version):
    with pytest.raises(CheckpointError, match="schema"):
        migrate_metadata({"schema_version": version, "versions": {"eigenexp": "9"}})


@pytest.mark.parametrize(
    "path", sorted(DATA.glob("checkpoint-schema-*.ckpt")), ids=lambda p: p.name
)
def test_checkpoints_of_every_schema_are_read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata = load_metadata(path)
    assert metadata["schema_version"] == 1
    assert metadata["step"] == 5
    assert metadata["eigenvalues"] == [2.0, 1.0]


def test_a_checkpoint_of_the_present_schema_is_kept():
    from eigenexp.checkpoints.provenance import SCHEMA_VERSION

    assert (DATA / f"checkpoint-schema-{SCHEMA_VERSION}.ckpt").is_file()


def test_plain_reaches_every_container():
    import enum

    import numpy as np

    class Colour(enum.Enum):
        RED = "red"

    value = {
        1: (np.float32(0.5), np.int64(2), np.array([1, 2])),
        "p": Path("a/b"),
        "e": Colour.RED,
        "s": {3, 1},
        "b": True,
        "o": torch.float32,
    }
    assert plain(value) == {
        "1": [0.5, 2, [1, 2]],
        "p": "a/b",
        "e": "red",
        "s": [1, 3],
        "b": True,
        "o": "torch.float32",
    }
    assert type(plain(np.float64(1.0))) is float


def test_json_is_strict(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"x": [float("nan"), float("-inf"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": ["nan", "-inf", 1.0]}
