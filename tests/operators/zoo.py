"""Every kind of model the operators must take without the user's help, with a picture for each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


class Lambda(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Cube(torch.autograd.Function):
    """x³ with a backward pass alone; it can be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class OnceCube(Cube):
    """x³ with a backward pass that cannot be differentiated, and no forward mode."""

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class NumpyCube(Cube):
    """x³ whose backward pass leaves torch."""

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(np.asarray(3 * x.numpy() ** 2 * grad.numpy()))


class DualCube(torch.autograd.Function):
    """x³ with a forward mode, and a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class Branching(nn.Module):
    """Looks at values, as plain numbers, to decide what to do; backward too."""

    def forward(self, x):
        return x.sin() if x.sum().item() > 0 else x.cos()


class BranchingCube(Cube):
    """x³ whose backward pass looks at the incoming gradient."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        scale = 3 if bool((grad.detach() == grad.detach()).all()) else 0
        return scale * x**2 * grad


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 2, 2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")

    def forward(self, x):
        return self.block(self.embed(x).flatten(2).transpose(1, 2)).softmax(-1)


class FusedAttention(nn.Module):
    def forward(self, x):
        tokens = x.reshape(1, 2, -1, 4)
        return functional.scaled_dot_product_attention(tokens, tokens.sin(), tokens.exp())


class DataAssigning(nn.Module):
    """Mends its parameter through ``.data`` in every forward pass."""

    def __init__(self):
        super().__init__()
        self.std = nn.Parameter(torch.tensor([-1.5], dtype=torch.float64), requires_grad=False)

    def forward(self, x):
        self.std.data = self.std.data.abs()
        return (x / self.std).tanh()


class InPlace(nn.Module):
    def forward(self, x):
        out = torch.zeros(1, 3, *x.shape[2:], dtype=x.dtype, device=x.device)
        out[:, 0] = x[:, 0].exp()
        out[:, 1:].add_(x)
        out = out.clone()
        out.mul_(2)
        picked = out[:, [0, 1, 1]]
        picked[..., 1] *= 3
        return picked.relu_()


class InPlaceOnInput(nn.Module):
    def forward(self, x):
        x.mul_(2)
        x[..., 0] = x[..., 1] * 3
        return x.exp()


class Energy(nn.Module):
    """Its response is itself a gradient."""

    def forward(self, x):
        (slope,) = torch.autograd.grad((x**3).sum() + x.prod(), x, create_graph=True)
        return slope


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x):
        return checkpoint(lambda y: self.conv(y).sin().exp(), x, use_reentrant=False)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(4, 5, batch_first=True)

    def forward(self, x):
        return self.cell(x.reshape(1, -1, 4))[0]


class ManyOperations(nn.Module):
    def forward(self, x):
        y = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        y = functional.pad(y, (1, 1, 1, 1), mode="reflect")
        z = functional.adaptive_avg_pool2d(y, 3).cumsum(-1)
        top = y.flatten().topk(5).values
        rows = x.flatten(2).mT
        gram = rows.mT @ rows + torch.eye(2, dtype=x.dtype)
        solved = torch.linalg.solve(gram, x.flatten(2))
        return torch.cat([z.flatten(), top, solved.flatten(), x.flatten().logsumexp(0)[None]])


@dataclasses.dataclass
class Output:
    first: Tensor
    nothing: None
    second: list[Tensor]


@dataclass(frozen=True)
class Case:
    """A model, the shape of its picture, and the route that must be found."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 2, 4, 4)
    route: str = "traced"


def function(f, **kwargs):
    return Case(lambda: Lambda(f), **kwargs)


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.GELU(),
        nn.ConvTranspose2d(6, 3, 2),
        nn.Softmax(1),
    )


def norms():
    return nn.Sequential(
        nn.GroupNorm(1, 2), nn.SiLU(), nn.InstanceNorm2d(2), nn.LayerNorm(4), nn.Softplus()
    )


def training_batch_norm():
    return nn.Sequential(nn.BatchNorm2d(2), nn.Tanh())


CASES = {
    "linear": function(lambda x: x.flatten(1)[:, :7] * 3, route="traced"),
    "conv net": Case(conv_net, (1, 2, 8, 8)),
    "norms": Case(norms),
    "attention": Case(Attention),
    "fused attention": Case(FusedAttention),
    "fft": function(lambda x: torch.fft.fft2(x).abs().log1p()),
    "complex output": function(torch.fft.rfft2),
    "conjugate output": function(lambda x: torch.fft.rfft2(x).conj()),
    "tuple": function(lambda x: (x.sin(), x.sum() ** 2)),
    "list": function(lambda x: [x.sin(), x[:, :1].exp()]),
    "dict": function(lambda x: {"a": x.cos(), "b": {"c": torch.fft.fft(x), "d": None}}),
    "dataclass": function(lambda x: Output(x.sin(), None, [x.exp(), x.mean()])),
    "0-d": function(lambda x: x.sin().sum()),
    "permuted": function(lambda x: x.sin().permute(0, 2, 3, 1)),
    "channels last": function(lambda x: x.exp().to(memory_format=torch.channels_last)),
    "expanded": function(lambda x: x.sin().sum(1, keepdim=True).expand(-1, 3, -1, -1)),
    "1-D": function(lambda x: x.outer(x).sin(), shape=(5,)),
    "3-D": function(lambda x: x.sin(), shape=(1, 3, 5)),
    "in place": Case(InPlace),
    "in place on the input": Case(InPlaceOnInput),
    "custom backward": function(Cube.apply),
    "custom forward mode": function(lambda x: DualCube.apply(x).sin(), route="traced-forward"),
    "once differentiable": function(lambda x: OnceCube.apply(x).sin(), route="rows"),
    "numpy backward": function(lambda x: NumpyCube.apply(x).sin(), route="rows"),
    "branching": Case(Branching),
    "branching backward": function(lambda x: BranchingCube.apply(x), route="double-backward"),
    "data assigning": Case(DataAssigning),
    "energy": Case(Energy),
    "checkpointed": Case(Checkpointed),
    "recurrent": Case(Recurrent),
    "many operations": Case(ManyOperations),
    "identity": function(lambda x: x),
    "batch norm in training": Case(training_batch_norm),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return a case's model, in eval mode but for batch norm in training, and its picture."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(case.shape, generator=generator, dtype=torch.float64).to(dtype)
    model = case.make().double().train("training" in name)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    for parameter in model.parameters():
        if parameter.numel() > 1:
            parameter.data.normal_(0, 0.4, generator=generator)
    return model.to(dtype), image


def flat(output):
    """Flatten a model's output independently of the code under test."""
    if output is None:
        return torch.zeros(0, dtype=torch.float64)
    if isinstance(output, Tensor):
        if output.is_complex():
            output = torch.stack([output.real, output.imag], dim=-1)
        return output.reshape(-1)
    if dataclasses.is_dataclass(output):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, dict):
        output = list(output.values())
    return torch.cat([flat(part) for part in output])


def dense(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the response (m,) and J (m, n), row by row, by plain reverse mode."""
    model = copy.deepcopy(model)
    with sdpa_kernel(SDPBackend.MATH):
        x = image.clone().requires_grad_()
        y = flat(model(x.clone()))
        rows = [torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in y]
    return y.detach(), torch.stack(rows)


def dense_jacobian(model: nn.Module, image: Tensor) -> Tensor:
    """Return J (m, n)."""
    return dense(model, image)[1]
