"""From solved pictures to a folder of calibrated stimuli with a passport each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenexp.errors import EigenexpError, InputError
from eigenexp.stimuli.amplitudes import Radii, Wanted, wanted_amplitudes
from eigenexp.stimuli.bench import Bench, put, reference_name
from eigenexp.stimuli.journal import Journal, open_folder
from eigenexp.stimuli.levels import Light
from eigenexp.stimuli.manifest import Display, Manifest, Passport, write_manifest
from eigenexp.stimuli.settings import Settings
from eigenexp.stimuli.sources import Distortion, Observer, Source, distortions
from eigenexp.storage.hashing import tensor_sha256

__all__ = ["LeftOut", "Made", "make"]


@dataclass(frozen=True)
class LeftOut:
    """What was asked for and is not there.

    Attributes
    ----------
    id
        Of the stimulus, the distortion or the picture.
    why
        In words.
    """

    id: str
    why: str

    def __str__(self) -> str:
        return f"{self.id}: {self.why}"


@dataclass(frozen=True)
class Made:
    """What an export came to.

    Attributes
    ----------
    folder
        With ``manifest.json``.
    manifest
        What is in it.
    left_out
        What is not.
    num_written, num_kept
        Files of stimuli written now, and found whole from before.
    packages
        Files to start an experiment with, or to read the stimuli from, by format.
    """

    folder: Path
    manifest: Manifest
    left_out: tuple[LeftOut, ...]
    num_written: int
    num_kept: int
    packages: dict[str, Path]


def make(
    sources: Source | Sequence[Source],
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    progress: bool = True,
    **options: Any,
) -> Made:
    """Write calibrated stimuli, the passport of each, and packages that run them.

    For each distortion e and sign, amplitudes α are found at which d′ of x ± αe is what was asked
    for; the picture is rounded, written and read back. What is not what it should be is flagged and
    left out, unless ``allow`` names the flag (:data:`~eigenexp.stimuli.FLAGS`). An export that was
    killed goes on when it is called again with the same sources and settings, and writes no file
    that is whole.

    Parameters
    ----------
    sources
        Solved pictures, with the models that they were solved for. Several models at one picture
        each predict every stimulus of it.
    folder
        Where to; empty, new, or of this export.
    settings
        Or ``options`` one by one, as :class:`~eigenexp.stimuli.Settings` has them.
    progress
        Whether to show a bar on a terminal.

    Raises
    ------
    InputError
        When settings, sources or folder cannot be used, or nothing is left to write.

    Examples
    --------
    >>> source = ee.stimuli.Source(spectrum, picture, model)
    >>> made = ee.stimuli.make(source, "stimuli", levels=[1, 2], gain=2, format=["jspsych"])
    >>> [one.level for one in made.manifest.stimuli], made.packages["jspsych"].name
    ([1.0, 2.0], 'experiment.html')
    """
    if settings is None:
        settings = Settings(**options)
    elif options:
        raise InputError(f"settings: expected no options beside them, got {sorted(options)}")
    given = [sources] if isinstance(sources, Source) else list(sources)
    if not given:
        raise InputError("sources: expected at least one solved picture, got none")
    left_out: list[LeftOut] = []
    usable = [source for source in given if _is_in_range(source, left_out)]
    if not usable:
        raise InputError(_nothing(left_out))
    observers = [Observer(s.model, s.noise, s.name, s.picture.tensor) for s in usable]
    target = Path(folder)
    with open_folder(target, _key(usable, observers, settings)) as journal:
        export = _Export(target, settings, usable, observers, journal, left_out)
        export.run(progress)
        manifest = export.manifest()
        if not manifest.stimuli:
            raise InputError(_nothing(left_out))
        from eigenexp.stimuli.packages import write_packages

        packages = write_packages(manifest, target, settings)
        write_manifest(manifest, target)
    return Made(target, manifest, tuple(left_out), export.num_written, export.num_kept, packages)


def _is_in_range(source: Source, left_out: list[LeftOut]) -> bool:
    black, white = (float(end) for end in source.picture.record["value_range"])
    values = source.picture.tensor
    low, high = float(values.min()), float(values.max())
    slack = 1e-6 * (white - black)
    if low >= black - slack and high <= white + slack:
        return True
    why = (
        f"expected a picture in the display's range [{black:g}, {white:g}], got values from "
        f"{low:.4g} to {high:.4g}; load it with value_range=(black, white) of your display"
    )
    left_out.append(LeftOut(f"{source.name} at {source.picture.name}", why))
    return False


def _nothing(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "expected at least one stimulus to write, got none: no pair was asked for"
    return (
        f"expected at least one stimulus to write, got none of {len(left_out)}; the first: "
        f"{left_out[0]}"
    )


def _key(sources: Sequence[Source], observers: Sequence[Observer], settings: Settings) -> str:
    """Return the hash of everything that decides what the stimuli are."""
    asked = dataclasses.asdict(settings)
    for name in ("format", "zoom", "duration"):  # of the packages, which are made from the stimuli
        del asked[name]
    facts = [
        {
            "picture": source.picture.record["sha256"],
            "name": [source.picture.name, source.name, source.run_id],
            "observer": list(observer.key),
            "perturbations": str(source.perturbations),
            "pairs": tensor_sha256(source.spectrum.eigenvectors),
            "directions": [tensor_sha256(one) for one in source.directions],
            "values": tensor_sha256(source.spectrum.eigenvalues),
            "status": [status.value for status in source.spectrum.status],
        }
        for source, observer in zip(sources, observers, strict=True)
    ]
    text = json.dumps([asked, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Export:
    """One export on its way."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        sources: Sequence[Source],
        observers: Sequence[Observer],
        journal: Journal,
        left_out: list[LeftOut],
    ) -> None:
        self.folder, self.settings, self.journal = folder, settings, journal
        self.left_out, self._sources = left_out, sources
        self.num_written = self.num_kept = 0
        self.display = _display(sources, settings)
        self._light = Light(self.display)
        self._observers = dict(zip(map(id, sources), observers, strict=True))
        self._wanted: list[Distortion] = []
        for distortion in distortions(sources, settings, observers):
            if distortion.is_proven or "unverified" in settings.allow:
                self._wanted.append(distortion)
                continue
            why = (
                f"expected a converged pair, got one that is {distortion.status}; solve it further "
                "(eigenexp resume), or give allow=unverified"
            )
            left_out.append(LeftOut(distortion.name, why))
        self._benches: dict[str, Bench] = {}
        self._made: list[Passport] = []

    def run(self, progress: bool) -> None:
        """Make what is not there yet."""
        from tqdm import tqdm

        total = len(self._wanted) * len(self.settings.chosen_signs) * self.settings.count
        # None: on a terminal alone.
        with tqdm(total=total, unit="stimulus", disable=None if progress else True) as bar:
            for distortion in self._wanted:
                for sign in self.settings.chosen_signs:
                    for entry in self._along(distortion, sign):
                        if isinstance(entry, Passport):
                            self._made.append(entry)
                        else:
                            self.left_out.append(entry)
                        bar.update()

    def manifest(self) -> Manifest:
        """Return what there is."""
        used = {one.reference for one in self._made}
        references = [bench.reference for bench in self._benches.values()]
        return Manifest(
            task=self.settings.task,
            alternatives=self.settings.intervals,
            display=self.display,
            references=tuple(one for one in references if one.id in used),
            stimuli=tuple(self._made),
        )

    def _bench(self, distortion: Distortion) -> Bench:
        picture = distortion.source.picture
        key = str(picture.record["sha256"])
        if key not in self._benches:
            shape = picture.tensor.shape
            observers = {
                self._observers[id(source)].key: self._observers[id(source)]
                for source in self._sources
                if source.picture.tensor.shape == shape
            }
            taken = [bench.reference.id for bench in self._benches.values()]
            bench = Bench(
                self.folder,
                picture,
                self._light,
                list(observers.values()),
                self.settings,
                reference_name(picture, taken),
            )
            bench.measure([one for one in self._wanted
                           if one.source.picture.record["sha256"] == key])  # fmt: skip
            self._benches[key] = bench
        return self._benches[key]

    def _along(self, distortion: Distortion, sign: int) -> list[Passport | LeftOut]:
        """Return what became of each stimulus of a distortion with a sign."""
        bench = self._bench(distortion)
        mark = "p" if sign > 0 else "m"
        names = [f"{distortion.name}-{mark}{k + 1:02d}" for k in range(self.settings.count)]
        found: dict[str, Passport | LeftOut] = {}
        for name in names:
            entry = self.journal.entries.get(name)
            if isinstance(entry, str):
                found[name] = LeftOut(name, entry)
            elif entry is not None and _is_whole(self.folder, entry):
                found[name] = entry
                self.num_kept += 1
        if len(found) == len(names):
            return [found[name] for name in names]
        observer = self._observers[id(distortion.source)]
        radii = bench.radii(distortion, observer)
        wanted = wanted_amplitudes(
            lambda alpha: bench.d_prime(observer, distortion, sign * alpha),
            self.settings.gain * distortion.root,
            radii,
            self.settings,
        )
        for name, one in zip(names, wanted, strict=True):
            if name not in found:
                found[name] = self._one(name, distortion, sign, one, bench, radii)
        return [found[name] for name in names]

    def _one(
        self,
        name: str,
        distortion: Distortion,
        sign: int,
        wanted: Wanted,
        bench: Bench,
        radii: Radii,
    ) -> Passport | LeftOut:
        observer = self._observers[id(distortion.source)]
        asked = "" if wanted.level is None else f"d′ = {wanted.level:g}: "
        if wanted.alpha is None:
            return self._leave(name, asked + wanted.problem)
        try:
            passport, content = bench.stimulus(
                name, distortion, observer, radii, sign * wanted.alpha, wanted.level
            )
        except EigenexpError as error:
            return self._leave(name, f"{asked}{error}")
        flags = [flag for flag in passport.flags if flag not in self.settings.allow]
        if flags:
            return self._leave(name, asked + _said(flags, passport, radii))
        self.num_written += put(self.folder / passport.file, content)
        # What the passport says is what the file on the disk holds.
        read = bench.read_back(observer, passport.file)
        passport = dataclasses.replace(passport, d_prime_rounded=read)
        self.journal.add(name, passport)
        return passport

    def _leave(self, name: str, why: str) -> LeftOut:
        self.journal.add(name, why)
        return LeftOut(name, why)


def _said(flags: Sequence[str], passport: Passport, radii: Radii) -> str:
    said = {
        "rounding": (
            f"rounding leaves d′ = {passport.d_prime_rounded:.3g} of {passport.d_prime_true:.3g}; "
            "use bits=16, rounding=model, or a larger amplitude"
        ),
        "clipping": (
            f"clipping {passport.clipped_pixels} values leaves d′ = "
            f"{passport.d_prime_rounded:.3g} of {passport.d_prime_true:.3g}"
        ),
        "validity": (
            f"α = {passport.alpha:.3g} is beyond the validity radius {radii.validity or 0:.3g}, "
            "where d′ is no longer α√λ to 10 %; ask for a smaller d′, give gain=…, or solve with "
            "less noise (noise.std=…)"
        ),
        "clip_radius": (
            f"α = {passport.alpha:.3g} is beyond the clip radius {radii.clip or 0:.3g}, where "
            "clipping changes d′ by more than 1 %"
        ),
        "unverified": "the pair is not certified",
    }
    allow = ",".join(flags)
    return f"{'; '.join(said[flag] for flag in flags)} (written with allow={allow})"


def _is_whole(folder: Path, passport: Passport) -> bool:
    path = folder / passport.file
    if not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == passport.file_sha256


def _display(sources: Sequence[Source], settings: Settings) -> Display:
    ranges = {tuple(float(v) for v in s.picture.record["value_range"]) for s in sources}
    if len(ranges) > 1:
        raise InputError(
            f"sources: expected pictures of one value range, got {sorted(ranges)}; load them with "
            "the same value_range=(black, white)"
        )
    black, white = ranges.pop()
    return Display(
        gamma=settings.display,
        linear_light=settings.linear_light,
        bits=settings.bits,
        rounding=settings.rounding,
        black=black,
        white=white,
        pixels_per_degree=settings.pixels_per_degree,
    )
