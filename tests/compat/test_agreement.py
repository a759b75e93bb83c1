"""Agreement with plenoptic's ``exact`` on its eight models, to 1e-5 relative."""

import pytest
import torch

from eigenexp import Eigendistortion

po = pytest.importorskip("plenoptic")

MODELS = pytest.importorskip("tests.compat.plenoptic_models").MODELS


@pytest.fixture(params=list(MODELS))
def problem(request):
    torch.manual_seed(0)
    model = MODELS[request.param]().to(torch.float64).eval()
    po.remove_grad(model)
    return model, po.data.einstein()[..., 100:116, 100:116].to(torch.float64)


def test_exact_agrees_with_theirs(problem):
    model, image = problem
    theirs = po.Eigendistortion(image, model)
    theirs.synthesize("exact")
    ours = Eigendistortion(image, model)
    ours.synthesize("exact")
    top = float(theirs.eigenvalues[0])
    # Theirs squares J first: below about 1e-15 · λmax its eigenvalues are rounding.
    assert torch.allclose(ours.eigenvalues, theirs.eigenvalues, rtol=1e-5, atol=1e-14 * top)
    assert torch.allclose(ours.jacobian, theirs.jacobian, rtol=1e-10, atol=1e-12 * top**0.5)


def test_power_agrees_with_theirs_at_the_top(problem):
    model, image = problem
    theirs, ours = po.Eigendistortion(image, model), Eigendistortion(image, model)
    theirs.synthesize("exact")
    ours.synthesize(which="top", max_iter=3000, stop_criterion=1e-9)
    assert float(ours.eigenvalues[0]) == pytest.approx(float(theirs.eigenvalues[0]), rel=1e-5)
