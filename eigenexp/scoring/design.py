"""What an experiment shows: stimuli by distortion and amplitude, and what models say of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eigenexp.errors import InputError
from eigenexp.stimuli.manifest import Manifest, Passport, read_manifest

__all__ = ["Contrast", "Design", "Prediction", "read_design"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What one model, with its noise, says of every stimulus of a design.

    Attributes
    ----------
    model
        Its name.
    d_primes
        ``(S,)`` d′ of each stimulus, at the model's own noise; NaN where nobody said.
    eigenvalues
        uᵀFu of each distortion, by its name.
    """

    model: str
    d_primes: Array
    eigenvalues: Mapping[str, float]


@dataclass(frozen=True)
class Contrast:
    """Two distortions of one picture whose thresholds are compared.

    Attributes
    ----------
    upper, lower
        Names of the distortions: D = ln T(upper) − ln T(lower). Of a model's pair the bottom and
        the top; of principal distortions, those of an odd and of the even place before it.
    label
        Of both, in words.
    model
        Whose pair they are.
    """

    upper: str
    lower: str
    label: str
    model: str


@dataclass(frozen=True)
class Design:
    """Stimuli of an experiment, as far as a score needs to know.

    Attributes
    ----------
    manifest
        Its id; empty where there is none.
    task, alternatives
        As in :func:`eigenexp.analysis.units.fraction_correct`.
    stimuli
        ``S`` ids.
    distortions
        ``S`` names: stimuli of one differ by amplitude and sign alone.
    amplitudes
        ``(S,)`` α > 0 of the unit distortion.
    predictions
        By model.
    contrasts
        Pairs whose D is told.
    """

    manifest: str
    task: str
    alternatives: int
    stimuli: tuple[str, ...]
    distortions: tuple[str, ...]
    amplitudes: Array
    predictions: tuple[Prediction, ...] = ()
    contrasts: tuple[Contrast, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "amplitudes", np.asarray(self.amplitudes, dtype=np.float64))
        if not len(self.stimuli) == len(self.distortions) == len(self.amplitudes):
            raise InputError(
                "design: expected a distortion and an amplitude a stimulus, got "
                f"{len(self.distortions)} and {len(self.amplitudes)} for {len(self.stimuli)}"
            )
        if not self.stimuli:
            raise InputError("design: expected at least one stimulus, got none")

    @property
    def names(self) -> tuple[str, ...]:
        """The distortions, each once, in order."""
        return tuple(dict.fromkeys(self.distortions))

    def places(self, distortion: str) -> NDArray[np.int64]:
        """Return where the stimuli of a distortion stand."""
        return np.flatnonzero(np.asarray(self.distortions) == distortion)

    def with_predictions(self, predictions: Sequence[Prediction]) -> Design:
        """Return it with these models instead of its own."""
        return replace(self, predictions=tuple(predictions))

    def of_models(self, names: Sequence[str]) -> tuple[Prediction, ...]:
        """Return the predictions of these models, in this order.

        Raises
        ------
        InputError
            When one is not predicted.
        """
        known = {one.model: one for one in self.predictions}
        for name in names:
            if name not in known:
                there = ", ".join(known) or "none"
                raise InputError(f"model: expected one that the stimuli know, got {name!r}; "
                                 f"they know {there}")  # fmt: skip
        return tuple(known[name] for name in names)


def read_design(folder: str | os.PathLike[str] | Manifest) -> Design:
    """Return the design of a folder of stimuli, from its manifest.

    Raises
    ------
    CheckpointError
        When the manifest is missing or damaged.
    """
    manifest = folder if isinstance(folder, Manifest) else read_manifest(folder)
    stimuli = manifest.stimuli
    return Design(
        manifest=manifest.id,
        task=manifest.task,
        alternatives=manifest.alternatives,
        stimuli=tuple(one.id for one in stimuli),
        distortions=tuple(one.distortion for one in stimuli),
        amplitudes=np.array([one.alpha for one in stimuli]),
        predictions=_predictions(stimuli),
        contrasts=_contrasts(stimuli),
    )


def _predictions(stimuli: Sequence[Passport]) -> tuple[Prediction, ...]:
    """Return what each model says; models of one name are told apart by noise and number."""
    kinds = dict.fromkeys(
        (p.model, p.noise, p.fingerprint) for one in stimuli for p in one.predictions
    )
    names: dict[str, tuple[str, str, str]] = {}
    for kind in kinds:
        model, noise, _ = kind
        alike = sum(other[0] == model for other in kinds)
        name = model if alike == 1 else f"{model} {noise}"
        while name in names:
            name += "′"
        names[name] = kind
    found = []
    for name, kind in names.items():
        d_primes = np.full(len(stimuli), np.nan)
        eigenvalues: dict[str, float] = {}
        for i, one in enumerate(stimuli):
            for p in one.predictions:
                if (p.model, p.noise, p.fingerprint) == kind:
                    # The observer's gain is free here: the model's own noise again.
                    d_primes[i] = p.d_prime_rounded / one.gain
                    eigenvalues[one.distortion] = p.eigenvalue
        found.append(Prediction(name, d_primes, eigenvalues))
    return tuple(found)


def _contrasts(stimuli: Sequence[Passport]) -> tuple[Contrast, ...]:
    groups: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    said: dict[tuple[str, ...], tuple[str, str]] = {}
    for one in stimuli:
        key: tuple[str, ...] = (
            one.picture_sha256,
            one.fingerprint,
            one.noise,
            one.perturbations,
            one.run_id,
        )
        groups.setdefault(key, {})[one.pair, one.index] = one.distortion
        said[key] = (one.model, one.picture)
    found = []
    for key, pairs in groups.items():
        model, picture = said[key]
        tops = sorted(index for pair, index in pairs if pair == "top")
        bottoms = sorted(index for pair, index in pairs if pair == "bottom")
        if tops and bottoms:
            found.append(Contrast(pairs["bottom", bottoms[-1]], pairs["top", tops[0]],
                                  f"{model} at {picture}, bottom against top", model))  # fmt: skip
        principal = sorted(index for pair, index in pairs if pair == "principal")
        for first, second in zip(principal[::2], principal[1::2], strict=False):
            label = f"principal {first} and {second} at {picture}"
            found.append(
                Contrast(pairs["principal", second], pairs["principal", first], label, model)
            )
    return tuple(found)
