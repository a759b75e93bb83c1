"""ResNet-50 and ViT-B/16: built without a download, cut at layers, solved."""

import sys
from typing import Any

import pytest
import torch

from eigenexp import FisherOperator, models
from eigenexp.errors import ModelError


def test_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'eigenexp\[networks\]'"):
        models.resnet50()


def test_nothing_is_downloaded() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="nothing is downloaded"):
        models.vit_b16(weights="google/vit-base-patch16-224")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "layer", "classes"),
    [
        (models.resnet50, "network.resnet.encoder.stages.0", 256),
        (models.vit_b16, "network.vit.layers.1", 768),
    ],
)
def test_networks_are_repeatable_and_their_products_agree(
    build: Any, layer: str, classes: int
) -> None:
    pytest.importorskip("transformers")
    state = torch.get_rng_state()
    arguments = {"image_size": 32} if build is models.vit_b16 else {}
    model = build(layer=layer, seed=3, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    response = model(picture)
    response = response[0] if isinstance(response, tuple) else response
    assert classes in response.shape
    kept, less = (FisherOperator(model, picture, recompute=r) for r in (False, True))
    assert (kept.route, less.route) == ("traced", "recompute")
    again = FisherOperator(build(layer=layer, seed=3, **arguments), picture)
    v = torch.randn(3072, 1, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kept @ v, less @ v, rtol=1e-3, atol=1e-4 * float((kept @ v).norm()))
    assert torch.equal(again @ v, kept @ v)


@pytest.mark.slow
def test_saved_weights_are_loaded(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    made = transformers.ResNetForImageClassification(config).eval()
    made.save_pretrained(tmp_path)
    model = models.resnet50(weights=str(tmp_path))
    picture = torch.rand(1, 3, 32, 32)
    assert model(picture).shape == (1, 5)
    scaled = (picture - model.mean) / model.std
    torch.testing.assert_close(model(picture), made(scaled).logits.detach())
    with pytest.raises(ModelError, match="RGB"):
        model(picture[:, :1])
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="do not load"):
        models.resnet50(weights=str(tmp_path))
