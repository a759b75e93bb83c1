"""The page of a score: what it tells, and that nothing in it can act."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import eigenexp as ee
from tests.scoring.experiments import principal_design


class Tags(HTMLParser):
    """Which tags there are, each closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def scored(name: str = "ann") -> ee.scoring.Score:
    design = principal_design()
    one = design.predictions[2]
    observer = ee.scoring.Observer(one, ee.scoring.fitting_gain(design, one))
    rows = ee.scoring.simulate(design, [observer], 200, seed=1, names=[name])
    return ee.scoring.score(rows, design)


def test_page_tells_models_thresholds_and_functions(tmp_path: Path) -> None:
    result = scored()
    path = ee.report.write_score_report(result, tmp_path / "score.html", next_pair="Show these.")
    page = path.read_text()
    assert "speak for <b>LGG</b>" in page
    assert f"{result.observers[0].contrasts[0].measured.value:.2f} ±" in page
    assert "Show these." in page
    tags = Tags()
    tags.feed(page)
    assert tags.seen.count("figure") == 2
    assert tags.seen.count("circle") == 12
    assert "script" not in tags.seen


def test_foreign_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    result = scored("<script>alert(1)</script>")
    result = replace(result, problems=("<img src=x onerror=alert(1)>",))
    page = ee.report.render_score(result)
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_page_without_models_or_thresholds() -> None:
    design = replace(principal_design(), predictions=())
    rows = [ee.scoring.Trial("ann", 1, "first-0", correct=True)]
    page = ee.report.render_score(ee.scoring.score(rows, design))
    assert "Models" not in page
    assert "unknown" in page
