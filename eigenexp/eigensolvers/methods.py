"""The methods by name."""

from __future__ import annotations

from eigenexp.eigensolvers.base import Eigensolver
from eigenexp.eigensolvers.lanczos import Lanczos
from eigenexp.eigensolvers.power import Power

__all__ = ["METHODS"]

METHODS: dict[str, type[Eigensolver]] = {
    "auto": Lanczos,
    "lanczos": Lanczos,
    "power": Power,
}
