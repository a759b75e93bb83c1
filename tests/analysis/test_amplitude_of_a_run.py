"""Finite amplitudes of a run: its files, its report, the figure, and what a damaged file does."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.errors import InputError
from eigenexp.plots import amplitude_figure
from eigenexp.report import load_run, write_report
from eigenexp.report.page import render_report
from tests.training import quiet_trainer

FILES = {"amplitude.json", "amplitude.csv", "amplitude.png"}


def model(picture: Tensor) -> Tensor:
    """Return a response that saturates."""
    flat = picture.reshape(-1)
    return torch.tanh(torch.arange(1, 17, dtype=picture.dtype) / 8 * flat)


def fit(folder: Path, steps: int = 500, **options: Any) -> ee.EigendistortionModule:
    image = torch.linspace(0.2, 0.8, 16).reshape(1, 1, 4, 4)
    solve = options.pop("module", {})
    module = ee.EigendistortionModule(model, image, method="exact", k=1, which="both", **solve)
    results = ee.ResultFiles(folder / "results", **options)
    trainer = quiet_trainer(folder, [ee.ConvergenceStopping(), results], max_steps=steps)
    trainer.fit(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ee.EigendistortionModule]:
    folder = tmp_path_factory.mktemp("run")
    return folder / "results", fit(folder)


def test_a_run_writes_radii_curves_and_a_figure(
    finished: tuple[Path, ee.EigendistortionModule],
) -> None:
    results, module = finished
    assert {path.name for path in results.iterdir()} >= FILES
    expected = ee.amplitude(model, module.image, module.spectrum())
    record = json.loads((results / "amplitude.json").read_text())
    assert [float(pair["validity_radius"]) for pair in record["pairs"]] == [
        pair.validity_radius for pair in expected
    ]
    with (results / "amplitude.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == [0, 15]
    assert float(rows[0]["clip_radius"]) == expected[0].clip_radius


def test_it_can_be_turned_off_and_waits_for_the_end(tmp_path: Path) -> None:
    fit(tmp_path / "off", amplitude=False)
    assert not FILES & {path.name for path in (tmp_path / "off/results").iterdir()}
    image = torch.rand(1, 1, 6, 6)
    module = ee.EigendistortionModule(lambda x: x.square(), image, method="power", tol=1e-12)
    trainer = quiet_trainer(tmp_path, [ee.ResultFiles(tmp_path / "cut")], max_steps=1)
    trainer.fit(module)
    assert not FILES & {path.name for path in (tmp_path / "cut").iterdir()}


def test_a_noise_without_g_leaves_them_out_and_the_run_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"operator_options": {"noise": ee.noise.InputNoise(0.1)}}
    module = fit(tmp_path, module=options)
    assert bool(module.spectrum().converged.all())
    assert not FILES & {path.name for path in (tmp_path / "results").iterdir()}
    assert "d′ = α√λ" in caplog.text


def test_the_report_has_a_section_and_survives_a_damaged_file(
    finished: tuple[Path, ee.EigendistortionModule], tmp_path: Path
) -> None:
    results, module = finished
    page = write_report(results, tmp_path / "a.html").read_text()
    assert "How far the distortions may be scaled" in page
    assert "d′ at finite amplitudes" in page
    record = json.loads((results / "amplitude.json").read_text())
    assert page.count(f"<td>{record['pairs'][0]['validity_radius']:.2g}</td>") >= 1
    from_memory = ee.report_from(
        module.spectrum(), module.image, amplitude=module.amplitude(module.spectrum())
    )
    assert "How far the distortions may be scaled" in render_report([from_memory])
    assert "may be scaled" not in render_report([ee.report_from(module.spectrum())])


HOSTILE: list[dict[str, Any]] = [
    {},
    {"pairs": "x"},
    {"pairs": [1, None, {}]},
    {"pairs": [{"index": "<script>alert(1)</script>", "curve": [[1]], "notes": "x"}]},
    {"pairs": [{"curve": [["a", 1, 2], [1e-300, 1e300, -1], [2.0, float("nan"), 3.0]]}]},
    {"pairs": [{"threshold": "inf", "validity_radius": True, "notes": ["</td>"]}]},
]


@pytest.mark.parametrize("record", HOSTILE)
def test_a_foreign_record_is_shown_as_far_as_it_goes(
    record: dict[str, Any], finished: tuple[Path, ee.EigendistortionModule], tmp_path: Path
) -> None:
    results, _ = finished
    copy = tmp_path / "results"
    copy.mkdir()
    (copy / "spectrum.safetensors").write_bytes((results / "spectrum.safetensors").read_bytes())
    (copy / "amplitude.json").write_text(json.dumps(record))
    page = render_report([load_run(copy)])
    assert "<script>alert(1)" not in page
    assert "</td></td>" not in page
    (copy / "amplitude.json").write_text("{")
    with pytest.warns(UserWarning, match="amplitudes of a run"):
        assert load_run(copy).amplitude is None


def test_the_figure_draws_what_was_found(
    finished: tuple[Path, ee.EigendistortionModule],
) -> None:
    _, module = finished
    found = module.amplitude()
    figure = amplitude_figure(found, title="net")
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    points = dict(zip(*lines["index 0, +e"].get_data(), strict=True))
    alpha, plus, _ = found[0].curve[2]
    assert points[alpha] == plus
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    with pytest.raises(InputError, match="places in 2 pairs"):
        amplitude_figure(found, pairs=[2])


def test_a_mean_of_pictures_has_no_d_prime_of_its_own(tmp_path: Path) -> None:
    pictures = [torch.rand(1, 1, 4, 4) for _ in range(2)]
    module = ee.AverageModule(model, pictures, method="exact", k=1)
    trainer = quiet_trainer(
        tmp_path, [ee.ConvergenceStopping(), ee.ResultFiles(tmp_path / "results")]
    )
    trainer.fit(module)
    assert not FILES & {path.name for path in (tmp_path / "results").iterdir()}
    with pytest.raises(InputError, match="mean of many"):
        module.amplitude()
