"""Corrections for pencils: surrogates of each operator, and one of their sum in front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.comparison.exclusion import Form
from eigenexp.comparison.space import SharedSpace
from eigenexp.eigensolvers.modulated_convolution import ModulatedConvolution, fit_surrogate

__all__ = ["Surrogates", "fit_surrogates"]

FITS = 0.2
"""Misfit of a surrogate, the worst of all, up to which corrections are made with them."""
INNER = 10
"""Steps of the inner solve."""


class Surrogates:
    """A_i ≈ F_i for every operator, and one surrogate P ≈ Σ w_i F_i + δ to go before.

    Attributes
    ----------
    each
        A_i.
    front
        P, whose inverse is cheap.
    """

    def __init__(self, each: Sequence[ModulatedConvolution], front: ModulatedConvolution) -> None:
        self.each, self.front = list(each), front

    @property
    def misfit(self) -> float:
        """The worst misfit of all."""
        return max(self.front.misfit, *(one.misfit for one in self.each))

    @property
    def note(self) -> str:
        """What they are, in words."""
        worst = max(one.misfit for one in self.each)
        return f"modulated convolutions, misfit up to {worst:.2g}"

    def apply(self, form: Form, vectors: Tensor) -> Tensor:
        """Return (Σ w_i A_i + shift) V."""
        out = form.shift * vectors
        for weight, surrogate in zip(form.weights, self.each, strict=True):
            if weight:
                out = out + weight * surrogate.apply(vectors)
        return out

    def correction(
        self, form: Form, residual: Tensor, locked: Tensor, images: Tensor, steps: int = INNER
    ) -> Tensor:
        """Solve K t = r off ``locked``, roughly, with the surrogates in K's place.

        t minimises ‖(I − SU Uᵀ)(K t − r)‖ over a Krylov space of P⁻¹K (Sleijpen and van der Vorst
        1996, with an indefinite or definite K in S's inner product).

        Parameters
        ----------
        form
            K, for the pencil λS − M.
        residual
            r, ``(n, 1)``.
        locked, images
            U ``(n, k)`` with UᵀSU = I, and S U.
        """

        def inside(t: Tensor) -> Tensor:  # S-orthogonal to U
            return t - locked @ (images.mT @ t)

        def outside(r: Tensor) -> Tensor:
            return r - images @ (locked.mT @ r)

        krylov = [inside(self.front.solve(outside(residual)))]
        for _ in range(steps):
            last = krylov[-1] / krylov[-1].norm().clamp(min=1e-300)
            krylov.append(inside(self.front.solve(outside(self.apply(form, last)))))
        stacked = torch.cat(krylov, dim=1)
        if not bool(torch.isfinite(stacked).all()):
            return residual
        t = torch.linalg.qr(stacked / stacked.norm(dim=0).clamp(min=1e-300)).Q
        image = outside(self.apply(form, t)).double()
        gram = (t.mT.double() @ image).cpu()
        right = (t.mT.double() @ outside(residual).double()).cpu()
        c = torch.linalg.lstsq(gram, right, driver="gelsd").solution
        corrected: Tensor = t @ c.to(t)
        return corrected

    def export(self) -> dict[str, Any]:
        """Return plain containers and tensors, for a checkpoint."""
        return {"each": [one.state() for one in self.each], "front": self.front.state()}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], like: Tensor) -> Surrogates:
        """Return what :meth:`export` described."""
        make = ModulatedConvolution.from_state
        return cls([make(one, like) for one in saved["each"]], make(saved["front"], like))


def fit_surrogates(
    space: SharedSpace,
    front: Form,
    places: Sequence[int],
    shape: tuple[int, ...] | None,
    previous: Surrogates | None = None,
    each: Sequence[ModulatedConvolution] | None = None,
) -> Surrogates | None:
    """Fit surrogates to the vectors of the space at ``places``; None where nothing fits.

    Parameters
    ----------
    front
        The form that the surrogate in front stands for.
    shape
        ``(C, H, W)`` of a picture, or None.
    previous
        Surrogates to improve on.
    each
        Those of the operators, where they are to stay as they are.
    """
    if shape is None or len(shape) < 2 or math.prod(shape) != space.n:
        return None
    at = list(places)
    v = space.basis[:, at]
    own: list[ModulatedConvolution] = [] if each is None else list(each)
    for i in range(len(own), space.count):
        before = None if previous is None else previous.each[i]
        fitted = fit_surrogate(v, space.products(i)[:, at], shape, before)
        if fitted is None:
            return None
        own.append(fitted)
    eye = torch.eye(space.size, dtype=torch.float64)[:, at]
    image = front.times(space, eye).to(v)
    found = fit_surrogate(v, image, shape, None if previous is None else previous.front)
    return None if found is None else Surrogates(own, found)
