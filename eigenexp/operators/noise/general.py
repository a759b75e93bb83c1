"""Gaussian noise whose covariance is any function of the response, and its information.

Kay 1993, eq. 3.31: F = Jᵀ C⁻¹ J + ½ tr(C⁻¹ ∂C C⁻¹ ∂C). With the root L₀ of C(f₀) held fixed this
is the JᵀJ of g = [L₀⁻¹ f; vec(L₀⁻¹ C(f) L₀⁻ᵀ)/√2], so W is its derivative in f: linearised once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eigenexp.errors import EigenexpError, InputTypeError, ModelError, summary
from eigenexp.operators.calling import gradient
from eigenexp.operators.noise.base import Adjoint, Noise, first_unfit
from eigenexp.operators.noise.factors import Dense, Diagonal, Factor, Pair, Stacked
from eigenexp.operators.tape import record

__all__ = ["MOST_RESPONSES", "Covariance", "StateDependent"]

MOST_RESPONSES = 1024
"""Responses that a covariance may be of: m² numbers a product, twice."""


@dataclass(frozen=True, eq=False)
class StateDependent(Noise):
    """Independent Gaussian noise of any standard deviation s(f).

    F = Jᵀ diag(1/s²) J + 2 J_{log s}ᵀ J_{log s}, g = [f/s₀; √2 log s]. Where sᵢ depends on fᵢ alone
    (found out by trying) W is diagonal and costs nothing; else it costs about one product with the
    derivative of s.

    Parameters
    ----------
    std
        A differentiable function of the response ``(m,)``, to ``(m,)`` numbers above 0.
    mean_only
        Leave out the second term, which the change of s tells.
    """

    name: ClassVar[str] = "state_dependent"
    std: Callable[[Tensor], Tensor]
    mean_only: bool = False

    def __post_init__(self) -> None:
        _check_callable("std", self.std)

    def _at(self, response: Tensor) -> Tensor:
        found = _call(self, self.std, response)
        if found.shape != response.shape:
            raise ModelError(
                f"noise {self}: expected one standard deviation a response, {len(response)} in "
                f"all, got shape {tuple(found.shape)}"
            )
        return found

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return diag(√(1/s² + 2 (s′/s)²)), or [diag(1/s); √2 ∂ log s]."""
        std = self._at(response).detach()
        first_unfit(self, std > 0, std, "a standard deviation above 0", "mend std")
        mean = Diagonal(std.reciprocal())
        if self.mean_only:
            return mean
        linear = _linearised(lambda f: 2**0.5 * self._at(f).log(), response)
        if linear is None:
            return mean
        generator = torch.Generator().manual_seed(0)
        ratios = []
        for _ in range(2):
            v = torch.randn(len(response), generator=generator, dtype=torch.float64).to(response)
            ratios.append(linear.apply(v) / v)
        # Of a map that is not diagonal, (A v)ᵢ / vᵢ differs between two random v.
        slack = 1e4 * torch.finfo(response.dtype).eps
        if bool(((ratios[0] - ratios[1]).abs() <= slack * ratios[0].abs()).all()):
            return Diagonal((mean.weights.square() + ratios[0].square()).sqrt())
        return Stacked([mean, linear], len(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return [f/s₀; √2 log s]."""
        mean = response / self._at(at).detach()
        return mean if self.mean_only else torch.cat([mean, 2**0.5 * self._at(response).log()])


@dataclass(frozen=True, eq=False)
class Covariance(Noise):
    """Gaussian noise of any covariance C(f): Kay's formula in full.

    A product costs 2 m² operations for the mean, and for the other term those of the derivative of
    C, of which m² numbers are kept: m is at most :data:`MOST_RESPONSES`.

    Parameters
    ----------
    covariance
        A differentiable function of the response ``(m,)``, to a positive definite ``(m, m)``.
    mean_only
        Leave out the second term, which the change of C tells.
    """

    name: ClassVar[str] = "covariance"
    covariance: Callable[[Tensor], Tensor]
    mean_only: bool = False

    def __post_init__(self) -> None:
        _check_callable("covariance", self.covariance)

    def _inverse_root(self, response: Tensor) -> Tensor:
        m = len(response)
        if m > MOST_RESPONSES:
            raise ModelError(
                f"noise {self}: expected at most {MOST_RESPONSES} responses for a full covariance, "
                f"got {m}; take state_dependent, low_rank, or a layer with fewer"
            )
        found = _call(self, self.covariance, response).detach().to(torch.float64)
        if found.shape != (m, m):
            raise ModelError(
                f"noise {self}: expected a covariance of shape ({m}, {m}), got {tuple(found.shape)}"
            )
        lower, failed = torch.linalg.cholesky_ex(found)
        if failed or not torch.allclose(found, found.T, rtol=1e-4):
            raise ModelError(
                f"noise {self}: expected a symmetric, positive definite covariance, got one that "
                f"fails at response {max(int(failed) - 1, 0)}; add a variance to its diagonal"
            )
        eye = torch.eye(m, dtype=torch.float64, device=found.device)
        inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
        return inverse.to(response)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return [L₀⁻¹; ∂ vec(L₀⁻¹ C L₀⁻ᵀ)/√2]."""
        root = self._inverse_root(response)
        mean = Dense(root)
        if self.mean_only:
            return mean
        linear = _linearised(lambda f: self._spread(f, root), response)
        return mean if linear is None else Stacked([mean, linear], len(response))

    def _spread(self, response: Tensor, root: Tensor) -> Tensor:
        covariance = _call(self, self.covariance, response)
        spread: Tensor = (root @ covariance @ root.T).reshape(-1) / 2**0.5
        return spread

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return [L₀⁻¹ f; vec(L₀⁻¹ C(f) L₀⁻ᵀ)/√2]."""
        root = self._inverse_root(at)
        mean = root @ response
        return mean if self.mean_only else torch.cat([mean, self._spread(response, root)])


def _check_callable(name: str, function: Any) -> None:
    if not callable(function):
        raise InputTypeError(
            f"{name}: expected a function of the response, got {type(function).__name__}"
        )


def _call(noise: Noise, function: Callable[[Tensor], Tensor], response: Tensor) -> Tensor:
    try:
        found = function(response)
    except EigenexpError:
        raise
    except Exception as error:
        raise ModelError(
            f"noise {noise}: expected a value at a response of shape {tuple(response.shape)}, got "
            f"{summary(error)}"
        ) from error
    if not isinstance(found, Tensor) or not bool(torch.isfinite(found.detach()).all()):
        got = "NaN or inf" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"noise {noise}: expected a finite tensor of the response, got {got}")
    return found


def _linearised(function: Callable[[Tensor], Tensor], response: Tensor) -> Pair | None:
    """Return the derivative of a function of the response; None where it is constant."""
    with torch.inference_mode(False), torch.enable_grad():
        point = response.detach().clone().requires_grad_()
        output = function(point)
        if not output.requires_grad:
            return None
        dummy = torch.zeros_like(output, requires_grad=True)
        adjoint = gradient(output, point, dummy, create_graph=True)
        if adjoint is None:
            return None

        def push(vector: Tensor) -> Tensor:
            found = None
            if adjoint.requires_grad:
                found = gradient(adjoint, dummy, vector)
            return torch.zeros_like(output) if found is None else found

        def pull(vector: Tensor) -> Tensor:
            found = gradient(output, point, vector)
            return torch.zeros_like(point) if found is None else found

        generator = torch.Generator().manual_seed(1)
        drawn = [
            torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.detach())
            for x in (point, output)
        ]
        tapes = record(push, drawn[0]), record(pull, drawn[1])
    return Pair(tapes[0], tapes[1], len(output), len(response))
