"""The report in a real headless browser: what a person sees and does; screenshots are kept."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import eigenexp as ee
from eigenexp.report import ReportRun, report_from, write_report

from .conftest import ARTIFACTS, make_run

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def real_run() -> ReportRun:
    """A front-end model at a photograph, solved."""
    picture = ee.load_picture("camera", crop=[120, 220, 32, 32], dtype="float64")
    operator = ee.FisherOperator(ee.models.OnOff(), picture.tensor)
    spectrum = ee.solve(operator, k=2, which="both", tol=1e-3)
    history = make_run().history
    return report_from(spectrum, picture, title="OnOff at camera", history=history)


def open_page(browser: Any, path: Path, viewport: dict[str, int]) -> tuple[Any, list[str]]:
    """Open a file and collect everything the browser complains about or asks the network for."""
    page = browser.new_page(viewport=viewport)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (trouble.append("dialog"), dialog.dismiss()))
    address = path.as_uri()
    page.on(
        "request",
        lambda r: None if r.url == address or r.url[:5] == "data:" else trouble.append(r.url),
    )
    page.goto(address)
    return page, trouble


def keep(page: Any, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)


def pixels(page: Any, place: int, run: str = "run1") -> np.ndarray:
    """Return what a canvas holds, (H, W, 3)."""
    selector = f'canvas[data-run="{run}"][data-pair="{place}"]'
    address = page.eval_on_selector(selector, "canvas => canvas.toDataURL('image/png')")
    content = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def move(page: Any, selector: str, place: float) -> None:
    page.eval_on_selector(
        selector,
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }",
        place,
    )


def expected_levels(run: ReportRun, place: int, strength: float) -> np.ndarray:
    assert run.image is not None
    n = run.spectrum.num_pixels
    image, vector = run.image[0], run.spectrum.eigenvectors[place].reshape(run.image[0].shape)
    values = (image + strength * n**0.5 * vector).clamp(0, 1).double().numpy()
    levels = np.moveaxis(255 * values, 0, -1)
    return np.repeat(levels, 3, axis=-1) if levels.shape[-1] == 1 else levels


@pytest.mark.parametrize("colour", [False, True])
def test_the_slider_draws_picture_plus_distortion(
    browser: Any, tmp_path: Path, real_run: ReportRun, colour: bool
) -> None:
    run = make_run((3, 12, 16)) if colour else real_run
    path = write_report(run, tmp_path / "report.html")
    page, trouble = open_page(browser, path, DESK)
    np.testing.assert_allclose(pixels(page, 0), expected_levels(run, 0, 0.05), atol=0.6)
    move(page, "#run1-0-scale", 1000)
    np.testing.assert_allclose(pixels(page, 0), expected_levels(run, 0, 1.0), atol=0.6)
    assert page.inner_text("#run1-0-value") == "100 %"
    assert "clipped" in page.inner_text("#run1-0-reading")
    np.testing.assert_allclose(pixels(page, 3), expected_levels(run, 3, 0.05), atol=0.6)
    move(page, "#run1-0-scale", 0)
    np.testing.assert_allclose(pixels(page, 0), expected_levels(run, 0, 0.0), atol=0.6)
    move(page, "#run1-all", 1000)
    for place in range(4):
        np.testing.assert_allclose(pixels(page, place), expected_levels(run, place, 1.0), atol=0.6)
    page.click("button.reset")
    np.testing.assert_allclose(pixels(page, 2), expected_levels(run, 2, 0.05), atol=0.6)
    assert trouble == []
    keep(page, "report-colour" if colour else "report-one-run")
    page.close()


def test_a_slider_is_moved_by_hand_and_by_keys(
    browser: Any, tmp_path: Path, real_run: ReportRun
) -> None:
    page, trouble = open_page(browser, write_report(real_run, tmp_path / "r.html"), DESK)
    before = pixels(page, 0)
    page.locator("#run1-0-scale").focus()
    page.keyboard.press("End")
    assert page.inner_text("#run1-0-value") == "100 %"
    assert (pixels(page, 0) != before).any()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#run1-0-value") != "100 %"
    box = page.locator("#run1-1-scale").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert float(page.inner_text("#run1-1-value").split()[0]) > 20
    assert trouble == []
    page.close()


def test_press_and_hold_shows_the_picture_alone(
    browser: Any, tmp_path: Path, real_run: ReportRun
) -> None:
    page, trouble = open_page(browser, write_report(real_run, tmp_path / "r.html"), DESK)
    canvas = page.locator('canvas[data-pair="0"]')
    canvas.hover()
    page.mouse.down()
    np.testing.assert_allclose(pixels(page, 0), expected_levels(real_run, 0, 0.0), atol=0.6)
    page.mouse.up()
    np.testing.assert_allclose(pixels(page, 0), expected_levels(real_run, 0, 0.05), atol=0.6)
    assert trouble == []
    page.close()


@pytest.mark.parametrize("count", [1, 3])
def test_a_phone_scrolls_in_one_direction(
    browser: Any, tmp_path: Path, real_run: ReportRun, count: int
) -> None:
    runs = [real_run, replace(real_run, title="N" * 90), make_run((3, 12, 16))][:count]
    page, trouble = open_page(browser, write_report(runs, tmp_path / "r.html"), PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for details in page.query_selector_all("summary"):
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert trouble == []
    keep(page, f"report-phone-{count}")
    page.close()


def test_runs_stand_side_by_side_on_a_wide_screen(
    browser: Any, tmp_path: Path, real_run: ReportRun
) -> None:
    runs = [real_run, make_run((3, 12, 16)), make_run()]
    path = write_report(runs, tmp_path / "r.html", title="Three runs")
    page, trouble = open_page(browser, path, DESK)
    boxes = [run.bounding_box() for run in page.query_selector_all("article.run")]
    assert len({round(box["y"]) for box in boxes}) == 1
    assert page.inner_text("h1") == "Three runs"
    move(page, "#run2-all", 1000)
    np.testing.assert_allclose(pixels(page, 0), expected_levels(real_run, 0, 0.05), atol=0.6)
    assert page.inner_text("#run2-0-value") == "100 %"
    assert trouble == []
    keep(page, "report-three-runs")
    page.close()


ATTACK = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='x'\">"
)


def test_a_script_in_a_name_stays_a_name(browser: Any, tmp_path: Path) -> None:
    spectrum = replace(
        make_run().spectrum, notes=(ATTACK,), method=ATTACK, metadata={ATTACK: {ATTACK: ATTACK}}
    )
    run = make_run(title=ATTACK, picture_name=ATTACK, status=ATTACK, spectrum=spectrum)
    page, trouble = open_page(browser, write_report([run, run], tmp_path / "r.html"), DESK)
    assert page.title() == "2 runs · eigenexp"
    assert ATTACK in page.inner_text("article.run h2")
    assert trouble == []
    page.close()


def test_the_policy_blocks_what_escaping_would_miss(
    browser: Any, tmp_path: Path, real_run: ReportRun
) -> None:
    path = write_report(real_run, tmp_path / "r.html")
    broken = path.read_text().replace(
        "</main>",
        "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x.png'></main>",
    )
    path.write_text(broken)
    page, trouble = open_page(browser, path, DESK)
    assert page.title() == "OnOff at camera · eigenexp"
    assert sum("Content Security Policy" in line for line in trouble) == 2
    page.close()


def test_it_prints(browser: Any, tmp_path: Path, real_run: ReportRun) -> None:
    page, trouble = open_page(browser, write_report(real_run, tmp_path / "r.html"), DESK)
    ARTIFACTS.mkdir(exist_ok=True)
    pdf = page.pdf(path=ARTIFACTS / "report.pdf", format="A4", print_background=False)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Subtype /Image") + pdf.count(b"/Subtype/Image") >= 5
    page.emulate_media(media="print")
    assert not page.locator("#run1-0-scale").is_visible()
    assert page.locator('canvas[data-pair="0"]').is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert trouble == []
    page.close()


def test_without_scripts_the_pictures_are_there(
    browser: Any, tmp_path: Path, real_run: ReportRun
) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto(write_report(real_run, tmp_path / "r.html").as_uri())
    assert page.locator("img.still").first.is_visible()
    assert not page.locator("canvas").first.is_visible()
    context.close()
