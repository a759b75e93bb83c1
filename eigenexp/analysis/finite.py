"""How far a distortion may be scaled: true d′ of ±αe, and the radii within which F tells it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from eigenexp.analysis.discriminability import Discriminability
from eigenexp.analysis.units import fraction_correct
from eigenexp.errors import InputError
from eigenexp.operators.calling import Model
from eigenexp.operators.noise import Noise
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Perturbations
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.pictures.picture import Picture
from eigenexp.spectrum import Spectrum

__all__ = ["CLIP_TOLERANCE", "VALIDITY_TOLERANCE", "Amplitude", "PairAmplitude", "amplitude"]

VALIDITY_TOLERANCE = 0.1
"""|d′/(α√λ) − 1| within the validity radius."""
CLIP_TOLERANCE = 0.01
"""Relative change of d′ that clipping makes within the clip radius."""

_DECADES = 2
_STEPS_A_DECADE = 4
_DEEPEST = 1e-12  # of the reach: no picture's precision tells less from nothing
_RESOLUTION = 0.01  # of a radius
_ROUNDINGS = 30.0  # d′ of so many roundings is known to 3 %


@dataclass(frozen=True, eq=False)
class PairAmplitude:
    """One distortion e at finite amplitudes α, in the picture's units (2-norm of αe for ‖e‖ = 1).

    Radii hold for both signs of e. None: undefined, and :attr:`notes` say why. Infinite: not
    reached up to :attr:`reach`, where the change is as large as the picture's whole range.

    Attributes
    ----------
    index, eigenvalue
        Place in the whole spectrum, and λ.
    threshold, known_threshold
        1/√λ, where F predicts d′ = 1, infinite where λ is 0; with its known digits.
    validity_radius
        Largest α below which |d′/(α√λ) − 1| ≤ 10 %.
    ordering_radius
        Largest α up to which every distortion of the top has a larger d′ than every one of the
        bottom at the same α, this one and the other end's; None with one end alone.
    clip_radius
        Largest α up to which clipping x ± αe to the display's range changes d′ by at most 1 %.
    strict_radius
        Largest α at which no value of x ± αe leaves that range: 0 where a pixel is at its edge.
    clipped_pixels
        Values of x ± αe (the sign with more of them) out of range at the clip radius.
    reach
        Largest α looked at.
    curve
        ``(α, d′(+), d′(−))`` at every α looked at with both signs, unclipped, ascending.
    notes
        Why a radius is None.
    """

    index: int
    eigenvalue: float
    threshold: float
    known_threshold: str
    validity_radius: float | None
    ordering_radius: float | None
    clip_radius: float | None
    strict_radius: float | None
    clipped_pixels: int | None
    reach: float
    curve: tuple[tuple[float, float, float], ...]
    notes: tuple[str, ...]
    _d_prime: Callable[[float, bool], float] = field(repr=False)
    _clipped: Callable[[float], int] = field(repr=False)

    def d_linear(self, alpha: float) -> float:
        """Return |α|√λ, d′ as F predicts it."""
        return abs(alpha) / self.threshold

    def d_true(self, alpha: float, *, clip: bool = False) -> float:
        """Return d′ = ‖g(x + αe) − g(x)‖, one forward pass.

        Parameters
        ----------
        alpha
            Below 0 for −e.
        clip
            Whether what is shown is clipped to the display's range.

        Returns
        -------
        float
            NaN where the noise's g is not defined.
        """
        return self._d_prime(float(alpha), clip)

    def alpha_at(self, d_prime: float, *, sign: int = 1, clip: bool = False) -> float | None:
        """Return the smallest α > 0 at which d′ of x + sign·αe reaches a value, to 1 %.

        Parameters
        ----------
        d_prime
            Above 0.
        sign
            1 or −1.
        clip
            Whether what is shown is clipped to the display's range.

        Returns
        -------
        float or None
            None where it is not reached up to :attr:`reach`.
        """
        if not d_prime > 0 or sign not in (1, -1):
            raise InputError(
                f"alpha_at: expected a d′ above 0 and a sign of 1 or -1, got {d_prime}, {sign}"
            )

        def excess(alpha: float) -> float:
            found = self._d_prime(sign * alpha, clip)
            return found - d_prime if math.isfinite(found) else 1.0

        found = first_crossing(excess, _grid(self.reach), _DEEPEST * self.reach)
        return found if found is not None and math.isfinite(found) else None

    def clipped(self, alpha: float) -> int:
        """Return how many values of x + αe are out of the display's range.

        Raises
        ------
        InputError
            When no range is known.
        """
        return self._clipped(float(alpha))

    def row(self) -> dict[str, Any]:
        """Return the numbers as a plain dict; ``inf`` stays ``inf``.

        ``fraction_correct`` is that of 2AFC at the validity radius, by the true d′ of the sign that
        is seen less: how far a psychometric function lies where F predicts it.
        """
        radius = self.validity_radius
        share = None
        if radius is not None:
            at = min(radius, self.reach)
            least = min(self._d_prime(sign * at, False) for sign in (1, -1))
            share = fraction_correct(least) if math.isfinite(least) else None
        return {
            "index": self.index,
            "eigenvalue": self.eigenvalue,
            "threshold": self.threshold,
            "known_threshold": self.known_threshold,
            "validity_radius": self.validity_radius,
            "fraction_correct": share,
            "ordering_radius": self.ordering_radius,
            "clip_radius": self.clip_radius,
            "strict_radius": self.strict_radius,
            "clipped_pixels": self.clipped_pixels,
            "reach": self.reach,
        }


@dataclass(frozen=True, eq=False)
class Amplitude(Sequence[PairAmplitude]):
    """The pairs of a spectrum at finite amplitudes, in its order.

    Attributes
    ----------
    pairs
        One a pair.
    value_range
        ``(black, white)`` that clipping is to; None where none is known.
    num_calls
        Forward passes that finding the radii took.
    """

    pairs: tuple[PairAmplitude, ...]
    value_range: tuple[float, float] | None
    num_calls: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: Any) -> Any:
        return self.pairs[place]

    def __iter__(self) -> Iterator[PairAmplitude]:
        return iter(self.pairs)

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain dict a pair."""
        return [pair.row() for pair in self.pairs]

    def __str__(self) -> str:
        from eigenexp.analysis.amplitude_table import amplitude_lines

        return "\n".join(amplitude_lines(self.as_record()))

    def as_record(self) -> dict[str, Any]:
        """Return everything as plain containers, for a file."""
        return {
            "value_range": None if self.value_range is None else list(self.value_range),
            "num_calls": self.num_calls,
            "validity_tolerance": VALIDITY_TOLERANCE,
            "clip_tolerance": CLIP_TOLERANCE,
            "pairs": [
                {**pair.row(), "notes": list(pair.notes), "curve": [list(p) for p in pair.curve]}
                for pair in self.pairs
            ],
        }


def amplitude(
    model: Model,
    picture: Tensor | Picture,
    spectrum: Spectrum,
    *,
    noise: Noise | None = None,
    perturbations: Perturbations | None = None,
    model_dtype: torch.dtype | None = None,
    value_range: tuple[float, float] | str | None = "auto",
    tolerance: float = VALIDITY_TOLERANCE,
    clip_tolerance: float = CLIP_TOLERANCE,
) -> Amplitude:
    """Return how far each distortion of a spectrum may be scaled.

    d′ is taken at α in equal ratios (4 a decade) up to the α at which the change is as large as
    the picture's range, root mean square, until a radius is passed, and each radius is then found
    to 1 %: some tens of forward passes a pair. What goes out of bounds between two of these α and
    comes back is not seen.

    Parameters
    ----------
    model, picture
        That the spectrum is of; the code with ``perturbations=Latent(…)``.
    spectrum
        Pairs in the picture's values.
    noise, perturbations, model_dtype
        As the spectrum's operator had them. g is that of the noise family.
    value_range
        ``(black, white)`` of a display; see :class:`~eigenexp.analysis.Discriminability`.
    tolerance, clip_tolerance
        Of the validity and the clip radius.

    Raises
    ------
    InputError
        When spectrum, picture, noise or perturbations do not belong together.
    ModelError
        When the model fails, or there is no g for the noise.

    Examples
    --------
    >>> import eigenexp as ee
    >>> picture = ee.load_picture("camera", crop=[120, 220, 16, 16], dtype="float64")
    >>> model = ee.models.Gaussian(std=1.0)
    >>> spectrum = ee.solve(ee.FisherOperator(model, picture.tensor), k=1, which="top")
    >>> ee.amplitude(model, picture, spectrum)[0].validity_radius  # linear
    inf
    """
    for name, value in (("tolerance", tolerance), ("clip_tolerance", clip_tolerance)):
        if not 0 < value < 1:
            raise InputError(f"{name}: expected a number between 0 and 1, got {value}")
    told = {
        "noise": str(noise_or_default(noise)),
        "perturbations": str(perturbations_or_default(perturbations)),
    }
    _check_recorded(spectrum.metadata, told)
    look = Discriminability(
        model,
        picture,
        noise=noise,
        perturbations=perturbations,
        model_dtype=model_dtype,
        value_range=value_range,
    )
    if not len(spectrum):
        raise InputError("spectrum: expected at least one pair, got none")
    if spectrum.num_pixels != look.image.numel():
        raise InputError(
            f"spectrum: expected distortions of {look.image.numel()} values, as the picture has, "
            f"got {spectrum.num_pixels}"
        )
    of_codes = perturbations_or_default(perturbations).split()[0] is not None
    probes = [_Probe(look, spectrum, i, of_codes) for i in range(len(spectrum))]
    found = [probe.radii(tolerance, clip_tolerance) for probe in probes]
    ordering = _ordering(probes, spectrum.order)
    pairs = []
    for probe, pair, radius in zip(probes, found, ordering, strict=True):
        notes = pair.notes
        if radius is None:
            notes = (*notes, "no ordering radius: the other end of the spectrum is not among these")
        pairs.append(replace(pair, ordering_radius=radius, curve=probe.curve(), notes=notes))
    return Amplitude(tuple(pairs), look.value_range, look.num_calls)


def _check_recorded(metadata: Mapping[str, Any], told: Mapping[str, str]) -> None:
    for name, given in told.items():
        recorded = metadata.get(name)
        if recorded is not None and str(recorded) != given:
            raise InputError(
                f"{name}: expected {recorded}, which the spectrum is of, got {given}; pass {name}=…"
            )


class _Probe:
    """d′ along one distortion, each point computed once."""

    def __init__(
        self, look: Discriminability, spectrum: Spectrum, place: int, of_codes: bool
    ) -> None:
        self.look, self.of_codes = look, of_codes
        self.index = int(spectrum.eigenindex[place])
        self.known_threshold = spectrum.known_thresholds[place]
        self.eigenvalue = float(spectrum.eigenvalues[place])
        # A pair whose λ is smaller than its products' rounding predicts nothing.
        noise = torch.finfo(spectrum.eigenvectors.dtype).eps * max(float(spectrum.scale), 0.0)
        self.is_flat = spectrum.is_null[place] or not self.eigenvalue > noise
        self.root = 0.0 if self.is_flat else math.sqrt(self.eigenvalue)
        self.e = spectrum.eigenvectors[place].to(look.image).reshape(look.image.shape)
        x = look.image
        low, high = look.value_range or (float(x.min()), float(x.max()))
        width = high - low if high > low else 1.0
        size = float(torch.linalg.vector_norm(self.e.double()))
        # RMS of αe as large as the picture's range: beyond it no picture is left.
        self.reach = width * math.sqrt(x.numel()) / size if size > 0 else 1.0
        self._known: dict[tuple[float, bool], float] = {}

    def d_prime(self, alpha: float, clip: bool = False) -> float:
        key = (alpha, clip)
        if key not in self._known:
            self._known[key] = self.look.along(self.e, alpha, clip=clip)
        return self._known[key]

    def clipped(self, alpha: float) -> int:
        if self.look.value_range is None or self.of_codes:
            raise InputError(
                "clipped: expected a picture whose black and white are known, got none; pass "
                "value_range=(black, white)"
            )
        black, white = self.look.value_range
        changed = self.look.image.double() + alpha * self.e.double()
        slack = 1e-9 * (white - black)
        return int(((changed < black - slack) | (changed > white + slack)).sum())

    def strict_radius(self) -> float:
        """Largest α at which x ± αe is in range: the smallest room of any value over |eᵢ|."""
        black, white = self.look.value_range or (0.0, 1.0)
        x, size = self.look.image.double(), self.e.double().abs()
        room = torch.minimum(x - black, white - x).clamp(min=0)
        # What rounding has left of a value that is 0 moves nothing out.
        moving = size > torch.finfo(self.e.dtype).eps * size.max()
        return float((room[moving] / size[moving]).min()) if bool(moving.any()) else math.inf

    def curve(self) -> tuple[tuple[float, float, float], ...]:
        seen = sorted(a for a, clip in self._known if a > 0 and not clip)
        return tuple(
            (a, self._known[a, False], self._known[-a, False])
            for a in seen
            if (-a, False) in self._known
        )

    def radii(self, tolerance: float, clip_tolerance: float) -> PairAmplitude:
        notes: list[str] = []
        validity = self._validity(tolerance, notes)
        clip, strict, clipped = self._clipping(clip_tolerance, notes)
        return PairAmplitude(
            index=self.index,
            eigenvalue=self.eigenvalue,
            threshold=1 / self.root if self.root > 0 else math.inf,
            known_threshold=self.known_threshold,
            validity_radius=validity,
            ordering_radius=None,
            clip_radius=clip,
            strict_radius=strict,
            clipped_pixels=clipped,
            reach=self.reach,
            curve=(),
            notes=tuple(notes),
            _d_prime=self.d_prime,
            _clipped=self.clipped,
        )

    def _validity(self, tolerance: float, notes: list[str]) -> float | None:
        if self.is_flat:
            notes.append(
                "no validity radius: λ is 0, or as good as, and so is α√λ at any amplitude"
            )
            return None
        least = _ROUNDINGS * self.look.rounding / self.root

        def excess(alpha: float) -> float:
            return max(
                _off(self.d_prime(sign * alpha) / (alpha * self.root) - 1, tolerance)
                for sign in (1, -1)
            )

        radius = first_crossing(excess, _grid(self.reach), max(least, _DEEPEST * self.reach))
        if radius is None:
            notes.append(
                "no validity radius: d′ leaves α√λ where it is still no larger than rounding of "
                "the response; compute in float64"
            )
        return radius

    def _clipping(
        self, tolerance: float, notes: list[str]
    ) -> tuple[float | None, float | None, int | None]:
        if self.look.value_range is None:
            notes.append("no clip radius: the picture's black and white are not known")
            return None, None, None
        slack = _ROUNDINGS * self.look.rounding

        def excess(alpha: float) -> float:
            worst = -math.inf
            for sign in (1, -1):
                free, shown = (self.d_prime(sign * alpha, clip) for clip in (False, True))
                if not math.isfinite(shown):
                    return 1.0
                if math.isfinite(free):  # where it is not, clipping mends what it changes
                    worst = max(worst, abs(shown - free) - tolerance * free - slack)
                else:
                    return 1.0
            return worst

        radius = first_crossing(excess, _grid(self.reach), _DEEPEST * self.reach)
        if self.of_codes:
            return radius, None, None
        strict = self.strict_radius()
        radius = max(radius or 0.0, strict)
        at = min(radius, self.reach)
        return radius, strict, max(self.clipped(at), self.clipped(-at))


def _grid(reach: float) -> list[float]:
    count = _DECADES * _STEPS_A_DECADE
    return [reach * 10 ** ((i - count) / _STEPS_A_DECADE) for i in range(count + 1)]


def _off(deviation: float, tolerance: float) -> float:
    return abs(deviation) - tolerance if math.isfinite(deviation) else 1.0


def first_crossing(
    excess: Callable[[float], float], grid: Sequence[float], least: float
) -> float | None:
    """Return the largest α below which ``excess`` is at most 0, to 1 %.

    Parameters
    ----------
    excess
        A function of α > 0.
    grid
        Where it is looked at, ascending; infinite is returned where it is never above 0.
    least
        How far below the grid to go where it is above 0 from the first; None is returned where it
        is so down to there.
    """
    before = None
    points = [alpha for alpha in grid if alpha >= least]
    for alpha in points:
        if excess(alpha) > 0:
            break
        before = alpha
    else:
        return math.inf
    ratio = 10 ** (1 / _STEPS_A_DECADE)
    while before is None:
        lower = alpha / ratio
        if lower < least:
            return None
        if excess(lower) <= 0:
            before = lower
        else:
            alpha = lower
    if excess(before) == 0:
        return before
    found = brentq(
        lambda log: excess(math.exp(log)),
        math.log(before),
        math.log(alpha),
        xtol=_RESOLUTION / 2,
        rtol=1e-12,
        maxiter=60,
    )
    return float(math.exp(found))


def _ordering(probes: Sequence[_Probe], order: int) -> list[float | None]:
    """Return up to which α each pair stands on its side of every pair of the other end."""
    top = [probe for probe in probes if probe.index < order / 2]
    bottom = [probe for probe in probes if probe.index >= order / 2]

    def between(high: Sequence[_Probe], low: Sequence[_Probe]) -> float | None:
        if not high or not low:
            return None
        reach = min(probe.reach for probe in (*high, *low))

        slack = _ROUNDINGS * high[0].look.rounding

        def excess(alpha: float) -> float:
            least = min(probe.d_prime(sign * alpha) for probe in high for sign in (1, -1))
            most = max(probe.d_prime(sign * alpha) for probe in low for sign in (1, -1))
            both = math.isfinite(least) and math.isfinite(most)
            return most - least - slack if both else 1.0

        found = first_crossing(excess, _grid(reach), _DEEPEST * reach)
        return 0.0 if found is None else found

    return [between([p], bottom) if p in top else between(top, [p]) for p in probes]
