"""The result of a solve: eigenpairs of the Fisher information, each with its certificate."""

from __future__ import annotations

import enum
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from eigenexp.console import at_least, known_digits
from eigenexp.errors import CheckpointError, InputError
from eigenexp.storage.atomic import write_atomic
from eigenexp.storage.regular import file_fault

__all__ = ["SPECTRUM_FILE", "PairStatus", "Spectrum", "StopReason", "with_canonical_signs"]

SPECTRUM_FILE = "spectrum.safetensors"
"""Name of the file of pairs in any folder of results."""

SCHEMA_VERSION = 1


class StopReason(enum.StrEnum):
    """Why a solver stopped; ``message`` says it in words and what to try next."""

    RUNNING = "running"
    CONVERGED = "converged"
    UNVERIFIED = "unverified"
    MAX_PRODUCTS = "max_products"
    FLOOR = "floor"
    STAGNATED = "stagnated"
    BREAKDOWN = "breakdown"

    @property
    def message(self) -> str:
        """One sentence: what happened, and what to do where something can be done."""
        return _MESSAGES[self]

    def message_in(self, dtype: torch.dtype) -> str:
        """Return :attr:`message` for a solve in ``dtype``: with advice that helps there."""
        if self is not StopReason.FLOOR:
            return self.message
        if dtype == torch.float64:
            return (
                "the residuals rest above tol at the rounding floor of the products; raise tol, or "
                "let the model itself compute in float64 where it does not"
            )
        return (
            "the residuals rest above tol at the rounding floor of the products; solve in float64 "
            "or raise tol"
        )


_MESSAGES = {
    StopReason.RUNNING: "not finished: the values are the best so far; go on to let them converge",
    StopReason.CONVERGED: (
        "every wanted pair is converged and verified: no pair was found beyond them"
    ),
    StopReason.UNVERIFIED: (
        "every residual is at most tol, but a pair beyond may have been missed: the notes say what "
        "was searched; set miss_chance, or try method='auto' or 'exact'"
    ),
    StopReason.MAX_PRODUCTS: (
        "the budget of products is spent before every pair converged; raise max_products or tol, "
        "or resume"
    ),
    StopReason.FLOOR: (
        "the residuals rest above tol at the rounding floor of the products; raise tol, or compute "
        "them in a higher precision where there is one"
    ),
    StopReason.STAGNATED: (
        "the residuals stopped falling above tol; try method='auto', a larger basis or a larger tol"
    ),
    StopReason.BREAKDOWN: (
        "the search space cannot be extended: every direction left is numerically in it; the "
        "pairs are the best this operator allows"
    ),
}


class PairStatus(enum.StrEnum):
    """What is known about one eigenpair."""

    CONVERGED = "converged"
    """Residual at most ``tol * λmax`` from a real product, and verified to be extremal."""
    UNVERIFIED = "unverified"
    """Residual at most ``tol * λmax``, but a pair beyond it may have been missed."""
    UNCONVERGED = "unconverged"
    """Residual above ``tol * λmax``."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenpairs of a Fisher information matrix F = JᵀJ, in decreasing order.

    Attributes
    ----------
    eigenvalues
        ``(k,)``, decreasing; measured as ‖Jv‖² where the response was at hand.
    eigenvectors
        ``(k, *image_shape)``, unit 2-norm each, with the sign of :func:`with_canonical_signs`;
        ``(k, n)`` from a bare solver.
    eigenindex
        ``(k,)`` int64: place of each pair in the whole spectrum, 0 the largest, n − 1 the smallest.
    residuals
        ``(k,)``: ‖Fv − λv‖, absolute. Divide by ``scale`` for the relative one.
    error_bounds
        ``(k,)``. For a ``converged`` pair the eigenvalue *of its index* lies within this distance,
        but for the chance ``miss_chance``. For any other pair nothing is proved about its index,
        and *some* eigenvalue of F lies within this distance: the residual, or for the smallest
        pair of all its value, as 0 ≤ λmin ≤ θ. What holds for the index of any pair is the one
        side that needs no search: a value at the top is at most the eigenvalue, one at the bottom
        at least. Rounding is included.
    status
        One :class:`PairStatus` a pair.
    stop_reason
        Why the solve stopped.
    scale
        The estimate of λmax against which ``tol`` was measured.
    tol
        The tolerance asked for: a pair may converge when its residual is at most ``tol * scale``.
    num_products
        Products F·v used, verification included.
    num_verification_products
        Those of them spent only on the proof that the pairs are the extremal ones.
    null_space_dimension
        Known lower bound of the dimension of F's null space; 0 when none is known.
    method
        The solver's name.
    notes
        Sentences about choices made on the way (``auto``), or doubts.
    metadata
        Plain, JSON-ready facts about where this came from.
    miss_chance
        The chance, over both ends and all attempts, that a pair beyond the converged ones was
        missed: 0 where that is proved without any, None where no such claim is made.
    certificate
        The rule the certificate was made by: ``"frozen"`` (``docs/certificate.md``), ``"exact"``
        for a dense solve, or ``"present"``, the rule of versions before 0.1.0's release, which
        followed the present wanted vectors and could miss pairs; empty where none was made.
    dimension
        Of the perturbations considered, the order n of the problem, where these are not all of the
        picture's. Vectors are then of unit norm in the coordinates that these say, which is the
        2-norm of the picture for subspaces alone.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    eigenindex: Tensor
    residuals: Tensor
    error_bounds: Tensor
    status: tuple[PairStatus, ...]
    stop_reason: StopReason
    scale: float
    tol: float
    num_products: int
    num_verification_products: int = 0
    null_space_dimension: int = 0
    method: str = ""
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    miss_chance: float | None = None
    certificate: str = ""
    dimension: int | None = None

    def __post_init__(self) -> None:
        k = len(self.eigenvalues)
        lengths = {
            "eigenvectors": len(self.eigenvectors),
            "eigenindex": len(self.eigenindex),
            "residuals": len(self.residuals),
            "error_bounds": len(self.error_bounds),
            "status": len(self.status),
        }
        wrong = {name: length for name, length in lengths.items() if length != k}
        if wrong:
            raise InputError(f"expected {k} entries in each field, one an eigenvalue; got {wrong}")
        object.__setattr__(self, "eigenvectors", with_canonical_signs(self.eigenvectors))

    def times(self, factor: float) -> Spectrum:
        """Return the spectrum of ``factor`` · F, the same vectors with all else in proportion."""
        return replace(
            self,
            eigenvalues=self.eigenvalues * factor,
            residuals=self.residuals * factor,
            error_bounds=self.error_bounds * factor,
            scale=self.scale * factor,
        )

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __getitem__(self, which: int | slice) -> Self:
        """Return the spectrum of one pair, or of a slice of them, by place in this one."""
        chosen = slice(which, which + 1 or None) if isinstance(which, int) else which
        if isinstance(which, int) and not -len(self) <= which < len(self):
            raise IndexError(f"spectrum: expected a place in {len(self)} pairs, got {which}")
        tensors = {name: getattr(self, name)[chosen] for name in _TENSORS}
        return replace(self, **tensors, status=self.status[chosen])

    def distortion(self, index: int) -> Tensor:
        """Return one pair's eigenvector, a picture of unit 2-norm ``(C, H, W)``.

        Parameters
        ----------
        index
            Its place in the whole spectrum, as in ``eigenindex``: 0 the largest; from the other
            end, -1 the smallest.

        Raises
        ------
        InputError
            When the pair is not among these.
        """
        place = index if index >= 0 else self.order + index
        found = (self.eigenindex == place).nonzero().flatten().tolist()
        if not found:
            raise InputError(
                f"index: expected one of {self.eigenindex.tolist()}, places in the whole spectrum, "
                f"got {index}"
            )
        return self.eigenvectors[found[0]]

    def to(self, device: torch.device | str) -> Self:
        """Return the same spectrum with its tensors on ``device``."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    @property
    def converged(self) -> Tensor:
        """``(k,)`` bool: which pairs are converged *and* verified to be the extremal ones."""
        return torch.tensor([s is PairStatus.CONVERGED for s in self.status], dtype=torch.bool)

    @property
    def relative_residuals(self) -> Tensor:
        """``(k,)``: ‖Fv − λv‖ / λmax, the quantity compared with ``tol``."""
        return self.residuals / self.scale if self.scale > 0 else self.residuals

    @property
    def stop_message(self) -> str:
        """Why the solve stopped, in words, and what to try next in this precision."""
        return self.stop_reason.message_in(self.eigenvectors.dtype)

    @property
    def num_pixels(self) -> int:
        """Number of picture values."""
        return self.eigenvectors[0].numel() if len(self) else 0

    @property
    def order(self) -> int:
        """Order n of the problem: the picture values, or the dimension of what is considered."""
        return self.num_pixels if self.dimension is None else self.dimension

    def reshape(self, image_shape: Sequence[int]) -> Self:
        """Return the same spectrum with eigenvectors shaped ``(k, *image_shape)``."""
        return replace(self, eigenvectors=self.eigenvectors.reshape(len(self), *image_shape))

    def with_metadata(self, metadata: Mapping[str, Any]) -> Self:
        """Return the same spectrum with ``metadata`` added (the new value wins)."""
        return replace(self, metadata={**self.metadata, **metadata})

    def with_notes(self, *notes: str) -> Self:
        """Return the same spectrum with those of ``notes`` added that are not empty."""
        return replace(self, notes=(*self.notes, *(note for note in notes if note)))

    @property
    def is_null(self) -> tuple[bool, ...]:
        """Which pairs lie in the known null space of F: their eigenvalues are 0, whatever θ is."""
        first = self.order - self.null_space_dimension
        return tuple(index >= first for index in self.eigenindex.tolist())

    @property
    def known(self) -> tuple[str, ...]:
        """Each eigenvalue with the digits its error bound supports.

        ``1.0293(2)``, ``≤ 2e-06``, ``0 (null space)``; see :func:`eigenexp.console.known_digits`.
        Ritz values of the lower half bound theirs from above, also where nothing else is known.
        """
        lower = (self.eigenindex >= self.order / 2).tolist()
        values, bounds = self.eigenvalues.tolist(), self.error_bounds.tolist()
        return tuple(
            "0 (null space)" if null else known_digits(value, bound, is_ceiling=is_lower)
            for value, bound, null, is_lower in zip(
                values, bounds, self.is_null, lower, strict=True
            )
        )

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """Amplitude of each pair at which d′ = α√λ is 1, in the picture's units: 1/√λ.

        None where λ is 0: no amplitude is enough. See :mod:`eigenexp.analysis.units` for others.
        """
        values = self.eigenvalues.double().tolist()
        return tuple(
            None if null or not value > 0 else value**-0.5
            for value, null in zip(values, self.is_null, strict=True)
        )

    @property
    def known_thresholds(self) -> tuple[str, ...]:
        """Each of :attr:`thresholds` with the digits that the eigenvalue's bound supports.

        ``3.94108``, ``≥ 510``, ``∞``.
        """
        found = []
        values, bounds = self.eigenvalues.double().tolist(), self.error_bounds.double().tolist()
        for value, bound, alpha in zip(values, bounds, self.thresholds, strict=True):
            most = value + bound
            if alpha is None:
                found.append("∞")
            elif not (value > bound and math.isfinite(most)):
                found.append(at_least(most**-0.5) if math.isfinite(most) else "?")
            else:
                error = max((value - bound) ** -0.5 - alpha, alpha - most**-0.5)
                found.append(known_digits(alpha, error))
        return tuple(found)

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain dict a pair, ready for a table or a CSV file."""
        known, reached = self.known, self.known_thresholds
        return [
            {
                "index": int(self.eigenindex[i]),
                "eigenvalue": float(self.eigenvalues[i]),
                "residual": float(self.residuals[i]),
                "relative_residual": float(self.relative_residuals[i]),
                "error_bound": float(self.error_bounds[i]),
                "known": known[i],
                "threshold": self.thresholds[i],
                "known_threshold": reached[i],
                "status": self.status[i].value,
                "num_products": self.num_products,
            }
            for i in range(len(self))
        ]

    def to_pandas(self) -> Any:
        """Return :meth:`rows` as a ``pandas.DataFrame``, one row a pair."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def __str__(self) -> str:
        head = (
            f"{'index':>8} {'eigenvalue':>14} {'d′ = 1 at':>12} {'residual/λmax':>14} "
            f"{'error bound':>12}  "
            f"{'status':<11} {'products':>8}"
        )
        lines = [head]
        for row in self.rows():
            lines.append(
                f"{row['index']:>8} {row['known']:>14} {row['known_threshold']:>12} "
                f"{row['relative_residual']:>14.2e} "
                f"{row['error_bound']:>12.2e}  {row['status']:<11} {row['num_products']:>8}"
            )
        lines.append(
            f"{self.method or 'solver'}: {self.num_products} products "
            f"({self.num_verification_products} of them verification); {self.stop_message}"
        )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``path`` (safetensors, metadata as JSON in its header), atomically.

        Raises
        ------
        OSError
            When the folder cannot be written.
        """
        from safetensors.torch import save

        header = {
            "eigenexp.spectrum": json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "status": [s.value for s in self.status],
                    "stop_reason": self.stop_reason.value,
                    "scale": self.scale,
                    "tol": self.tol,
                    "num_products": self.num_products,
                    "num_verification_products": self.num_verification_products,
                    "null_space_dimension": self.null_space_dimension,
                    "method": self.method,
                    "notes": list(self.notes),
                    "metadata": dict(self.metadata),
                    "miss_chance": self.miss_chance,
                    "certificate": self.certificate,
                    "dimension": self.dimension,
                }
            )
        }
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        return write_atomic(path, save(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by :meth:`save`; nothing in it is executed.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, foreign, or of a newer schema.
        """
        from safetensors import SafetensorError, safe_open

        try:
            fault = file_fault(Path(path))
            if fault is not None:
                raise CheckpointError(f"{path}: expected a spectrum of eigenexp, got {fault}")
            with safe_open(str(path), framework="pt") as f:
                header = (f.metadata() or {}).get("eigenexp.spectrum")
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: expected a spectrum written by eigenexp, got a file that cannot be read "
                f"({error}); use the file as it was saved"
            ) from error
        try:
            facts = json.loads(header or "")
            version = facts["schema_version"]
            if version > SCHEMA_VERSION:
                raise CheckpointError(
                    f"{path}: expected spectrum schema up to {SCHEMA_VERSION}, got {version}; "
                    "update eigenexp to read it"
                )
            return cls(
                **{name: tensors[name] for name in _TENSORS},
                status=tuple(PairStatus(s) for s in facts["status"]),
                stop_reason=StopReason(facts["stop_reason"]),
                scale=float(facts["scale"]),
                tol=float(facts["tol"]),
                num_products=int(facts["num_products"]),
                num_verification_products=int(facts["num_verification_products"]),
                null_space_dimension=int(facts["null_space_dimension"]),
                method=str(facts["method"]),
                notes=tuple(str(note) for note in facts["notes"]),
                metadata=dict(facts["metadata"]),
                # Files of before have neither: their certificates were made by the old rule.
                miss_chance=_chance(facts.get("miss_chance")),
                certificate=str(facts.get("certificate", "present")),
                dimension=_count(facts.get("dimension")),
            )
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: expected a spectrum written by eigenexp, got a safetensors file without "
                f"its header or fields ({type(error).__name__}: {error})"
            ) from error


def with_canonical_signs(vectors: Tensor) -> Tensor:
    """Return vectors with signs that every run, file and figure agrees on.

    The entry of largest size is positive. Of several that are equally large but for rounding (an
    antisymmetric vector has two), the first one is.

    Parameters
    ----------
    vectors
        ``(k, …)``, one a row. Not changed; returned as it is where every sign is right already.
    """
    if not vectors.numel():
        return vectors
    flat = vectors.flatten(1)
    sizes = flat.abs()
    largest = sizes.amax(dim=1, keepdim=True)
    as_large = sizes >= largest * (1 - torch.finfo(flat.dtype).eps ** 0.5)
    first = as_large.to(torch.uint8).argmax(dim=1, keepdim=True)
    wrong = flat.gather(1, first) < 0
    if not bool(wrong.any()):
        return vectors
    return torch.where(wrong, -flat, flat).reshape(vectors.shape)


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _chance(value: Any) -> float | None:
    return None if value is None else float(value)


_TENSORS = ("eigenvalues", "eigenvectors", "eigenindex", "residuals", "error_bounds")
