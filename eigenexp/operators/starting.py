"""Vectors worth trying first at the bottom of a spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.operators.perturbations import Coordinates

__all__ = ["start_vectors"]


def start_vectors(image: Tensor, coordinates: Coordinates | None = None) -> Tensor:
    """Return ``(n, s)``: the picture and the constant; one column for a constant picture.

    With ``coordinates``, what of them is considered; ``(n, 0)`` where nothing is.
    """
    if coordinates is not None:
        found = coordinates.coordinates(start_vectors(image))
        slack = 1e3 * torch.finfo(image.dtype).eps
        return found[:, found.norm(dim=0) > slack * image.numel() ** 0.5]
    picture = image.reshape(-1, 1)
    constant = torch.ones_like(picture)
    if bool((picture == picture[0]).all()):
        return constant
    return torch.cat([picture, constant], dim=1)
