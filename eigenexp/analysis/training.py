"""Sensitivities to make losses of: λ of given directions, differentiable in the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from eigenexp.errors import InputError, ModelError, summary
from eigenexp.operators.noise import Noise
from eigenexp.operators.responses import response_values

__all__ = ["sensitivity"]


def sensitivity(
    model: Callable[[Tensor], Any],
    pictures: Tensor,
    directions: Tensor,
    *,
    noise: Noise | None = None,
) -> Tensor:
    """Return ‖J e‖² of each picture along its direction, differentiable in the model's weights.

    For an eigenvector e of F this is its λ, and ∂λ/∂θ = eᵀ(∂F/∂θ)e (Hellmann and Feynman): with e
    held fixed the gradient of this is that of the eigenvalue, so that λmax, or a ratio of two, can
    be a loss. e moves as the weights do: solve again every few steps.

    Parameters
    ----------
    model
        From ``(b, …)`` pictures to ``(b, …)`` responses, each of its own picture alone (batch
        normalisation in ``eval``).
    pictures
        ``(b, …)``.
    directions
        e, of the same shape; used as given. Several of one picture: repeat the picture.
    noise
        As for :class:`~eigenexp.FisherOperator`: the J of g. What depends on the response is held
        fixed at its present value where the noise model holds it so.

    Returns
    -------
    Tensor
        ``(b,)``. In ``torch.enable_grad`` its graph leads to the weights.

    Raises
    ------
    InputError
        When shapes do not fit.
    ModelError
        When the model has no derivative by two backward passes nor by forward mode, or its
        responses are not one a picture.

    Examples
    --------
    >>> import torch, eigenexp as ee
    >>> net = torch.nn.Linear(3, 2, bias=False)
    >>> x, e = torch.rand(4, 3), torch.eye(3)[:1].repeat(4, 1)
    >>> loss = ee.sensitivity(net, x, e).mean()
    >>> loss.backward()
    >>> torch.allclose(net.weight.grad[:, 0], 2 * net.weight[:, 0])
    True
    """
    if pictures.ndim < 2 or directions.shape != pictures.shape:
        raise InputError(
            f"directions: expected the pictures' shape {tuple(pictures.shape)} of at least two "
            f"dimensions, got {tuple(directions.shape)}"
        )
    x, e = pictures.detach(), directions.detach().to(pictures)

    def response(batch: Tensor) -> Tensor:
        output = model(batch)
        if isinstance(output, Tensor) and output.shape[:1] == batch.shape[:1]:
            flat = output.reshape(len(batch), -1)
        elif len(batch) == 1:
            flat = response_values(output).reshape(1, -1)
        else:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"model: expected one tensor of {len(batch)} responses, one a picture, got {got}"
            )
        if noise is None:
            return flat
        return torch.stack([noise.transform(row, row.detach()) for row in flat])

    tangent: Tensor | None
    try:
        tangent = _double_backward(response, x, e)
    except (NotImplementedError, RuntimeError) as backward:
        tangent = _dual_numbers(response, x, e, backward)
    if tangent is None:
        raise ModelError("model: expected a response to the pictures, got one that ignores them")
    squares: Tensor = tangent.square().sum(dim=1)
    return squares


def _double_backward(response: Callable[[Tensor], Tensor], x: Tensor, e: Tensor) -> Tensor:
    """Return J e as the derivative of ⟨Jᵀu, e⟩ in u, which is linear: any u will do."""
    # Before forward mode, whose formulas of some operations (log_softmax) cannot be gone back
    # through.
    with torch.enable_grad():
        source = x.clone().requires_grad_()
        output = response(source)
        dummy = torch.zeros_like(output, requires_grad=True)
        (adjoint,) = torch.autograd.grad((output * dummy).sum(), source, create_graph=True)
        found: Tensor
        (found,) = torch.autograd.grad((adjoint * e).sum(), dummy, create_graph=True)
    return found


def _dual_numbers(
    response: Callable[[Tensor], Tensor], x: Tensor, e: Tensor, backward: Exception
) -> Tensor | None:
    """Return J e by forward mode; None where the response ignores the pictures."""
    try:
        with fwad.dual_level():
            dual = fwad.make_dual(x, e)  # type: ignore[no-untyped-call]
            found: Tensor | None
            _, found = fwad.unpack_dual(response(dual))  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError) as forward:
        raise ModelError(
            f"model: expected a derivative by two backward passes or forward mode, got "
            f"{summary(backward)}; {summary(forward)}"
        ) from forward
    return found
