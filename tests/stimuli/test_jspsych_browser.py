"""The page in a real headless browser, clicked through to the table of trials."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import eigenexp as ee
from eigenexp.stimuli import FLAGS, TRIAL_COLUMNS, Made

from .conftest import solved

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1200, "height": 900}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return ee.stimuli.make(
        solved("OnOff", 0.002), tmp_path / "s", levels=[1, 4], format=["jspsych"],
        duration=0.05, allow=FLAGS,
    )  # fmt: skip


def open_page(browser: Any, made: Made, query: str, **context: Any) -> tuple[Any, list[str]]:
    """Open the page; collect complaints, and requests for anything outside its folder."""
    opened = browser.new_context(accept_downloads=True, **context)
    page = opened.new_page()
    trouble: list[str] = []
    inside = made.folder.as_uri()
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on(
        "request",
        lambda r: None if r.url.startswith((inside, "data:", "blob:")) else trouble.append(r.url),
    )
    page.goto((made.folder / "experiment.html").as_uri() + query)
    return page, trouble


def rows_of(download: Any) -> list[dict[str, str]]:
    with Path(download.path()).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_is_clicked_through_on_a_phone(browser: Any, made: Made) -> None:
    page, trouble = open_page(browser, made, "?repeats=1&seed=5", viewport=PHONE, has_touch=True)
    page.wait_for_selector("#observer")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.fill("#observer", "a b<1>")
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "experiment-phone.png")
    page.tap("button:has-text('Begin')")
    total = len(made.manifest.stimuli)
    with page.expect_download(timeout=120_000) as download:
        for trial in range(total):
            page.wait_for_selector("button.answer")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            page.tap(f"button.answer >> nth={trial % 2}")
            page.wait_for_selector("button.answer", state="detached")
    rows = rows_of(download.value)
    assert download.value.suggested_filename.startswith("trials-ab1-")
    assert len(rows) == total
    assert set(TRIAL_COLUMNS) <= set(rows[0])
    for number, row in enumerate(rows, 1):
        assert row["observer"] == "ab1"
        assert row["trial"] == str(number)
        assert row["manifest"] == made.manifest.id
        assert row["response"] == str(1 + (number - 1) % 2)
        assert row["correct"] == str(int(row["response"] == row["interval"]))
        assert 0 < float(row["rt"]) < 60
    for one in made.manifest.stimuli:
        assert sum(row["stimulus"] == one.id for row in rows) == 1
    assert {row["interval"] for row in rows} == {"1", "2"}
    assert f"{total} trials" in page.inner_text("body")
    assert trouble == []
    page.context.close()


def test_the_changed_picture_is_in_the_interval_that_the_table_says(
    browser: Any, made: Made
) -> None:
    page, trouble = open_page(browser, made, "?observer=k&repeats=1", viewport=DESK)
    page.evaluate(
        """() => { window.seen = [];
        new MutationObserver(() => {
          for (const image of document.querySelectorAll("img"))
            if (!image.counted) { image.counted = true;
              window.seen.push([image.getAttribute("src"), image.width, image.naturalWidth]); }
        }).observe(document.body, {childList: true, subtree: true}); }"""
    )
    page.click("button:has-text('Begin')")
    with page.expect_download(timeout=120_000) as download:
        for _ in made.manifest.stimuli:
            page.wait_for_selector("button.answer")
            page.keyboard.press("2")
            page.wait_for_selector("button.answer", state="detached")
    rows = rows_of(download.value)
    seen = page.evaluate("window.seen")
    assert len(seen) == 2 * len(rows)
    for row, pair in zip(rows, zip(seen[::2], seen[1::2], strict=True), strict=True):
        one = made.manifest.by_id[row["stimulus"]]
        files = [one.file, made.manifest.reference_of(one).file]
        assert [source for source, *_ in pair] == (files if row["interval"] == "1" else files[::-1])
        assert {width for _, width, _ in pair} == {24 * 16}
        assert {natural for *_, natural in pair} == {24}
        assert row["response"] == "2"
    assert trouble == []
    page.context.close()


def test_stopping_saves_what_was_answered_and_a_missing_picture_is_told(
    browser: Any, made: Made
) -> None:
    page, trouble = open_page(browser, made, "?observer=s&repeats=5", viewport=DESK)
    page.click("button:has-text('Begin')")
    for _ in range(2):
        page.wait_for_selector("button.answer")
        page.click("button.answer >> nth=0")
        page.wait_for_selector("button.answer", state="detached")
    page.wait_for_selector("button.answer")
    with page.expect_download() as download:
        page.click("button.stop")
    assert len(rows_of(download.value)) == 2
    assert trouble == []
    page.context.close()
    (made.folder / made.manifest.stimuli[0].file).unlink()
    page, _ = open_page(browser, made, "", viewport=DESK)
    page.wait_for_selector("text=Some pictures are missing")
    page.context.close()
