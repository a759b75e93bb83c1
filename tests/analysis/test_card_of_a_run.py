"""The spectrum card of a run: its files, its figure, the report, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import eigenexp as ee
from eigenexp.analysis.card_files import card_lines, read_card, read_map, save_card
from eigenexp.cli import main
from eigenexp.errors import CheckpointError, InputError
from eigenexp.plots import card_figure
from eigenexp.report import load_run
from eigenexp.report.page import render_report
from tests.training import quiet_trainer

FILES = {"card.json", "sensitivity_map.safetensors", "card.png"}
SMALL = ["image.crop=[120,220,16,16]", "trainer.precision=64-true", "logger=none", "solver.k=1",
         "trainer.enable_progress_bar=false"]  # fmt: skip


def card(side: int = 6) -> Any:
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(1))
    return ee.spectrum_card(ee.FisherOperator(lambda x: x.square(), image.double()))


def test_the_command_makes_the_card_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "runs")
    assert main(["fit", *SMALL, f"root={root}"]) == 0
    capsys.readouterr()
    assert main(["card", "last", "--root", root, "--json", "--sigma2", "0.01"]) == 0
    record = json.loads(capsys.readouterr().out)
    picture = ee.load_picture("camera", crop=[120, 220, 16, 16], dtype="float64")
    jacobian = ee.JacobianOperator(ee.models.OnOff().double(), picture.tensor).to_dense()
    values = torch.linalg.svdvals(jacobian).square()
    assert record["trace"]["value"] == pytest.approx(float(values.sum()), rel=1e-9)
    expected = 0.5 * float(torch.log1p(values / 0.01).sum())
    assert record["log_volume"]["value"] == pytest.approx(expected, rel=1e-9)
    assert main(["show", "last", "--root", root]) == 0
    shown = capsys.readouterr().out
    assert "participation ratio" in shown
    assert "valid to" in shown
    results = next((tmp_path / "runs/results").iterdir())
    assert {path.name for path in results.iterdir()} >= FILES
    page = render_report([load_run(results)])
    assert "The whole spectrum" in page
    assert "sensitivity of each pixel" in page
    assert main(["card", "last", "--root", root, "--products", "5"]) == 1
    assert "at least 60" in capsys.readouterr().err


def test_a_run_writes_it_when_asked_to(tmp_path: Path) -> None:
    image = torch.rand(1, 1, 6, 6)
    module = ee.EigendistortionModule(lambda x: x.square(), image, method="exact")
    results = ee.ResultFiles(tmp_path / "results", card=True, amplitude=False)
    quiet_trainer(tmp_path, [ee.ConvergenceStopping(), results]).fit(module)
    assert {path.name for path in (tmp_path / "results").iterdir()} >= FILES
    record = read_card(tmp_path / "results")
    assert record is not None
    assert record["trace"]["value"] == pytest.approx(
        float((4 * image.double() ** 2).sum()), rel=1e-5
    )
    found = read_map(tmp_path / "results")
    assert found is not None
    assert torch.allclose(found, 4 * image[0].double() ** 2, rtol=1e-5)


def test_figure_and_lines_say_what_the_card_says(tmp_path: Path) -> None:
    found = card()
    figure = card_figure(found, title="net")
    assert len(figure.axes) == 3  # density, map, colour bar
    assert len(card_figure(found.as_record()).axes) == 1
    with pytest.raises(InputError, match="density"):
        card_figure({"density": {"edges": [1]}})
    lines = "\n".join(card_lines(found.as_record()))
    assert f"{found.trace.value:.6g}" in lines
    assert "exact" in lines
    assert "–" in "\n".join(card_lines({"trace": {"value": "x"}, "effective_rank": 3}))
    in_memory = ee.report_from(
        ee.solve(ee.FisherOperator(lambda x: x.square(), torch.rand(1, 1, 6, 6)), k=1), card=found
    )
    assert "The whole spectrum" in render_report([in_memory])


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 16])
def test_a_damaged_file_is_told_and_left_out(content: bytes, tmp_path: Path) -> None:
    image = torch.rand(1, 1, 6, 6)
    spectrum = ee.solve(ee.FisherOperator(lambda x: x.square(), image), k=1)
    spectrum.reshape((1, 6, 6)).save(tmp_path / "spectrum.safetensors")
    save_card(card(), tmp_path)
    (tmp_path / "sensitivity_map.safetensors").write_bytes(content)
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_map(tmp_path)
    with pytest.warns(UserWarning, match="leaves it out"):
        run = load_run(tmp_path)
    assert run.card is None
    assert run.sensitivity_map is None
