"""What an ``Eigendistortion`` has found: one value, which files hold and loads replace whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.compat.orthogonal_iteration import OrthogonalIteration
from eigenexp.eigensolvers import Eigensolver
from eigenexp.spectrum import Spectrum

__all__ = ["RESULTS", "SPECTRUM_TENSORS", "Search", "State", "map_spectrum"]

RESULTS = ("jacobian", "eigendistortions", "eigenvalues", "eigenindex")
"""The results that plenoptic's class has, too."""
SPECTRUM_TENSORS = ("eigenvalues", "eigenvectors", "eigenindex", "residuals", "error_bounds")


@dataclass(frozen=True)
class Search:
    """What the last ``synthesize`` was asked for, and where it stood.

    Attributes
    ----------
    kind
        Method, ``k``, ``which`` and options: a call of the same kind goes on.
    where
        The iteration of ``"power"`` or the solver itself, which a later call takes further; a
        solver's ``state_dict()`` after a load or a move.
    """

    kind: tuple[Any, ...]
    where: OrthogonalIteration | Eigensolver | Mapping[str, Any]

    def state(self) -> Mapping[str, Any]:
        """Return where it stood as tensors and plain containers."""
        if isinstance(self.where, OrthogonalIteration):
            return self.where.state()
        return self.where.state_dict() if isinstance(self.where, Eigensolver) else self.where


@dataclass(frozen=True, eq=False)
class State:
    """A picture, and the eigenpairs found for it so far.

    Attributes
    ----------
    image
        In the shape given.
    jacobian
        ``(m, n)``, or None.
    eigendistortions, eigenvalues, eigenindex
        ``(k', *image.shape[1:])``, ``(k',)``, ``(k',)`` int64; None before there are any.
    spectrum
        The same pairs with their certificates; None where they are not measured.
    search
        What to go on from, or None.
    loaded
        Whether it came from a file.
    """

    image: Tensor
    jacobian: Tensor | None = None
    eigendistortions: Tensor | None = None
    eigenvalues: Tensor | None = None
    eigenindex: Tensor | None = None
    spectrum: Spectrum | None = None
    search: Search | None = None
    loaded: bool = False

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one distortion: ``(C, H, W)``, or ``(n,)`` for a 1-D picture."""
        return tuple(self.image.shape[1:]) if self.image.ndim > 1 else tuple(self.image.shape)

    def with_pairs(self, spectrum: Spectrum) -> State:
        """Return the state with these pairs in place of those before."""
        return replace(
            self,
            spectrum=spectrum,
            eigendistortions=spectrum.eigenvectors,
            eigenvalues=spectrum.eigenvalues.to(self.image),
            eigenindex=spectrum.eigenindex.to(self.image.device),
        )

    def moved(self, device: torch.device | None, dtype: torch.dtype | None) -> State:
        """Return the state on a device, floating tensors in a dtype; None keeps what there is.

        A solver's state stays as it was: it belongs to a solver in its dtype.
        """

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        moved: dict[str, Any] = {
            name: None if value is None else move(value)
            for name, value in ((name, getattr(self, name)) for name in RESULTS)
        }
        search = self.search
        if search is not None and isinstance(search.where, OrthogonalIteration):
            search = replace(search, where=search.where.moved(device, dtype))
        elif search is not None:
            search = replace(search, where=search.state())
        return replace(
            self,
            image=move(self.image),
            **moved,
            spectrum=None if self.spectrum is None else map_spectrum(self.spectrum, move),
            search=search,
        )


def map_spectrum(
    spectrum: Spectrum, change: Callable[[Tensor], Tensor], places: Sequence[int] | None = None
) -> Spectrum:
    """Return ``spectrum`` with every tensor changed, and the status of ``places`` alone kept."""
    status = spectrum.status if places is None else tuple(spectrum.status[i] for i in places)
    tensors: dict[str, Any] = {name: change(getattr(spectrum, name)) for name in SPECTRUM_TENSORS}
    return replace(spectrum, status=status, **tensors)
