"""A study through a plain Trainer: records, tables, resumption, mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import eigenexp as ee
from eigenexp.callbacks.study_progress import StudyLogging, time_left
from eigenexp.errors import CheckpointError, EigenexpError, InputError
from eigenexp.modules.average import AverageModule
from eigenexp.modules.study import StudyModule
from eigenexp.study.folder import StudyFolder
from tests.problems import Small, fit, trainer


def study(model: nn.Module, pictures: Any, folder: Path, **options: Any) -> StudyModule:
    settings = {"method": "lanczos", "tol": 1e-8, "batch_size": 3, **options}
    return StudyModule(model, pictures, folder, **settings)


def test_a_study_leaves_records_spectra_and_tables(
    model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    module = fit(study(model, pictures, tmp_path / "study", figures=True), tmp_path)
    rows = module.table()
    assert [(row["position"], row["index"]) for row in rows] == [
        (p, i) for p in range(7) for i in (0, 35)
    ]
    for position in range(7):
        spectrum = module.spectrum(position)
        assert bool(spectrum.converged.all())
        assert spectrum.eigenvectors.shape == (2, 1, 6, 6)
        assert spectrum.metadata["picture"]["sha256"] == rows[2 * position]["sha256"]
        assert "weights_sha256" in spectrum.metadata["model"]
        files = {p.name for p in module.folder.picture_path(position, str(position)).iterdir()}
        expected = {"spectrum.safetensors", "record.json", "convergence.csv", "distortions.png"}
        assert expected <= files
    table = pd.read_parquet(module.folder.path / "table.parquet")
    assert table["eigenvalue"].tolist() == [row["eigenvalue"] for row in rows]
    with (module.folder.path / "table.csv").open(newline="") as file:
        assert [float(row["eigenvalue"]) for row in csv.DictReader(file)] == table[
            "eigenvalue"
        ].tolist()
    assert not list((module.folder.path / "cohorts").glob("*.ckpt"))


def test_interrupted_and_resumed_it_ends_the_same_and_solves_nothing_twice(
    model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    whole = fit(study(model, pictures, tmp_path / "whole"), tmp_path)
    written: dict[int, float] = {}
    for steps in (3, 8, 5, 9, 30, -1):
        part = study(model, pictures, tmp_path / "parts")
        fit(part, tmp_path, max_steps=steps)
        for position, record in part.folder.records().items():
            path = part.folder.picture_path(position, record["name"]) / "record.json"
            assert written.setdefault(position, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert sorted(written) == list(range(7))
    for position in range(7):
        a, b = whole.spectrum(position), part.spectrum(position)
        assert torch.equal(a.eigenvalues, b.eigenvalues)
        assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert fit(study(model, pictures, tmp_path / "parts"), tmp_path).cohort is None


def test_damaged_files_of_a_study_hinder_only_their_pictures(
    model: Small, pictures: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(study(model, pictures, tmp_path / "whole"), tmp_path)
    part = study(model, pictures, tmp_path / "parts", cohort=4)
    while not part.folder.records():
        part = study(model, pictures, tmp_path / "parts", cohort=4)
        fit(part, tmp_path, max_steps=3)
    (state,) = (part.folder.path / "cohorts").glob("*.ckpt")
    state.write_bytes(state.read_bytes()[:1000])
    position, finished = next(iter(part.folder.records().items()))
    record = part.folder.picture_path(position, finished["name"]) / "record.json"
    record.write_text(record.read_text()[:40])
    again = study(model, pictures, tmp_path / "parts", cohort=4)
    assert position not in again.folder.records()
    fit(again, tmp_path)
    assert "cut short" in caplog.text
    assert sorted(again.folder.records()) == list(range(7))
    for position in range(7):
        a, b = whole.spectrum(position), again.spectrum(position)
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues)
        assert bool(b.converged.all())


def test_a_full_disk_stops_no_study_until_it_ends(
    model: Small,
    pictures: list[Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("expected room, got none")

    monkeypatch.setattr(StudyFolder, "save_cohort", full)
    options = {"checkpoint_seconds": 0.0}
    module = fit(study(model, pictures, tmp_path / "study", **options), tmp_path)
    assert "tries again at the next save" in caplog.text
    assert sorted(module.folder.records()) == list(range(7))
    with pytest.raises(CheckpointError, match="expected room"):  # the last save must succeed
        fit(study(model, pictures, tmp_path / "other", **options), tmp_path, max_steps=3)


def test_a_model_that_mixes_pictures_is_given_one_at_a_time(
    pictures: list[Tensor], tmp_path: Path
) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(3 * x) + (x - x.mean(0)).square()

    module = fit(study(Mixing(), pictures[:3], tmp_path / "study"), tmp_path)
    plan = module.folder.read_plan()
    assert plan is not None
    assert plan["batch_size"] == 1
    bare = ee.solve(ee.FisherOperator(Mixing(), pictures[1]), method="lanczos", tol=1e-8)
    assert torch.equal(module.spectrum(1).eigenvectors, bare.eigenvectors)


def test_a_folder_with_another_study_is_refused(
    model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    fit(study(model, pictures[:2], tmp_path / "study"), tmp_path)
    with pytest.raises(CheckpointError, match="another folder"):
        fit(study(model, pictures[:3], tmp_path / "study"), tmp_path)
    other = Small()
    with torch.no_grad():
        other.filters.bias.add_(1)  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="weights_sha256"):
        fit(study(other, pictures[:2], tmp_path / "study"), tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"cohort": -1}, "cohort"),
        ({"k": 99}, "k: expected"),
        ({"method": "magic"}, "method"),
        ({"wrong": 1}, "wrong"),
    ],
)
def test_a_mistake_in_a_setting_is_one_line_before_any_picture(
    options: dict[str, Any], words: str, model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        fit(study(model, pictures, tmp_path / "study", **options), tmp_path)
    assert "\n" not in str(caught.value)


def test_when_no_picture_can_be_used_the_first_error_is_told(tmp_path: Path) -> None:
    module = study(nn.Threshold(2, 0), [torch.rand(1, 4, 4)] * 2, tmp_path / "study")
    with pytest.raises(EigenexpError, match="zero Jacobian"):
        fit(module, tmp_path)


def test_failed_pictures_are_recorded_and_tried_again_on_request(tmp_path: Path) -> None:
    for name in "ab":
        torch.save(torch.rand(1, 6, 6), tmp_path / f"{name}.pt")
    (tmp_path / "c.pt").write_text("junk")
    model = Small().float()
    files = [str(tmp_path / f"{name}.pt") for name in "abc"]
    module = fit(study(model, files, tmp_path / "study", tol=1e-3), tmp_path, precision="32")
    record = module.folder.records()[2]
    assert record["status"] == "failed"
    assert "c.pt" in record["error"]
    assert module.table()[-1]["status"] == "failed"
    with pytest.raises(CheckpointError, match="failed"):
        module.spectrum(2)
    torch.save(torch.rand(1, 6, 6), tmp_path / "c.pt")
    assert StudyFolder(tmp_path / "study").forget(failed=True) == [2]
    module = fit(study(model, files, tmp_path / "study", tol=1e-3), tmp_path, precision="32")
    assert module.folder.records()[2]["status"] == "solved"


def test_progress_is_logged_by_pictures_done(
    model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="v")
    fit(
        study(model, pictures, tmp_path / "study"),
        tmp_path,
        callbacks=[StudyLogging(every_seconds=0.0)],
        logger=logger,
    )
    with (tmp_path / "v" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "7"
    assert float(rows[-1]["pictures_done"]) == 7
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))


def test_time_left_is_said_only_where_something_is_known() -> None:
    assert time_left(10.0, [], 0.5, 20) is None
    one = time_left(10.0, [30.0], 0.0, 20)
    assert one is not None
    assert (one.low, one.high) == (100.0, 400.0)
    even = time_left(10.0, [30.0] * 5, 0.0, 20)
    assert even is not None
    assert (even.low, even.high) == (40.0, 40.0)
    uneven = time_left(10.0, [10.0, 50.0, 30.0, 20.0, 40.0], 0.0, 20)
    assert uneven is not None
    assert uneven.low < 40.0 < uneven.high
    begun = time_left(10.0, [30.0] * 4, 1.0, 20)
    assert begun is not None
    assert begun.low == 2.0 * 19
    assert "2.8 h" in str(time_left(1000.0, [3.0, 3.0], 0.0, 20))


@pytest.mark.parametrize("parts", [1, 3])
def test_the_average_module_finds_the_pairs_of_the_dense_mean(
    parts: int, model: Small, pictures: list[Tensor], tmp_path: Path
) -> None:
    module = AverageModule(model, pictures, method="lanczos", k=2, tol=1e-8, parts=parts)
    trainer(tmp_path).fit(module)
    spectrum = module.spectrum()
    dense = sum(ee.FisherOperator(model, picture).to_dense() for picture in pictures) / 7
    values = torch.linalg.eigvalsh(dense).flip(0)
    torch.testing.assert_close(
        spectrum.eigenvalues, values[spectrum.eigenindex], rtol=0, atol=1e-7 * float(values[0])
    )
    assert bool(spectrum.converged.all())
    assert module.metadata()["picture"]["num_pictures"] == 7


def test_an_average_wants_pictures_of_one_shape(model: Small, pictures: list[Tensor]) -> None:
    with pytest.raises(InputError, match="one shape"):
        AverageModule(model, [pictures[0], pictures[1][..., :4]])
    with pytest.raises(InputError, match="parallel"):
        ee.EigendistortionModule(model, pictures[0], parallel="rows")


def test_the_plan_is_plain_json(model: Small, pictures: list[Tensor], tmp_path: Path) -> None:
    fit(study(model, pictures[:2], tmp_path / "study"), tmp_path, max_steps=1)
    plan = json.loads((tmp_path / "study" / "study.json").read_text())
    assert plan["batch_size"] == 2
    assert [entry["where"] for entry in plan["pictures"]] == ["pictures[0]", "pictures[1]"]
    assert plan["metadata"]["versions"]["torch"]
