"""Responses that are the probabilities of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eigenexp.errors import InputError, ModelError
from eigenexp.operators.noise.base import Adjoint, Noise, first_unfit
from eigenexp.operators.noise.factors import Diagonal, Factor, Simplex

__all__ = ["Bernoulli", "Categorical"]

_OF = ("logits", "probabilities")


@dataclass(frozen=True, eq=False)
class Categorical(Noise):
    """One of C answers, p = softmax(z): F = J_zᵀ (diag p − ppᵀ) J_z, of rank C − 1 at most.

    g = 2√p, from log-softmax: it moves on a sphere of radius 2, so W has C − 1 rows and the null
    space is known beforehand.

    Parameters
    ----------
    of
        What the model gives: ``"logits"`` z, or ``"probabilities"`` p, which must add up to 1.
    classes
        C, where the response holds several independent answers one after another; all of it is one
        otherwise.
    """

    name: ClassVar[str] = "categorical"
    of: str = "logits"
    classes: int | None = None

    def __post_init__(self) -> None:
        _check_of(self.of)
        if self.classes is not None and self.classes < 2:
            raise InputError(f"classes: expected at least 2, got {self.classes}")

    def _rows(self, response: Tensor) -> Tensor:
        classes = self.classes or len(response)
        if len(response) % classes or len(response) < 2:
            raise ModelError(
                f"noise {self}: expected {classes} values an answer, got a response of "
                f"{len(response)}; pass classes=…"
            )
        return response.reshape(-1, classes)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return W of 2√p, without the direction along √p."""
        rows = self._rows(response).to(torch.float64)
        if self.of == "logits":
            # What underflows carries no information; a root of 0 would be NaN in a quotient only.
            return Simplex(torch.softmax(rows, dim=1).to(response), of_logits=True)
        flat = rows.reshape(-1)
        first_unfit(self, flat > 0, flat, "probabilities above 0", "of='logits' takes them before")
        slack = 1e3 * torch.finfo(response.dtype).eps
        sums = rows.sum(dim=1)
        if not bool(((sums - 1).abs() <= slack).all()):
            answer = int((sums - 1).abs().argmax())
            raise ModelError(
                f"noise {self}: expected probabilities of sum 1, got {float(sums[answer]):.6g} at "
                f"responses {answer * rows.shape[1]} to {(answer + 1) * rows.shape[1] - 1}; pass "
                "of='logits' for a model that ends before its softmax"
            )
        return Simplex((rows / sums[:, None]).to(response), of_logits=False)

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return 2√p."""
        rows = self._rows(response)
        if self.of == "logits":
            return 2 * torch.exp(0.5 * torch.log_softmax(rows, dim=1)).reshape(-1)
        return 2 * response.sqrt()


@dataclass(frozen=True, eq=False)
class Bernoulli(Noise):
    """Yes or no at each response: F = J_zᵀ diag(p(1−p)) J_z, z the logit.

    g = 2 arctan(tanh(z/4)), which is 2 arcsin √p up to a constant and finite at any z.

    Parameters
    ----------
    of
        What the model gives: ``"logits"`` z or ``"probabilities"`` p, between 0 and 1.
    """

    name: ClassVar[str] = "bernoulli"
    of: str = "logits"

    def __post_init__(self) -> None:
        _check_of(self.of)

    def factor(self, response: Tensor, pull: Adjoint) -> Factor:
        """Return diag(√(p(1−p))), or its inverse for probabilities."""
        exact = response.to(torch.float64)
        if self.of == "logits":
            return Diagonal((torch.sigmoid(exact) * torch.sigmoid(-exact)).sqrt().to(response))
        inside = (exact > 0) & (exact < 1)
        first_unfit(self, inside, exact, "a probability between 0 and 1", "pass of='logits'")
        return Diagonal((exact * (1 - exact)).rsqrt().to(response))

    def transform(self, response: Tensor, at: Tensor) -> Tensor:
        """Return 2 arctan(tanh(z/4))."""
        logits = response if self.of == "logits" else torch.logit(response)
        return 2 * torch.atan(torch.tanh(logits / 4))


def _check_of(of: str) -> None:
    if of not in _OF:
        raise InputError(f"of: expected 'logits' or 'probabilities', got {of!r}")
