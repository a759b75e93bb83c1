"""What is measured beside the pairs: units, finite amplitudes."""

from eigenexp.analysis.discriminability import Discriminability
from eigenexp.analysis.finite import Amplitude, PairAmplitude, amplitude

__all__ = ["Amplitude", "Discriminability", "PairAmplitude", "amplitude"]
