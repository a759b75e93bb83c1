"""Names and passwords in addresses, tokens, and what sweeps of others may do with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eigenexp.errors import CheckpointError, ConfigError
from eigenexp.experiments.config import compose_config, plain_config
from eigenexp.experiments.resuming import saved_settings
from eigenexp.experiments.session import without_credentials
from eigenexp.storage.addresses import userinfo, without_userinfo
from eigenexp.sweeps import SweepFolder, retry

SECRET = "http://bob:p%40w@host:5000/x"
CLEAN = "http://host:5000/x"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_addresses_lose_names_and_passwords_and_nothing_else() -> None:
    assert without_userinfo(f"see {SECRET} and {CLEAN}") == f"see {CLEAN} and {CLEAN}"
    for text in ("a@b.c", "sqlite:////tmp/a@b.db", "photo@2x.png", "http://host/@x"):
        assert without_userinfo(text) == text
    assert userinfo(SECRET) == ("bob", "p@w")
    assert userinfo(CLEAN) is None


def test_the_password_goes_to_the_variables_mlflow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    settings = compose_config([f"logger.tracking_uri='{SECRET}'"])
    assert "bob" not in json.dumps(plain_config(settings))
    assert without_credentials(settings).logger.tracking_uri == CLEAN
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "bob"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@w"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    assert without_credentials(compose_config()).logger.tracking_uri is None
    assert os.environ["MLFLOW_TRACKING_URI"] == CLEAN


def test_a_saved_store_is_used_only_where_it_is_the_one_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = plain_config(compose_config(["logger.tracking_uri=http://elsewhere"]))
    with pytest.raises(ConfigError, match=r"logger\.tracking_uri: .*elsewhere.*--trust"):
        saved_settings(saved)
    assert saved_settings(saved, trust=True).logger.tracking_uri == "http://elsewhere"
    mine = saved_settings(saved, ["logger.tracking_uri=http://mine"])
    assert mine.logger.tracking_uri == "http://mine"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere/")
    assert saved_settings(saved).logger.tracking_uri == "http://elsewhere"


@pytest.mark.parametrize(
    ("jobs", "facts"),
    [
        ([["model=custom", "model._target_=os.system", "+model.command=touch executed"]], {}),
        ([["+callbacks.a._target_=os.system", "+callbacks.a.command=touch executed"]], {}),
        ([["run_name=${oc.env:HOME}"]], {}),
        ([["hydra.launcher._target_=os.system"]], {}),
        ([["logger.tracking_uri=http://elsewhere"]], {}),
        ([["threads=1"]], {"hydra": ["+hydra.launcher.setup=[touch executed]"]}),
        ([["threads=1"]], {"logger": {"mlflow": True, "tracking_uri": "http://elsewhere"}}),
    ],
)
def test_a_sweep_of_others_is_held_to_what_a_saved_run_may(
    in_tmp: Path, jobs: list[list[str]], facts: dict[str, object]
) -> None:
    SweepFolder(in_tmp / "mlruns", "s").create(jobs, rows=[{} for _ in jobs], **facts)
    with pytest.raises(ConfigError, match="--trust"):
        retry("s", root=in_tmp / "mlruns", say=lambda _: None)
    assert not (in_tmp / "executed").exists()


@pytest.mark.parametrize(
    "facts",
    [
        {"jobs": [3]},
        {"jobs": [[{}]]},
        {"rows": {}},
        {"rows": [[]]},
        {"hydra": "x"},
        {"swept": [1]},
        {"logger": []},
        {"cwd": 4},
        {"parent_run_id": {}},
    ],
)
def test_a_malformed_manifest_is_one_line(in_tmp: Path, facts: dict[str, object]) -> None:
    sweep = SweepFolder(in_tmp / "mlruns", "s")
    sweep.create([["threads=1"]], rows=[{}])
    manifest = json.loads(sweep.manifest_path.read_text())
    sweep.manifest_path.write_text(json.dumps({**manifest, **facts}))
    with pytest.raises(CheckpointError, match=r"manifest\.json: .*damaged"):
        retry("s", root=in_tmp / "mlruns", say=lambda _: None)
