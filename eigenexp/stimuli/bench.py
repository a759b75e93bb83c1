"""One picture on the bench: its reference file, and what each observer says of changed ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eigenexp.analysis import amplitude
from eigenexp.analysis.discriminability import Discriminability
from eigenexp.analysis.finite import CLIP_TOLERANCE
from eigenexp.analysis.units import fraction_correct
from eigenexp.errors import InputError
from eigenexp.pictures.picture import Picture
from eigenexp.stimuli.amplitudes import Radii
from eigenexp.stimuli.levels import Light, file_suffix, picture_bytes, read_levels
from eigenexp.stimuli.manifest import Passport, Prediction, Reference
from eigenexp.stimuli.rounding import MOST_PIXELS, round_dithered, round_for_model, round_plain
from eigenexp.stimuli.settings import Settings
from eigenexp.stimuli.sources import Distortion, Observer, slug
from eigenexp.storage.atomic import write_atomic

__all__ = ["PICTURES", "Bench", "put"]

Array = npt.NDArray[Any]

PICTURES = "pictures"
"""Folder of the stimuli's files."""


def put(path: Path, content: bytes) -> bool:
    """Write a file unless it is there already; return whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content, sync=False)
    return True


@dataclass(frozen=True)
class _Views:
    """What an observer sees: d′ from the picture itself, and from its file read back."""

    observer: Observer
    from_picture: Discriminability
    from_file: Discriminability


class Bench:
    """A picture with its file and its observers.

    Parameters
    ----------
    folder
        Of the export.
    picture
        To be changed.
    light
        Of the files.
    observers
        All that predict, each once.
    settings
        Of the export.
    reference_name
        The id of the unchanged picture.
    """

    def __init__(
        self,
        folder: Path,
        picture: Picture,
        light: Light,
        observers: Sequence[Observer],
        settings: Settings,
        reference_name: str,
    ) -> None:
        self.folder, self.picture, self.light, self.settings = folder, picture, light, settings
        self.values = picture.tensor[0].double().cpu().numpy()
        if settings.rounding == "model" and self.values.size > MOST_PIXELS:
            raise InputError(
                f"rounding: expected a picture of at most {MOST_PIXELS} values for rounding=model, "
                f"which takes the dense F, got {self.values.size}; use rounding=dithered, bits=16, "
                "or a smaller picture"
            )
        text = f"{settings.seed} {picture.record['sha256']}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        self._dither = np.random.default_rng(seed).random(self.values.shape)
        levels = self._round(light.encode(self.values))
        content = picture_bytes(levels, settings.bits)
        file = f"{PICTURES}/{reference_name}{file_suffix(len(levels), settings.bits)}"
        put(folder / file, content)
        self.reference = Reference(
            id=reference_name,
            picture=picture.name,
            picture_sha256=str(picture.record["sha256"]),
            file=file,
            file_sha256=hashlib.sha256(content).hexdigest(),
        )
        self.shown = light.decode(read_levels(folder / file))
        original = picture.tensor
        self._views = {
            observer.key: _Views(observer, observer.at(original), observer.at(_batch(self.shown)))
            for observer in observers
        }
        self._information: dict[tuple[str, tuple[str, str]], float] = {}
        self._radii: dict[str, Radii] = {}
        self._fishers: dict[tuple[str, str], Array] = {}

    def _round(self, levels: Array) -> Array:
        if self.settings.rounding != "dithered":
            return round_plain(levels)
        return np.asarray(np.minimum(round_dithered(levels, self._dither), self.light.full))

    @cached_property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """Keys of the observers."""
        return tuple(self._views)

    def radii(self, distortion: Distortion, observer: Observer) -> Radii:
        """Return up to which amplitude a distortion is valid, and shown."""
        if distortion.name not in self._radii:
            display = self.light.display
            found = amplitude(
                observer.model,
                self.picture.tensor.to(observer.dtype),
                distortion.as_spectrum,
                noise=observer.noise,
                value_range=(display.black, display.white),
            )[0]
            radii = Radii(found.validity_radius, found.clip_radius, found.reach)
            self._radii[distortion.name] = radii
        return self._radii[distortion.name]

    def d_prime(self, observer: Observer, distortion: Distortion, alpha: float) -> float:
        """Return true d′ of x + αe, gain included; α may be below 0."""
        look = self._views[observer.key].from_picture
        return self.settings.gain * look.along(distortion.e, alpha)

    def measure(self, distortions: Sequence[Distortion]) -> None:
        """Take uᵀFu of each distortion under every observer, those of pairs as they are known."""
        if not distortions:
            return
        stack = torch.stack([distortion.e for distortion in distortions])
        for key, views in self._views.items():
            found = views.observer.information(self.picture.tensor, stack).tolist()
            for distortion, value in zip(distortions, found, strict=True):
                self._information[distortion.name, key] = value

    def stimulus(
        self,
        name: str,
        distortion: Distortion,
        observer: Observer,
        radii: Radii,
        signed_alpha: float,
        level: float | None,
    ) -> tuple[Passport, bytes]:
        """Return the passport of x + αe, as if it was written, and the bytes of its file.

        d′ is that of the levels in these bytes; :meth:`Bench.check` reads them from the file.
        """
        change = signed_alpha * distortion.e.numpy()
        wanted = self.values + change
        levels = self.light.encode(wanted)
        if self.settings.rounding == "model":
            fisher = self._fisher(observer)
            rounded = round_for_model(change, levels, self.shown, fisher, self.light)
        else:
            rounded = self._round(levels)
        content = picture_bytes(rounded, self.settings.bits)
        display = self.light.display
        width = display.white - display.black
        outside = (wanted < display.black - 1e-9 * width) | (wanted > display.white + 1e-9 * width)
        back = _batch(self.light.decode(rounded))
        shown = _batch(np.clip(wanted, display.black, display.white))
        own = self._views[observer.key]
        gain = self.settings.gain
        alpha = abs(signed_alpha)
        true = gain * own.from_picture.along(distortion.e, signed_alpha)
        clipped = gain * own.from_picture.of(shown) if outside.any() else true
        read = gain * own.from_file.of(back)
        predictions = [self._prediction(distortion, observer, signed_alpha, back, true, read)]
        predictions += [
            self._prediction(distortion, views.observer, signed_alpha, back)
            for key, views in self._views.items()
            if key != observer.key
        ]
        if not np.isfinite(read) or not np.isfinite(true):
            raise InputError("the noise of the model is not defined at this amplitude")
        sizes = 255 * np.abs(change) / width
        return (
            Passport(
                id=name,
                file=f"{PICTURES}/{name}{file_suffix(len(rounded), self.settings.bits)}",
                file_sha256=hashlib.sha256(content).hexdigest(),
                reference=self.reference.id,
                picture=self.picture.name,
                picture_sha256=self.reference.picture_sha256,
                model=observer.name,
                fingerprint=observer.fingerprint,
                noise=str(observer.noise),
                perturbations=str(distortion.source.perturbations),
                distortion=distortion.name,
                pair=distortion.pair,
                index=distortion.index,
                eigenvalue=distortion.eigenvalue,
                error_bound=distortion.error_bound,
                status=distortion.status,
                level=level,
                alpha=alpha,
                sign=1 if signed_alpha > 0 else -1,
                d_prime_linear=gain * alpha * max(distortion.eigenvalue, 0.0) ** 0.5,
                d_prime_true=true,
                d_prime_rounded=read,
                gain=gain,
                fraction_correct=fraction_correct(
                    read, self.settings.task, self.settings.intervals
                ),
                peak_grey_levels=float(sizes.max()),
                rms_grey_levels=float(np.sqrt(np.mean(sizes**2))),
                clipped_pixels=int(outside.sum()),
                display_gamma=display.gamma,
                pixels_per_degree=display.pixels_per_degree,
                run_id=distortion.source.run_id,
                flags=self._flags(distortion, radii, alpha, true, clipped, read),
                predictions=tuple(predictions),
            ),
            content,
        )

    def read_back(self, observer: Observer, file: str) -> float:
        """Return d′ between a stimulus's file and the reference's, as they are on the disk."""
        back = _batch(self.light.decode(read_levels(self.folder / file)))
        return self.settings.gain * self._views[observer.key].from_file.of(back)

    def _prediction(
        self,
        distortion: Distortion,
        observer: Observer,
        signed_alpha: float,
        back: Tensor,
        true: float | None = None,
        read: float | None = None,
    ) -> Prediction:
        views, gain = self._views[observer.key], self.settings.gain
        value = self._information[distortion.name, observer.key]
        if true is None:
            true = gain * views.from_picture.along(distortion.e, signed_alpha)
        if read is None:
            read = gain * views.from_file.of(back)
        return Prediction(
            model=observer.name,
            fingerprint=observer.fingerprint,
            noise=str(observer.noise),
            eigenvalue=value,
            d_prime_linear=gain * abs(signed_alpha) * value**0.5,
            d_prime_true=true,
            d_prime_rounded=read,
        )

    def _flags(
        self,
        distortion: Distortion,
        radii: Radii,
        alpha: float,
        true: float,
        clipped: float,
        read: float,
    ) -> tuple[str, ...]:
        """Say what is wrong; rounding and clipping by d′ read back alone."""
        flags = []
        most = self.settings.tolerance
        if abs(read - true) > most * true:
            by_clipping = abs(clipped - true) > CLIP_TOLERANCE * true
            by_rounding = abs(read - clipped) > most * clipped
            flags += ["rounding"] if by_rounding or not by_clipping else []
            flags += ["clipping"] if by_clipping else []
        if radii.validity is not None and alpha > radii.validity:
            flags.append("validity")
        if radii.clip is not None and alpha > radii.clip:
            flags.append("clip_radius")
        if not distortion.is_proven:
            flags.append("unverified")
        return tuple(flags)

    def _fisher(self, observer: Observer) -> Array:
        if observer.key not in self._fishers:
            self._fishers[observer.key] = observer.fisher(_batch(self.shown)).numpy()
        return self._fishers[observer.key]


def _batch(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)[None])


def reference_name(picture: Picture, taken: Sequence[str]) -> str:
    """Return the id of a picture's reference that no other has."""
    name = f"{slug(picture.name)}-reference"
    count = 1
    while name in taken:
        count += 1
        name = f"{slug(picture.name)}-reference.{count}"
    return name
