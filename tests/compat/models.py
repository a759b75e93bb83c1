"""Small models and pictures for the tests of ``Eigendistortion``."""

import torch
from torch import nn


class Matrix(nn.Module):
    """f(x) = A x for a flattened picture."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        return self.matrix @ x.reshape(-1)


def diagonal(values):
    """A model whose Fisher matrix is diag(values)."""
    return Matrix(torch.diag(torch.as_tensor(values, dtype=torch.float64).sqrt())).eval()


def picture(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def random_matrix(rows, columns, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


class Smooth(nn.Module):
    """A small smooth network with fixed random weights."""

    def __init__(self, channels=1, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(3, channels, 3, 3, generator=generator, dtype=torch.float64)
        self.register_buffer("weight", 0.3 * weight.to(dtype))
        self.eval()

    def forward(self, x):
        return nn.functional.softplus(nn.functional.conv2d(x, self.weight, padding=1))


def oracle(model, image):
    """Dense float64 eigenpairs of F, decreasing: values (n,), vectors (n, n) as columns."""
    flat = image.detach().to(torch.float64).reshape(-1)

    def response(x):
        return model(x.reshape(image.shape)).reshape(-1)

    jacobian = torch.autograd.functional.jacobian(response, flat)
    _, singular, rows = torch.linalg.svd(jacobian, full_matrices=True)
    values = torch.zeros(flat.numel(), dtype=torch.float64)
    values[: len(singular)] = singular.square()
    return values, rows.T, jacobian
