import pytest
import torch

from eigenexp.operators import FisherOperator


@pytest.fixture(autouse=True)
def _seeded():
    """Start every test from one seed and one state of the global generator."""
    torch.manual_seed(0)


@pytest.fixture
def multiplied(monkeypatch):
    """The widths of the blocks multiplied with F, by whichever operator, in order."""
    widths = []
    apply = FisherOperator.apply

    def counting(self, block, *request):
        widths.append(block.shape[1])
        return apply(self, block, *request)

    monkeypatch.setattr(FisherOperator, "apply", counting)
    return widths
