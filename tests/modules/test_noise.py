"""A noise on its way through every door, and the refusal of another one at a resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import eigenexp as ee
from eigenexp.cli import main
from eigenexp.errors import CheckpointError, ConfigError, InputError
from eigenexp.experiments.building import operator_options
from eigenexp.experiments.config import compose_config, override_config, plain_config
from eigenexp.experiments.resuming import settings_hash
from eigenexp.experiments.targets import check_settings_trusted
from eigenexp.operators.noise import Noise
from tests.problems import fit
from tests.training import quiet_trainer

NOISE = ee.noise.Poisson(0.1)
QUICK = ["model=gaussian", "image.crop=[120,220,16,16]", "threads=1", "logger=none", "trainer=cpu"]


class Rates(nn.Module):
    """Positive responses."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(100, 64, dtype=torch.float64, generator=generator)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x.flatten(1) @ self.weight.T.to(x.dtype)) + 0.1


def picture(count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=generator)


def truth(noise: Noise | None = NOISE, place: int = 0) -> Tensor:
    operator = ee.FisherOperator(Rates(), picture(3)[place : place + 1], noise=noise)
    return torch.linalg.eigvalsh(operator.to_dense()).flip(0)[[0, -1]]


def fitted(folder: Path, noise: Noise | None = NOISE) -> ee.EigendistortionModule:
    module = ee.EigendistortionModule(Rates(), picture(3)[:1], tol=1e-6, noise=noise)
    trainer = quiet_trainer(folder, [ee.ConvergenceStopping()], max_steps=300, precision="64-true")
    trainer.fit(module)
    trainer.save_checkpoint(folder / "a.ckpt")
    return module


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_all_doors_find_the_same_pairs(tmp_path: Path) -> None:
    expected = truth()
    module = fitted(tmp_path)
    torch.testing.assert_close(module.spectrum().eigenvalues, expected)
    assert module.metadata()["noise"] == "poisson(dark=0.1)"
    model = Rates().requires_grad_(False).eval()
    front = ee.Eigendistortion(picture(3)[:1], model, noise=NOISE)
    for method in ("auto", "exact"):
        front.synthesize(method, k=1, which="both")
        torch.testing.assert_close(front.eigenvalues, expected, rtol=1e-5, atol=0)
    front.synthesize("power", k=1, which="top", max_iter=2000)
    torch.testing.assert_close(front.eigenvalues, expected[:1], rtol=1e-5, atol=0)
    solved = ee.solve(ee.FisherOperator(model, picture(3)[:1], noise=NOISE), tol=1e-6)
    torch.testing.assert_close(solved.eigenvalues, expected)
    assert solved.metadata["noise"] == "poisson(dark=0.1)"


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("other", [None, ee.noise.Poisson(0.2), ee.noise.Fano()])
def test_another_noise_is_refused_by_name(tmp_path: Path, other: Noise | None) -> None:
    fitted(tmp_path)
    load = ee.EigendistortionModule.load_from_checkpoint
    path = tmp_path / "a.ckpt"
    same = load(path, model=Rates(), image=picture(3)[:1], noise=ee.noise.Poisson(0.1))
    torch.testing.assert_close(same.spectrum().eigenvalues, truth())
    with pytest.raises(CheckpointError, match=r"noise: the checkpoint has poisson\(dark=0.1\)"):
        load(path, model=Rates(), image=picture(3)[:1], noise=other)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_studies_and_means_take_a_noise(tmp_path: Path) -> None:
    study = ee.StudyModule(
        Rates(), picture(3), tmp_path / "study", batch_size=3, tol=1e-6, noise=NOISE
    )
    fit(study, tmp_path)
    for place in range(3):
        rows = [row["eigenvalue"] for row in study.table() if row["position"] == place]
        assert rows == pytest.approx(truth(place=place).tolist(), rel=1e-6)
    other = ee.StudyModule(Rates(), picture(3), tmp_path / "study", batch_size=3, tol=1e-6)
    with pytest.raises(CheckpointError, match=r"poisson\(dark=0.1\)"):
        fit(other, tmp_path)
    mean = ee.AverageModule(Rates(), picture(3), tol=1e-6, noise=NOISE)
    trainer = quiet_trainer(
        tmp_path, [ee.ConvergenceStopping()], max_steps=300, precision="64-true"
    )
    trainer.fit(mean)
    dense = torch.stack(
        [ee.FisherOperator(Rates(), p[None], noise=NOISE).to_dense() for p in picture(3)]
    ).mean(0)
    expected = torch.linalg.eigvalsh(dense).flip(0)[[0, -1]]
    torch.testing.assert_close(mean.spectrum().eigenvalues, expected)


def test_saved_files_of_the_class_name_their_noise(tmp_path: Path) -> None:
    model = Rates().requires_grad_(False).eval()
    front = ee.Eigendistortion(picture(), model, noise=NOISE)
    front.synthesize("auto")
    front.save(tmp_path / "a.pt")
    same = ee.Eigendistortion(picture(), model, noise=ee.noise.Poisson(0.1))
    same.load(tmp_path / "a.pt")
    assert torch.equal(same.eigenvalues, front.eigenvalues)
    with pytest.raises(CheckpointError, match=r"different noise: expected poisson\(dark=0.1\)"):
        ee.Eigendistortion(picture(), model).load(tmp_path / "a.pt")


def test_what_is_no_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected one of eigenexp\.noise, got str"):
        ee.EigendistortionModule(Rates(), picture(), noise="poisson")  # type: ignore[arg-type]


# -- configuration --------------------------------------------------------------------------------

ROOT = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ee.noise.Gaussian()),
        (["noise.std=2"], ee.noise.Gaussian(2.0)),
        (["noise.std=[1,2]"], ee.noise.Gaussian([1.0, 2.0])),
        (["noise=gaussian_covariance", "noise.covariance=c.pt"], ee.noise.GaussianCovariance(ROOT)),
        (["noise=low_rank", "noise.columns=c.pt"], ee.noise.LowRank(ROOT)),
        (["noise=poisson", "noise.dark=0.5"], ee.noise.Poisson(0.5)),
        (["noise=negative_binomial", "noise.sigma=0.5"], ee.noise.NegativeBinomial(0.5)),
        (["noise=fano", "noise.mean_only=true"], ee.noise.Fano(mean_only=True)),
        (["noise=multiplicative", "noise.sigma=0.2"], ee.noise.Multiplicative(0.2)),
        (["noise=state_dependent", "noise.std=torch.exp"], ee.noise.StateDependent(torch.exp)),
        (["noise=covariance", "noise.covariance=torch.diag"], ee.noise.Covariance(torch.diag)),
        (["noise=categorical", "noise.classes=10"], ee.noise.Categorical(classes=10)),
        (["noise=bernoulli", "noise.of=probabilities"], ee.noise.Bernoulli("probabilities")),
        (["noise=input_noise", "noise.input_std=0.1"], ee.noise.InputNoise(0.1)),
        (["noise=pixel_floor", "noise.pixel_floor=1e-3"], ee.noise.PixelFloor(1e-3)),
        (
            ["noise=poisson", "noise.pixel_floor=1e-3"],
            ee.noise.PixelFloor(1e-3, ee.noise.Poisson()),
        ),
    ],
)
def test_the_group_makes_each_noise(words: list[str], expected: Noise, in_tmp: Path) -> None:
    torch.save(ROOT, "c.pt")
    settings = compose_config(["image.crop=16", *words])
    assert operator_options(settings)["noise"] == expected
    again = override_config(plain_config(settings), [])
    assert operator_options(again)["noise"] == expected
    assert settings_hash(plain_config(settings)) == settings_hash(plain_config(again))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["noise=poison"], "noise"),
        (["noise=multiplicative"], r"noise.sigma: expected a value, got none"),
        (["noise=poisson", "noise.dark=-1"], "noise.dark: expected a finite number at least 0"),
        (["noise=poisson", "noise.drak=1"], "noise.drak"),
        (["noise.std=none.npy"], "noise.std: expected a number or a file of numbers"),
        (["noise=low_rank", "noise.columns=text.pt"], "noise.columns: expected a .npy file"),
        (["noise=state_dependent", "noise.std=no.such"], "noise.std: expected an importable"),
        (["noise=categorical", "noise.of=odds"], "noise.of: expected 'logits'"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_a_line(
    words: list[str], match: str, in_tmp: Path
) -> None:
    Path("text.pt").write_text("no numbers", encoding="utf-8")
    with pytest.raises(ConfigError, match=match) as caught:
        operator_options(compose_config(["image.crop=16", *words]))
    assert "\n" not in str(caught.value)


def test_a_saved_function_is_not_run_without_trust(in_tmp: Path) -> None:
    settings = compose_config(["noise=state_dependent", "noise.std=os.system"])
    with pytest.raises(ConfigError, match=r"noise\.std: expected no function.*--trust"):
        check_settings_trusted(settings)


def test_runs_from_before_there_was_a_choice_are_of_gaussian_noise() -> None:
    plain = plain_config(compose_config(["image.crop=16"]))
    before = {key: value for key, value in plain.items() if key != "noise"}
    assert settings_hash(plain) == settings_hash(before)
    assert operator_options(override_config(before, []))["noise"] == ee.noise.Gaussian()


def test_the_command_line_solves_and_refuses_another_noise(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *QUICK, "noise=poisson", "solver.which=top", "solver.tol=1e-3"]) == 0
    capsys.readouterr()
    assert main(["resume", "last", "noise.dark=1"]) == 1
    told = capsys.readouterr().err
    assert "noise: the checkpoint has poisson(dark=0.0), here poisson(dark=1.0)" in told
    assert main(["resume", "last"]) == 0
