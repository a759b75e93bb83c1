"""The frozen factors beside J, put into a route's products: blocks and solvers see W J alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eigenexp.operators.noise.base import Noise
from eigenexp.operators.noise.factors import Factor, join
from eigenexp.operators.perturbations.coordinates import Coordinates
from eigenexp.operators.routes import Route

__all__ = ["noise_factor", "with_coordinates", "with_noise"]


def noise_factor(noise: Noise, route: Route, image: Tensor, pictures: int) -> Factor | None:
    """Return W at the route's response; None for the identity.

    Parameters
    ----------
    noise
        The noise model.
    route
        Of J alone.
    image
        What the route's J takes.
    pictures
        Held one after another: the response is of so many equal parts, each with a W of its own.

    Raises
    ------
    ModelError
        When the response does not fit.
    """
    size = route.response.numel() // pictures
    length = image.numel() // pictures

    def factor(place: int) -> Factor | None:
        here = slice(place * size, (place + 1) * size)

        def pull(cotangent: Tensor) -> Tensor:
            whole = torch.zeros_like(route.response)
            whole[here] = cotangent
            with route.running():
                product = route.pull(whole).detach().reshape(-1)
            return product[place * length : (place + 1) * length]

        return noise.factor(route.response[here].clone(), pull)

    with torch.inference_mode(False):
        return join([factor(place) for place in range(pictures)], size)


def with_noise(route: Route, factor: Factor | None, floor: float, pictures: int) -> Route:
    """Return the route of [W J; √κ I], both parts of one picture together.

    Parameters
    ----------
    route
        Of J alone.
    factor
        W; None for the identity.
    floor
        κ.
    pictures
        Held one after another.
    """
    if factor is None and floor == 0:
        return route
    root = float(floor) ** 0.5
    rows = route.response.numel() if factor is None else factor.rows

    def push(vector: Tensor) -> Tensor:
        response = route.push(vector)
        if factor is not None:
            response = factor.apply(response)
        if root == 0:
            return response
        pixels = root * vector.reshape(pictures, -1)
        return torch.cat([response.reshape(pictures, -1), pixels], dim=1).reshape(-1)

    def pull(cotangent: Tensor) -> Tensor:
        pixels = None
        if root > 0:
            parts = cotangent.reshape(pictures, -1)
            cotangent, pixels = (
                parts[:, : rows // pictures].reshape(-1),
                parts[:, rows // pictures :],
            )
        if factor is not None:
            cotangent = factor.adjoint(cotangent)
        product = route.pull(cotangent)
        return product if pixels is None else product + root * pixels.reshape(product.shape)

    width = max(route.width, rows) if route.width else 0
    return replace(route, push=push, pull=pull, width=width)


def with_coordinates(route: Route, maps: Sequence[Coordinates], image: Tensor) -> Route:
    """Return the route of J B, which takes coordinates in place of pictures.

    Parameters
    ----------
    route
        Of J.
    maps
        One B a picture held, all of one shape.
    image
        What the route's J takes.
    """
    inside, outside = maps[0].shape, maps[0].picture_shape

    def push(vector: Tensor) -> Tensor:
        rows = vector.reshape(len(maps), *inside)
        pictures = [one.embed(row) for one, row in zip(maps, rows, strict=True)]
        return route.push(torch.stack(pictures).reshape(image.shape))

    def pull(cotangent: Tensor) -> Tensor:
        pictures = route.pull(cotangent).reshape(len(maps), *outside)
        return torch.stack([one.adjoint(x) for one, x in zip(maps, pictures, strict=True)])

    width = max(route.width, image.numel()) if route.width else 0
    return replace(route, push=push, pull=pull, width=width)
