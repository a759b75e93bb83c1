"""Passwords in addresses, and what a server writes: not saved, sent or shown as they are."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import psutil
import pytest

from eigenexp.errors import EigenexpError
from eigenexp.tracking import Store, spool_run, sync
from eigenexp.tracking.children import ChildRuns
from eigenexp.tracking.mlflow_logger import MLflowLogger
from eigenexp.tracking.spool import find_spools
from eigenexp.tracking.texts import ScrubbedFormatter, one_line, printable, without_userinfo
from tests.tracking.conftest import history

SECRET = "s3cret-pw"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("http://bob:pw@host:5000/x", "http://host:5000/x"),
        ("https://bob@host", "https://host"),
        ("postgresql://u:p%40w@db/name", "postgresql://db/name"),
        ("http://a:b@c@host/", "http://host/"),
        ("http://host/path@x", "http://host/path@x"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("two: http://a:b@c/ and http://d:e@f/", "two: http://c/ and http://f/"),
    ],
)
def test_addresses_lose_user_and_password_and_nothing_else(address, wanted):
    assert without_userinfo(address) == wanted


def test_foreign_texts_are_one_plain_line():
    hostile = "\x1b]0;owned\x07\x1b[31mred\nnext\r\u202eright"
    for text in (printable(hostile), one_line(ValueError(hostile))):
        assert text.isprintable()
        assert "owned" in text
    record = logging.LogRecord("x", 30, "f", 1, f"{hostile} http://a:{SECRET}@h/", (), None)
    lines = ScrubbedFormatter("%(message)s").format(record)
    assert SECRET not in lines
    assert all(line.isprintable() for line in lines.splitlines())


def test_escapes_and_passwords_do_not_get_through_mlflows_own_messages(store, capsys):
    assert store.client
    text = f"\x1b[31mred\x9b2J\x07 http://bob:{SECRET}@host/"
    logging.getLogger("mlflow.store.tracking").error("the server said %s", text)
    said = capsys.readouterr().err
    assert "the server said" in said
    assert SECRET not in said
    assert not set(said) & {"\x1b", "\x9b", "\x07"}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_password_reaches_the_server_and_no_file_argument_or_message(
    server, tmp_path, caplog, capfd
):
    """The test server asks for none, and takes one that is given."""
    address = server.uri.replace("http://", f"http://bob:{SECRET}@")
    root = tmp_path / "mlruns"
    logger = MLflowLogger("secret", root=root, tracking_uri=address, drain_timeout=60)
    sender = psutil.Process(logger.sender.pid)
    arguments = [" ".join(sender.cmdline())]
    study = tmp_path / "study"
    children = ChildRuns(logger.store, logger.version, study)
    arguments.append(" ".join(psutil.Process(children.process.pid).cmdline()))
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_hyperparams({"x": 1})
    kept = contents(tmp_path)
    logger.finalize("success")
    assert children.close()
    assert logger.close()
    run = Store(root, server.uri).find_run(logger.version)
    assert run.info.status == "FINISHED"
    told = [*arguments, logger.tracking_uri, caplog.text, *capfd.readouterr(), str(run)]
    assert not [text for text in told if SECRET in text]
    assert not [path for path, data in {**kept, **contents(tmp_path)}.items()
                if SECRET.encode() in data]  # fmt: skip


def test_a_dead_server_is_told_without_the_password(root, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = f"http://bob:{SECRET}@127.0.0.1:9"
    logger = MLflowLogger("e", root=root, tracking_uri=address)
    assert logger.is_offline
    logger.log_metrics({"a": 1.0}, 1)
    assert not logger.close(0.5)
    logger.sender.kill()
    logger.sender.wait()
    (report,) = sync(root)
    with pytest.raises(EigenexpError) as caught:
        Store(root, address).find_run("abc")
    with pytest.raises(EigenexpError) as refused:
        Store(root, f"file://bob:{SECRET}@host/x")
    told = [caplog.text, str(report), str(caught.value), str(refused.value)]
    assert not [text for text in told if SECRET in text]
    assert not [path for path, data in contents(root).items() if SECRET.encode() in data]
    (spool,) = find_spools(root)
    assert spool.meta["uri"] == "http://127.0.0.1:9"


def test_what_waits_is_sent_with_the_password_of_the_environment(server, root, monkeypatch):
    logger = MLflowLogger("e", root=root, tracking_uri="http://127.0.0.1:9", start_timeout=0)
    logger.log_metrics({"a": 1.0}, 1)
    logger.close(0.0)
    logger.sender.kill()
    logger.sender.wait()
    (spool,) = find_spools(root)
    (spool.folder / "meta.json").write_text(json.dumps({**spool.meta, "uri": server.uri}))
    seen = []
    real = spool_run.Store

    def keep_address(root, uri):
        seen.append(uri)
        return real(root, uri)

    monkeypatch.setattr(spool_run, "Store", keep_address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", f"//bob:{SECRET}@"))
    (report,) = sync(root)
    assert report.complete
    assert seen == [f"http://bob:{SECRET}@{server.uri[7:]}"]
    assert history(Store(root, server.uri), report.run_id, "a") == [(1, 1.0)]
