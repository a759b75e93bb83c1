"""Perturbations on their way through every door, and the refusal of others at a resumption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.cli import main
from eigenexp.errors import CheckpointError, ConfigError, InputError
from eigenexp.experiments.building import operator_options
from eigenexp.experiments.config import compose_config, override_config, plain_config
from eigenexp.experiments.resuming import settings_hash
from eigenexp.operators.perturbations import Perturbations
from tests.modules.test_noise import Rates
from tests.problems import fit
from tests.training import quiet_trainer

P = ee.perturbations
SPECKLED = torch.rand(8, 8, generator=torch.Generator().manual_seed(4)) > 0.4
CHOSEN: dict[str, Perturbations] = {
    "mask": P.Mask(SPECKLED),
    "taper": P.Taper(2),
    "band": P.Band(0.1, 0.4) & P.ZeroMean(),
}


def picture(count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=generator)


def truth(chosen: Perturbations, place: int = 0) -> Tensor:
    operator = ee.FisherOperator(Rates(), picture(3)[place : place + 1], perturbations=chosen)
    return torch.linalg.eigvalsh(operator.to_dense()).flip(0)[[0, -1]]


def fitted(folder: Path, chosen: Perturbations | None) -> ee.EigendistortionModule:
    module = ee.EigendistortionModule(Rates(), picture(3)[:1], tol=1e-6, perturbations=chosen)
    callbacks = [ee.ConvergenceStopping(), ee.ConvergenceLogging(1, 1), ee.ResultFiles(folder)]
    trainer = quiet_trainer(folder, callbacks, max_steps=300, precision="64-true")
    trainer.fit(module)
    trainer.save_checkpoint(folder / "a.ckpt")
    return module


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("name", CHOSEN)
def test_all_doors_find_the_same_pairs(name: str, tmp_path: Path) -> None:
    chosen = CHOSEN[name]
    expected = truth(chosen)
    module = fitted(tmp_path, chosen)
    spectrum = module.spectrum()
    torch.testing.assert_close(spectrum.eigenvalues, expected)
    assert spectrum.eigenvectors.shape == (2, 1, 8, 8)
    assert module.metadata()["perturbations"] == str(chosen)
    saved = ee.Spectrum.load(tmp_path / "spectrum.safetensors")
    assert saved.order == spectrum.order == module.operator.shape[0]
    assert torch.equal(saved.eigenvectors, spectrum.eigenvectors)
    model = Rates().requires_grad_(False).eval()
    front = ee.Eigendistortion(picture(3)[:1], model, perturbations=chosen)
    for method in ("auto", "exact"):
        front.synthesize(method, k=1, which="both", tol=1e-9)
        torch.testing.assert_close(front.eigenvalues, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(
            front.eigendistortions, spectrum.eigenvectors, rtol=1e-4, atol=1e-4
        )
    front.synthesize("power", k=1, which="top", max_iter=2000)
    torch.testing.assert_close(front.eigenvalues, expected[:1], rtol=1e-5, atol=0)
    assert front.eigendistortions.shape == (1, 1, 8, 8)
    front.save(tmp_path / "a.pt")
    same = ee.Eigendistortion(picture(3)[:1], model, perturbations=chosen)
    same.load(tmp_path / "a.pt")
    assert torch.equal(same.eigendistortions, front.eigendistortions)
    with pytest.raises(CheckpointError, match="different perturbations"):
        ee.Eigendistortion(picture(3)[:1], model).load(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("other", [None, P.Taper(3), P.Mask(border=1)])
def test_others_are_refused_by_name(tmp_path: Path, other: Perturbations | None) -> None:
    fitted(tmp_path, P.Taper(2))
    load = ee.EigendistortionModule.load_from_checkpoint
    path = tmp_path / "a.ckpt"
    same = load(path, model=Rates(), image=picture(3)[:1], perturbations=P.Taper(2))
    torch.testing.assert_close(same.spectrum().eigenvalues, truth(P.Taper(2)))
    with pytest.raises(CheckpointError, match=r"perturbations: the checkpoint has taper\(width=2"):
        load(path, model=Rates(), image=picture(3)[:1], perturbations=other)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_studies_and_means_take_them(tmp_path: Path) -> None:
    chosen = CHOSEN["mask"]
    study = ee.StudyModule(
        Rates(), picture(3), tmp_path / "study", batch_size=3, tol=1e-6, perturbations=chosen
    )
    fit(study, tmp_path)
    for place in range(3):
        rows = [row["eigenvalue"] for row in study.table() if row["position"] == place]
        assert rows == pytest.approx(truth(chosen, place).tolist(), rel=1e-6)
    mean = ee.AverageModule(Rates(), picture(3), tol=1e-6, perturbations=chosen)
    trainer = quiet_trainer(
        tmp_path, [ee.ConvergenceStopping()], max_steps=300, precision="64-true"
    )
    trainer.fit(mean)
    dense = torch.stack(
        [ee.FisherOperator(Rates(), p[None], perturbations=chosen).to_dense() for p in picture(3)]
    ).mean(0)
    torch.testing.assert_close(
        mean.spectrum().eigenvalues, torch.linalg.eigvalsh(dense).flip(0)[[0, -1]]
    )


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.compatibility.ProvenanceWarning")
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_solve_goes_on_in_another_precision(tmp_path: Path) -> None:
    chosen = CHOSEN["band"]
    model = Rates().float()
    module = ee.EigendistortionModule(model, picture().float(), tol=1e-3, perturbations=chosen)
    trainer = quiet_trainer(tmp_path, [ee.ConvergenceStopping()], max_steps=5)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = ee.EigendistortionModule(Rates().float(), picture(), tol=1e-6, perturbations=chosen)
    again.force_resume = True
    trainer = quiet_trainer(
        tmp_path, [ee.ConvergenceStopping()], max_steps=300, precision="64-true"
    )
    trainer.fit(again, ckpt_path=tmp_path / "a.ckpt")
    operator = ee.FisherOperator(Rates().float().double(), picture(), perturbations=chosen)
    expected = torch.linalg.eigvalsh(operator.to_dense()).flip(0)[[0, -1]]
    torch.testing.assert_close(again.spectrum().eigenvalues, expected, rtol=1e-5, atol=0)


def test_what_they_are_not_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected one of eigenexp\.perturbations, got str"):
        ee.EigendistortionModule(Rates(), picture(), perturbations="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k: expected 1 to n = 4"):
        ee.EigendistortionModule(Rates(), picture(), k=5, perturbations=P.Mask(border=3))


# -- configuration --------------------------------------------------------------------------------

SHOWN = torch.randn(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
ORTHOGONAL = ["perturbations.orthogonal=shown.pt"]
BAND = ["perturbations=band", "perturbations.low=0.1", "perturbations.high=0.3"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], P.Everything()),
        (["perturbations.zero_mean=true"], P.ZeroMean()),
        (ORTHOGONAL, P.Orthogonal(SHOWN)),
        (BAND, P.Band(0.1, 0.3)),
        ([*BAND, "perturbations.taper=4"], P.Taper(4) @ P.Band(0.1, 0.3)),
        ([*BAND, "perturbations.zero_mean=true"], P.Band(0.1, 0.3) & P.ZeroMean()),
        (["perturbations=mask", "perturbations.border=2"], P.Mask(border=2)),
        (["perturbations=mask", "perturbations.mask=mask.npy"], P.Mask(SPECKLED)),
        (["perturbations=taper", "perturbations.width=4", *ORTHOGONAL],
         P.Taper(4) @ P.Orthogonal(SHOWN)),
        (["perturbations=colour", "perturbations.directions=[red-green,blue-yellow]"],
         P.Colour("red-green", "blue-yellow")),
        (["perturbations=metric", "perturbations.weights=weights.pt"], P.Metric(torch.ones(8, 8))),
        (["perturbations=linear_light"], P.LinearLight()),
        (["perturbations=contrast_sensitivity", "perturbations.pixels_per_degree=30"],
         P.ContrastSensitivity(30.0)),
    ],
)  # fmt: skip
def test_the_group_makes_each(words: list[str], expected: Perturbations, in_tmp: Path) -> None:
    torch.save(SHOWN, "shown.pt")
    torch.save(torch.ones(8, 8), "weights.pt")
    np.save("mask.npy", SPECKLED.numpy())
    settings = compose_config(["image.crop=16", *words])
    assert operator_options(settings)["perturbations"] == expected
    again = override_config(plain_config(settings), [])
    assert operator_options(again)["perturbations"] == expected
    assert settings_hash(plain_config(settings)) == settings_hash(plain_config(again))
    before = {k: v for k, v in plain_config(settings).items() if k != "perturbations"}
    same = settings_hash(before) == settings_hash(plain_config(settings))
    assert same == isinstance(expected, P.Everything)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["perturbations=bend"], "perturbations"),
        (["perturbations=taper"], r"perturbations\.width: expected a value, got none"),
        (["perturbations=mask"], r"perturbations\.mask: expected a mask or a border"),
        ([*BAND, "perturbations.high=0.05"], r"perturbations\.low, high: expected 0"),
        (["perturbations=colour", "perturbations.directions=mauve"], "got 'mauve'"),
        (["perturbations=metric", "perturbations.weights=none.pt"], r"perturbations\.weights"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_a_line(
    words: list[str], match: str, in_tmp: Path
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        operator_options(compose_config(["image.crop=16", *words]))
    assert "\n" not in str(caught.value)


def test_the_command_line_solves_reports_and_refuses_others(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=gaussian", "image.crop=[120,220,16,16]", "threads=1", "logger=none"]
    words += ["trainer=cpu", *BAND, "solver.which=top", "solver.tol=1e-3"]
    assert main(["fit", *words]) == 0
    assert main(["report", "last", "--output", "page.html"]) == 0
    assert "band(low=0.1, high=0.3" in Path("page.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["resume", "last", "perturbations.low=0.2"]) == 1
    assert "perturbations: the checkpoint has band(low=0.1" in capsys.readouterr().err


def test_whitening_from_a_folder_on_the_command_line(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = in_tmp / "photos"
    folder.mkdir()
    for i, name in enumerate(("camera", "coins", "grass")):
        tensor = ee.load_picture(name, crop=[10 * i, 10 * i, 20, 20]).tensor
        np.save(folder / f"{name}.npy", tensor[0, 0].numpy())
    words = ["model=gaussian", "image.crop=null", "image.resize=16", "threads=1", "logger=none"]
    words += ["trainer=cpu", "solver.which=top", "solver.tol=1e-3"]
    whitening = ["perturbations=whitening", f"perturbations.pictures={folder}"]
    assert main(["fit", *words, *whitening]) == 0
    results = next((in_tmp / "mlruns/results").iterdir())
    spectrum = ee.Spectrum.load(results / "spectrum.safetensors")
    assert str(spectrum.metadata["perturbations"]).startswith("whitening(")
    x = ee.load_picture("camera", resize=16).tensor
    pictures = [ee.load_picture(path, resize=16).tensor for path in sorted(folder.glob("*.npy"))]
    model = ee.models.Gaussian(kernel_size=31, std=1.0)
    operator = ee.FisherOperator(model, x, perturbations=P.Whitening(pictures))
    expected = torch.linalg.eigvalsh(operator.to_dense().double())[-1]
    assert float(spectrum.eigenvalues[0]) == pytest.approx(float(expected), rel=2e-3)
    capsys.readouterr()
    assert main(["fit", *words, "perturbations=whitening", "perturbations.pictures=nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
