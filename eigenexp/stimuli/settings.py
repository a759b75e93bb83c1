"""What is asked of an export: one typed object, from Python or from ``key=value`` words."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eigenexp.analysis.units import TASKS
from eigenexp.errors import ConfigError, InputError
from eigenexp.stimuli.levels import check_gamma
from eigenexp.stimuli.rounding import ROUNDINGS

__all__ = ["DEFAULT_LEVELS", "FLAGS", "FORMATS", "Settings", "parse_settings"]

FORMATS = ("psychopy", "jspsych", "matlab", "raw")
FLAGS = ("rounding", "clipping", "validity", "clip_radius", "unverified")
"""What can be wrong with a stimulus; each is left out unless ``allow`` names its flag."""
DEFAULT_LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
SIGNS = {"+": (1,), "-": (-1,), "both": (1, -1)}


@dataclass(frozen=True)
class Settings:
    """Options of :func:`eigenexp.stimuli.make`.

    Parameters
    ----------
    levels
        d′ to be reached, neither clipped nor rounded; ``(0.25, 0.5, 1, 2, 4)`` where nothing else
        is asked for.
    span
        Instead: ``(lowest d′, highest d′, how many)`` in equal ratios, cut to what validity and
        clip radius allow.
    amplitudes
        Instead: α themselves, in the picture's units; for distortions that a model is blind to.
    pairs
        ``("all",)``; or of ``"top"``, ``"bottom"`` and places in the whole spectrum (``"0"``,
        ``"-1"``); or ``("none",)``, where directions or controls alone are wanted.
    signs
        ``"+"``: x + αe; ``"-"``: x − αe; ``"both"``. The sign of e is the canonical one.
    controls
        Random directions of unit norm beside the pairs, a picture.
    task, alternatives
        For the share of correct answers; m of ``"mafc"``.
    display
        ``"srgb"`` or an exponent.
    linear_light
        Whether the picture's values are light: files are then encoded by the display's gamma.
    bits
        8 or 16.
    rounding
        ``"plain"``; ``"dithered"``; ``"model"``: the error that the model sees least.
    pixels_per_degree
        At the intended distance; recorded.
    gain
        By which every d′ is multiplied: an observer this many times as good as the model's noise.
    allow
        Of :data:`FLAGS`: stimuli with these flags are written, not left out.
    format
        Of :data:`FORMATS`.
    tolerance
        |d′ read back / d′ − 1| up to which rounding and clipping do not spoil a stimulus.
    seed
        Of dither and control directions.
    zoom
        Screen pixels a picture pixel in the packages that run; 0 chooses.
    duration
        Seconds a picture is shown in them.
    """

    levels: tuple[float, ...] | None = None
    span: tuple[float, ...] | None = None
    amplitudes: tuple[float, ...] | None = None
    pairs: tuple[str, ...] = ("all",)
    signs: str = "+"
    controls: int = 0
    task: str = "2afc"
    alternatives: int = 3
    display: str = "srgb"
    linear_light: bool = False
    bits: int = 8
    rounding: str = "plain"
    pixels_per_degree: float | None = None
    gain: float = 1.0
    allow: tuple[str, ...] = ()
    format: tuple[str, ...] = ()
    tolerance: float = 0.1
    seed: int = 0
    zoom: int = 0
    duration: float = 0.5

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name in ("levels", "span", "amplitudes"):
            given = getattr(self, name)
            if given is not None:
                set_(self, name, _numbers(name, given))
        for name in ("pairs", "allow", "format"):
            given = getattr(self, name)
            words = (given,) if isinstance(given, str | int) else tuple(given)
            set_(self, name, tuple(str(word) for word in words))
        asked = [n for n in ("levels", "span", "amplitudes") if getattr(self, n) is not None]
        if len(asked) > 1:
            raise InputError(
                f"expected one of levels, span and amplitudes, got {' and '.join(asked)}"
            )
        if not asked:
            set_(self, "levels", DEFAULT_LEVELS)
        self._check_span()
        set_(self, "display", check_gamma(self.display))
        _among("task", self.task, TASKS)
        _among("signs", self.signs, tuple(SIGNS))
        _among("rounding", self.rounding, ROUNDINGS)
        for word in self.allow:
            _among("allow", word, FLAGS)
        for word in self.format:
            _among("format", word, FORMATS)
        if "none" in self.pairs and len(self.pairs) > 1:
            raise InputError("pairs: expected none alone, got more beside it")
        for word in self.pairs:
            if word not in ("all", "none", "top", "bottom") and not _is_whole(word):
                raise InputError(f"pairs: expected all, none, top, bottom or places, got {word!r}")
        if self.bits not in (8, 16):
            raise InputError(f"bits: expected 8 or 16, got {self.bits}")
        if self.bits == 16 and "jspsych" in self.format:
            raise InputError(
                "bits: expected 8 with format=jspsych, as browsers show 8 bits a colour, got 16; "
                "use rounding=model or dithered, or another format"
            )
        for name in ("gain", "duration", "tolerance"):
            _above_zero(name, getattr(self, name))
        if self.pixels_per_degree is not None:
            _above_zero("pixels_per_degree", self.pixels_per_degree)
        for name, least in (("controls", 0), ("zoom", 0), ("alternatives", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def _check_span(self) -> None:
        if self.span is None:
            return
        ok = len(self.span) == 3 and self.span[0] < self.span[1]
        if not ok or self.span[2] < 2 or self.span[2] != int(self.span[2]):
            raise InputError(
                "span: expected the lowest d′, a higher one, and how many from 2 on, got "
                f"{','.join(f'{value:g}' for value in self.span)}"
            )

    @property
    def intervals(self) -> int:
        """Pictures shown in a trial, one of them changed."""
        return {"2afc": 2, "oddity": 3}.get(self.task, self.alternatives)

    @property
    def chosen_signs(self) -> tuple[int, ...]:
        """1 for +, -1 for −."""
        return SIGNS[self.signs]

    @property
    def count(self) -> int:
        """Stimuli asked for, a distortion and sign."""
        if self.span is not None:
            return int(self.span[2])
        return len(self.levels or self.amplitudes or ())


def parse_settings(words: Sequence[str]) -> Settings:
    """Return settings from ``key=value`` words; lists by commas.

    Raises
    ------
    ConfigError
        Naming the word and what was expected.
    """
    kinds = typing.get_type_hints(Settings)
    given: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in kinds:
            close = difflib.get_close_matches(key, kinds, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"{key}: no such setting{hint}; expected one of {', '.join(kinds)}")
        given[key] = _parsed(kinds[key], key, text.strip())
    try:
        return Settings(**given)
    except InputError as error:
        raise ConfigError(str(error)) from error


def _parsed(kind: Any, key: str, text: str) -> Any:
    inner = [one for one in typing.get_args(kind) if one is not type(None)]
    if not inner:
        return _one(kind, key, text)
    if type(None) in typing.get_args(kind) and text in ("null", "none"):
        return None
    if typing.get_origin(kind) is not tuple:
        return _parsed(inner[0], key, text)
    parts = [part.strip() for part in text.strip("[]()").split(",") if part.strip()]
    return tuple(_one(inner[0], key, part) for part in parts)


def _one(kind: Any, key: str, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}: expected true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{key}: expected {_WORDS[kind]}, got {text!r}") from None


_WORDS = {int: "a whole number", float: "a number", str: "a word"}


def as_plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain containers."""
    return dataclasses.asdict(settings)


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in ([given] if _is_number(given) else given))
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected numbers, got {given!r}") from None
    if not values:
        raise InputError(f"{name}: expected at least one number, got none")
    for value in values:
        _above_zero(name, value)
    if name != "span":
        if len(set(values)) < len(values):
            raise InputError(f"{name}: expected different numbers, got one twice")
        values = tuple(sorted(values))
    return values


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float)


def _is_whole(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _above_zero(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}: expected a finite number above 0, got {value}")


def _among(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
