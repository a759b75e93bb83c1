"""How likely a pair beyond the wanted ones was missed: a bound from one random vector.

Let U be the wanted Ritz vectors, P = I − U Uᵀ and F' = P F P. Let V u = θ u be the other Ritz pairs
of the search space, F' u_j = θ_j u_j + r_j. If F' has a unit eigenvector e with the eigenvalue λ,
then ⟨u_j, e⟩ = ⟨r_j, e⟩ / (λ − θ_j), so that for any g in the search space

    ⟨g, e⟩ = ⟨y, e⟩,   y = Σ_j r_j ⟨u_j, g⟩ / (λ − θ_j),   hence |⟨g, e⟩| ≤ ‖y‖.

(x = Σ u_j ⟨u_j, g⟩ / (λ − θ_j) is the Galerkin solution of (λ − F') x = P g, and y its residual.)
Half of g is noise, uniform on a sphere of radius 1/√2 and drawn after U; its part along e is nearly
normal with variance 1/2n, whatever e is. A missed e at λ therefore has a chance of at most
√(4n/π) ‖y‖ to leave so small a trace. By Weyl's inequality F has no eigenvalue beyond that F' has
none of, up to the residuals of U.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CHANCE", "SearchBudget", "chance_of_miss", "draw_probe", "galerkin_weights", "suspects"]

CHANCE = 0.05
"""Chance of a miss at which a search for missed pairs ends."""
TOP_BUDGET = 15
"""Products a top of a picture's F is verified with at the most, true residuals included."""
LIMIT = 60
"""Products after which any other search is given up, or half of all where that is more."""


@dataclass(frozen=True)
class SearchBudget:
    """How long a random vector is followed in search of missed pairs.

    Attributes
    ----------
    strict
        Follow it until the chance of a miss is at most :data:`CHANCE`. Otherwise the search at the
        top ends after :data:`TOP_BUDGET` products less the k of the true residuals, also where the
        bound is still weak: the top of a vision model's F is seldom repeated.
    """

    strict: bool
    k: int

    def spent(self, end: str, products: int, total: int) -> bool:
        """Whether the search ends here with what it knows.

        Parameters
        ----------
        products, total
            Of this search, and of the whole run.
        """
        if self.short(end):
            return products >= max(8, TOP_BUDGET - self.k)
        return products >= max(LIMIT, total // 2)

    def short(self, end: str) -> bool:
        """Whether the short search of a picture's top is enough."""
        return end == "top" and not self.strict


def draw_probe(
    noise: Tensor, weights: Tensor, found: Tensor, image_shape: tuple[int, ...] | None
) -> Tensor:
    """Return g, unit norm: noise and, for a picture, mirror images of the pairs found, half each.

    Repeated eigenvalues of vision models come from symmetry: where filters treat both axes alike,
    the mirror image of an eigenvector is another. A missed copy then shows at once. What is added
    to the noise shifts the distribution of ⟨g, e⟩, which makes small values no likelier.

    Parameters
    ----------
    noise
        ``(n,)``, standard normal.
    weights
        ``(k, 3)``, standard normal.
    found
        ``(n, k)``, the wanted Ritz vectors.
    image_shape
        Of the picture, where there is one.
    """
    noise = noise / noise.norm()
    twins = torch.zeros_like(noise)
    if image_shape is not None and len(image_shape) > 1:
        pictures = found.mT.reshape(-1, *image_shape)
        mirrored = [pictures.flip(-1), pictures.flip(-2)]
        if image_shape[-1] == image_shape[-2]:
            mirrored.append(pictures.mT)
        for share, images in zip(weights.mT, mirrored, strict=False):
            twins += images.reshape(len(pictures), -1).mT @ share
    norm = float(twins.norm())
    return (noise + twins / norm) / math.sqrt(2) if norm > 0 else noise / math.sqrt(2)


def suspects(end: str, last: float, slack: float, scale: float) -> list[float]:
    """Return eigenvalues a missed pair could have: just beyond the last wanted one, and further.

    Parameters
    ----------
    end
        ``"top"`` or ``"bottom"``.
    last
        The innermost wanted eigenvalue of that end.
    slack
        Distance that counts as equal: tol · λmax.
    scale
        λmax.
    """
    if end == "top":
        first = last + slack
        return [first, first + 0.1 * scale, first + scale]
    first = max(last - slack, 0.0)
    return [first, first / 2, 0.0]


def galerkin_weights(values: Tensor, probe: Tensor, wanted: list[int], suspect: float) -> Tensor:
    """Return ⟨u_j, g⟩ / (λ − θ_j) for the unwanted Ritz pairs, 0 for the wanted ones, ``(j,)``.

    Parameters
    ----------
    values
        Ritz values, ``(j,)``.
    probe
        ⟨u_j, g⟩, ``(j,)``.
    wanted
        Places of the wanted pairs.
    suspect
        λ.
    """
    distance = suspect - values
    # A Ritz value at λ itself: nothing can be concluded, and the weight says so.
    tiny = 1e-14 * max(float(values.abs().max()), 1e-300)
    distance = torch.where(distance.abs() < tiny, torch.full_like(distance, tiny), distance)
    weights = probe / distance
    weights[wanted] = 0.0
    return weights


def chance_of_miss(norms: list[float], n: int) -> float:
    """Return the bound √(4n/π) ‖y‖, at most 1, for the worst of the suspects.

    Noise is half of g, see :func:`draw_probe`: the other half makes small traces no likelier.

    Parameters
    ----------
    norms
        ‖y‖ for each suspect.
    n
        Length of a vector.
    """
    return min(1.0, math.sqrt(4 * n / math.pi) * max(norms))
