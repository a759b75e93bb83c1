import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    """Start every test from one seed and one state of the global generator."""
    torch.manual_seed(0)
