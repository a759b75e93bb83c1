"""What a checkpoint tells of its origin."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch
from torch import nn

from eigenexp.checkpoints.provenance import checkpoint_metadata, model_fingerprint
from eigenexp.storage.hashing import tensor_sha256


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
