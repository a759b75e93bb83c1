"""What is measured beside the pairs: units, finite amplitudes, the rest of the spectrum."""

from eigenexp.analysis.card import SpectrumCard, spectrum_card
from eigenexp.analysis.discriminability import Discriminability
from eigenexp.analysis.estimates import Estimate
from eigenexp.analysis.finite import Amplitude, PairAmplitude, amplitude
from eigenexp.analysis.training import sensitivity

__all__ = [
    "Amplitude",
    "Discriminability",
    "Estimate",
    "PairAmplitude",
    "SpectrumCard",
    "amplitude",
    "sensitivity",
    "spectrum_card",
]
