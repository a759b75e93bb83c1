"""d′ of a changed picture from the picture itself, from responses rather than from F."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import InputError, ModelError
from eigenexp.operators.calling import Model, as_written, copy_image, respond, undisturbed
from eigenexp.operators.noise import Noise
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Perturbations
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.operators.perturbations.latent import Through
from eigenexp.operators.precision import InPrecision
from eigenexp.pictures.picture import Picture

__all__ = ["Discriminability", "picture_and_range"]


def picture_and_range(image: Tensor | Picture) -> tuple[Tensor, tuple[float, float] | None]:
    """Return the picture's values, and the black and white that a display shows of them.

    A tensor in [0, 1] has that range; one that leaves it has none that is known.
    """
    if isinstance(image, Picture):
        black, white = image.record["value_range"]
        return image.tensor, (float(black), float(white))
    if not image.numel() or not image.is_floating_point():
        return image, None
    inside = float(image.detach().min()) >= 0 and float(image.detach().max()) <= 1
    return image, ((0.0, 1.0) if inside else None)


class Discriminability:
    """d′(x′) = ‖g(x′) − g(x)‖ for any changed picture x′, g the response of the noise model.

    F says d′ for infinitesimal changes alone, and fixes no g: this is the g of the noise family's
    table (:meth:`eigenexp.noise.Noise.transform`), f itself for Gaussian noise of std 1.

    Parameters
    ----------
    model
        As for :class:`~eigenexp.FisherOperator`; it is left as it was.
    image
        The picture x; a code with ``perturbations=Latent(…)``.
    noise, perturbations, model_dtype
        As for :class:`~eigenexp.FisherOperator`. Of the perturbations only a generator matters:
        changes are given as changes of what the operator takes.
    value_range
        ``(black, white)``, to which a display clips; None where nothing is. By default that of a
        :class:`~eigenexp.Picture`, [0, 1] for a tensor inside it, and None for any other.

    Attributes
    ----------
    image
        x.
    value_range
        See above.
    rounding
        What rounding of the response may make of d′ = 0: eps · ‖g(x)‖.
    num_calls
        Forward passes so far.

    Raises
    ------
    ModelError
        When the model fails, or the noise has no g that is a function of the response alone.
    """

    def __init__(
        self,
        model: Model,
        image: Tensor | Picture,
        *,
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
        model_dtype: torch.dtype | None = None,
        value_range: tuple[float, float] | str | None = "auto",
    ) -> None:
        values, known = picture_and_range(image)
        self.image = copy_image(values)
        self.value_range = _range(known if isinstance(value_range, str) else value_range)
        self.noise = noise_or_default(noise)
        self.num_calls = 0
        generator, _ = perturbations_or_default(perturbations).split()
        self._of_codes = generator is not None
        self._owner = as_written(model)
        self._models = {
            clip: self._chain(self._owner, generator, clip, model_dtype) for clip in (False, True)
        }
        with self._quiet():
            self._at = self._respond(self.image, clip=False)
            self._base = self._transform(self._at)
        if not bool(torch.isfinite(self._base).all()):
            raise ModelError(
                f"noise {self.noise}: expected a finite g at the picture, got NaN or inf; the "
                "response does not fit the noise"
            )
        eps = torch.finfo(model_dtype or self.image.dtype).eps
        self.rounding = eps * float(torch.linalg.vector_norm(self._base))

    def _chain(
        self,
        model: Model,
        generator: Callable[[Tensor], Any] | None,
        clip: bool,
        model_dtype: torch.dtype | None,
    ) -> Model:
        chain = model
        if clip and self.value_range is not None:
            black, white = self.value_range

            def chain(picture: Tensor) -> Any:
                return model(picture.clamp(black, white))

        if generator is not None:
            chain = Through(chain, generator, self.image)
        return chain if model_dtype is None else InPrecision(chain, model_dtype)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with undisturbed(self._owner, self.image.device), torch.no_grad():
            yield

    def _respond(self, picture: Tensor, *, clip: bool) -> Tensor:
        self.num_calls += 1
        return respond(self._models[clip], picture).detach()

    def _transform(self, response: Tensor) -> Tensor:
        # In the response's precision, as the operator's factor is; only differences are exact.
        return self.noise.transform(response, self._at).detach().to(torch.float64)

    def of(self, picture: Tensor, *, clip: bool = False) -> float:
        """Return d′ of a changed picture from the picture.

        Parameters
        ----------
        picture
            x′, as many values as the picture has; a code where the picture is one.
        clip
            Whether what is shown is clipped to :attr:`value_range` first.

        Returns
        -------
        float
            NaN where g is not defined at x′ (a rate below 0 under Poisson noise).

        Raises
        ------
        InputError
            When it does not fit the picture, or there is no range to clip to.
        ModelError
            When the model fails there.
        """
        if picture.numel() != self.image.numel():
            raise InputError(
                f"picture: expected {self.image.numel()} values, as the picture has, got "
                f"{picture.numel()}"
            )
        if clip and self.value_range is None:
            raise InputError(
                "clip: expected a picture whose black and white are known, got none; pass "
                "value_range=(black, white)"
            )
        changed = picture.detach().reshape(self.image.shape).to(self.image)
        with self._quiet():
            response = self._respond(changed, clip=clip)
            if response.shape != self._at.shape:
                raise ModelError(
                    f"model: expected {len(self._at)} responses at any picture, got {len(response)}"
                )
            try:
                found = self._transform(response)
            except ModelError:  # a noise of a function that is not defined there
                return math.nan
            squared = float((found - self._base).square().sum())
        if self.noise.floor > 0:
            # The observer's own look at the pixels, F + κI: κ‖x′ − x‖² beside the response's.
            if clip and not self._of_codes and self.value_range is not None:
                changed = changed.clamp(*self.value_range)
            squared += self.noise.floor * float((changed - self.image).double().square().sum())
        return math.sqrt(squared) if math.isfinite(squared) else math.nan

    def along(self, direction: Tensor, alpha: float, *, clip: bool = False) -> float:
        """Return d′ of x + αe from x.

        Parameters
        ----------
        direction
            e, as many values as the picture has; used as given, not normalised.
        alpha
            α, also below 0.
        clip
            See :meth:`of`.
        """
        e = direction.detach().reshape(self.image.shape).to(self.image)
        return self.of(self.image + alpha * e, clip=clip)


def _range(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        black, white = (float(end) for end in given)
    except (TypeError, ValueError):
        raise InputError(f"value_range: expected two numbers or None, got {given!r}") from None
    if not black < white:
        raise InputError(f"value_range: expected black < white, got {given!r}")
    return black, white
