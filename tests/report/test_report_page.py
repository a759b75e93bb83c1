"""The page as text: what it says, what it never lets through."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import eigenexp as ee
from eigenexp.errors import CheckpointError, InputError
from eigenexp.report import render_report, report_from, write_report
from eigenexp.report.comparison import agreement
from eigenexp.report.curves import comparison_chart, residual_chart
from eigenexp.report.view import pair_label, run_view, sensitivity_ratio
from eigenexp.spectrum import PairStatus

from .conftest import make_history, make_run, make_spectrum


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_the_page_tells_everything_there_is_to_know() -> None:
    text = Page(render_report([make_run()])).text
    for expected in ("Net at noise", "3 of 4 pairs proven", "0.4", "2nd largest", "unverified",
                     "my.package.Net", "ab" * 32, "2.13.0", "0123456789abcdef", "tol 1e-04",
                     "Most noticeable", "Least noticeable", "solver.k"):  # fmt: skip
        assert expected in text, expected


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Page(render_report([make_run(), make_run()]))
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses if value)
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv") and t == "meta"]
    (policy,) = policies
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_embedded_values_are_the_pictures_to_a_hundredth_of_a_gray_level() -> None:
    run = make_run((3, 8, 10))
    data = run_view(run, 1)["data"]
    assert (data["width"], data["height"], data["channels"]) == (10, 8, 3)
    levels = np.frombuffer(base64.b64decode(data["picture"]), "<u2").reshape(8, 10, 3)
    assert run.image is not None
    expected = run.image[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(levels / 65535, expected, atol=1e-5)
    entry = data["distortions"]["0"]
    samples = np.frombuffer(base64.b64decode(entry["samples"]), "<i2").reshape(8, 10, 3)
    expected = run.spectrum.eigenvectors[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(samples * entry["peak"] / 32767, expected, atol=2e-5)


def test_pictures_outside_the_unit_range_keep_their_own() -> None:
    run = make_run()
    assert run.image is not None
    data = run_view(replace(run, image=100 * run.image - 50), 1)["data"]
    assert data["low"] < -20
    assert data["high"] > 20


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}"


@pytest.mark.parametrize("place", ["title", "status", "run_id", "created", "picture_name",
                                   "method", "notes", "metadata", "facts", "curve"])  # fmt: skip
def test_no_text_of_a_run_becomes_markup(place: str) -> None:
    run = make_run()
    if place in ("method", "notes", "metadata"):
        change = {"notes": (HOSTILE,), "metadata": {HOSTILE: {HOSTILE: HOSTILE}}}
        spectrum = replace(run.spectrum, **{place: change.get(place, HOSTILE)})
        run = replace(run, spectrum=spectrum)
    elif place == "curve":
        history = make_history()
        history["residuals"][HOSTILE] = history["residuals"]["0"]
        run = replace(run, history=history)
    else:
        run = replace(run, **{place: {HOSTILE: HOSTILE} if place == "facts" else HOSTILE})
    text = render_report([run, run])
    usual = render_report([make_run(), make_run()])
    scripts = [t for t in Page(text).tags if t[0] == "script"]
    assert len(scripts) == len([t for t in Page(usual).tags if t[0] == "script"])
    assert not [a for _, a in Page(text).tags if "onerror" in a]
    assert "<img src=x" not in text
    assert "49" not in re.sub(r"base64,[^\"]*|\d+\.\d+", "", Page(text).text).split()
    assert "alert(1)" in Page(text).text  # it is shown, as text


def test_the_data_block_cannot_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = render_report([make_run()])
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    (block,) = blocks
    assert set(json.loads(block)["distortions"]) == {"0", "1", "2", "3"}
    assert "<" not in block


@pytest.mark.parametrize(
    ("index", "label"),
    [(0, "largest"), (1, "2nd largest"), (2, "3rd largest"), (10, "11th largest"),
     (99, "smallest"), (98, "2nd smallest"), (88, "12th smallest"), (78, "22nd smallest")],
)  # fmt: skip
def test_places_have_names(index: int, label: str) -> None:
    assert pair_label(index, 100) == label


def test_the_ratio_is_exact_only_where_both_ends_are_proven() -> None:
    proven = make_spectrum(status=(PairStatus.CONVERGED,) * 4)
    assert sensitivity_ratio(proven) == {
        "value": pytest.approx(1000**0.5),
        "at_least": False,
        "text": "31.62278",
    }
    unproven = sensitivity_ratio(make_spectrum())
    assert unproven is not None
    assert unproven["at_least"]
    loose = make_spectrum(
        status=(PairStatus.CONVERGED,) * 4,
        error_bounds=torch.tensor([0.0, 0.0, 0.0, 0.012], dtype=torch.float64),
    )
    assert sensitivity_ratio(loose) == {
        "value": pytest.approx((4 / 0.016) ** 0.5),
        "at_least": True,
        "text": "≥ 15",
    }
    some = replace(loose, error_bounds=torch.tensor([1e-3, 0, 0, 2e-4], dtype=torch.float64))
    assert sensitivity_ratio(some)["text"] == "31.6(9)"  # 31.62 within 30.85 and 32.45
    null = replace(loose, null_space_dimension=1)
    assert sensitivity_ratio(null) == {"value": float("inf"), "at_least": False, "text": "∞"}
    said = Page(render_report([make_run(spectrum=null)])).text
    assert "the ratio of sensitivities is ∞" in said
    assert "0 (null space)" in said
    one_end = make_spectrum(eigenindex=torch.tensor([0, 1, 2, 3]))
    assert sensitivity_ratio(one_end) is None


def test_agreement_is_blind_to_signs_and_to_other_sizes() -> None:
    a = make_spectrum()
    flipped = replace(a, eigenvectors=-a.eigenvectors)
    assert agreement(a, flipped, 0) == pytest.approx(1.0)
    turned = replace(a, eigenvectors=a.eigenvectors.flip(0))
    assert agreement(a, turned, -1) == pytest.approx(0.0, abs=1e-12)
    assert agreement(a, make_spectrum((1, 4, 4)), 0) is None


def test_runs_are_compared_row_by_row() -> None:
    other = make_run(spectrum=make_spectrum(method="power"), title="the other")
    text = render_report([make_run(), other])
    row = re.search(r"<tr class=\"differs\"><th scope=\"row\">method</th>(.*?)</tr>", text)
    assert row is not None
    assert re.findall(r"<td>(.*?)</td>", row[1]) == ["lanczos", "power"]
    same = re.search(r"<tr><th scope=\"row\">tolerance</th>", text)
    assert same is not None


def test_curves_leave_gaps_out_and_show_the_tolerance() -> None:
    chart = residual_chart(make_history(), 1e-4)
    assert chart is not None
    assert [line.name for line in chart.lines] == ["pair 0", "pair -1"]
    assert len(chart.lines[0].points.split()) == 40
    assert len(chart.lines[1].points.split()) == 37
    heights = [float(p.split(",")[1]) for p in chart.lines[0].points.split()]
    assert heights == sorted(heights)  # falls: down is a larger y
    assert chart.rule is not None
    assert chart.top < chart.rule[0] < chart.height - chart.bottom
    assert residual_chart(None, 1e-4) is None
    nothing = {"products": [1], "residuals": {"0": [float("nan")]}}
    assert residual_chart(nothing, 1e-4) is None


def test_the_overview_keeps_a_runs_colour_where_one_has_no_curves() -> None:
    chart = comparison_chart([("1", None), ("2", make_history())])
    assert chart is not None
    assert [(line.name, line.colour) for line in chart.lines] == [("2", 1)]


def test_long_histories_are_thinned() -> None:
    chart = residual_chart(make_history(20_000), 1e-4)
    assert chart is not None
    assert len(chart.lines[0].points.split()) <= 601


def test_a_spectrum_in_memory_is_enough(tmp_path: Path) -> None:
    picture = ee.load_picture("camera", crop=16)
    operator = ee.FisherOperator(ee.models.OnOff(), picture.tensor)
    spectrum = ee.solve(operator, k=1, which="both", tol=1e-3)
    run = ee.report_from(spectrum, picture, title="OnOff at camera", lab="ours")
    path = ee.write_report(run, tmp_path / "new" / "report.html")
    text = Page(path.read_text()).text
    assert "OnOff at camera" in text
    assert "ours" in text
    assert picture.record["sha256"] in text


def test_without_a_picture_distortions_are_shown_alone() -> None:
    text = render_report([report_from(make_spectrum())])
    assert "canvas class" not in text
    assert "The picture is not stored" in text


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected 192 values.*got 16"):
        report_from(make_spectrum(), torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can be written"):
        write_report(make_run(), tmp_path / "file" / "report.html")
    (tmp_path / "spectrum.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        write_report(tmp_path, tmp_path / "report.html")
