"""The documentation builds without a warning, and reads at the width of a desk and of a phone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "test-artifacts" / "docs"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, from the outputs that the notebooks keep."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(ROOT / "docs"), str(folder / "html")],
        env={**os.environ, "EIGENEXP_DOCS_EXECUTE": "off"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def pages(site: Path) -> Iterator[Path]:
    for page in sorted(site.rglob("*.html")):
        if not {"_modules", "api", "_static"} & set(page.relative_to(site).parts):
            yield page


def test_every_public_name_has_a_page(site: Path) -> None:
    import eigenexp

    for name in eigenexp.__all__:
        value = getattr(eigenexp, name)
        if callable(value):
            assert (site / "reference" / "api" / f"eigenexp.{name}.html").exists(), name


def test_commands_and_settings_are_those_of_the_code(site: Path) -> None:
    commands = (site / "reference" / "command_line.html").read_text()
    settings = (site / "reference" / "configuration.html").read_text()
    for name in ("fit", "resume", "show", "report", "sync", "ui"):
        assert f"eigenexp {name}" in commands
    for key in ("solver.miss_chance", "trainer.precision", "study.retry_failed", "noise.dark"):
        assert key in settings


def test_ten_questions_are_two_clicks_from_the_first_page(site: Path) -> None:
    text = (site / "index.html").read_text()
    for page in ("own-model", "own-pictures", "is-it-zero", "tolerance", "how-far", "noise"):
        assert f"howto/{page}.html" in text
        assert (site / "howto" / f"{page}.html").exists()


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_its_window(site: Path, browser: Any, width: int) -> None:
    window = browser.new_page(viewport={"width": width, "height": 900})
    folder = ARTIFACTS / str(width)
    folder.mkdir(parents=True, exist_ok=True)
    wide = []
    for page in pages(site):
        window.goto(page.as_uri())
        if window.evaluate("document.documentElement.scrollWidth") > width:
            wide.append(page.name)
        name = "-".join(page.relative_to(site).with_suffix(".png").parts)
        window.screenshot(path=folder / name)
    window.close()
    assert not wide
