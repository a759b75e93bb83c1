"""What differs between a checkpoint's origin and the present, and older schemas."""

from __future__ import annotations

import warnings
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
    load_metadata,
)
from eigenexp.checkpoints.provenance import checkpoint_metadata, model_fingerprint
from eigenexp.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data"


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
