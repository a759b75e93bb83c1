"""Changes of the code of a generator: x = φ(z), F_z = J_φᵀ F J_φ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators.perturbations.base import Everything, Perturbations
from eigenexp.operators.perturbations.coordinates import Coordinates
from eigenexp.storage.hashing import tensor_sha256

__all__ = ["Latent", "Through"]


@dataclass(frozen=True, eq=False)
class Latent(Perturbations):
    """The unknown is the code z of a picture φ(z); what is shown is φ(z + αe).

    The "picture" that operators and modules are given is then the code, and so are the distortions
    found. ``Latent(φ) @ B`` considers what B does to the code.

    Parameters
    ----------
    generator
        φ, differentiable: from codes to what the model takes.
    """

    name: ClassVar[str] = "latent"
    kind: ClassVar[str] = "map"
    generator: Callable[[Tensor], Any]
    _text: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.generator):
            raise InputTypeError(
                f"generator: expected a function of codes, got {type(self.generator).__name__}"
            )
        kind = self.generator if hasattr(self.generator, "__qualname__") else type(self.generator)
        text = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(self.generator, nn.Module):
            digest = hashlib.sha256()
            for name, tensor in sorted(self.generator.state_dict().items()):
                digest.update(f"{name} {tensor_sha256(tensor.double())}".encode())
            text += f", sha256:{digest.hexdigest()[:16]}"
        object.__setattr__(self, "_text", text)

    def split(self) -> tuple[Callable[[Tensor], Any] | None, Perturbations]:
        """Return φ, and that all of the code is considered."""
        return self.generator, Everything()

    def at(self, image: Tensor) -> Coordinates:
        """Refuse: φ is not linear, and goes before the model.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(f"{self}: expected perturbations that are linear in the picture")

    def __str__(self) -> str:
        return f"latent({self._text})"


class Through(nn.Module):
    """The model of a code: f(φ(z)).

    Parameters
    ----------
    model, generator
        f and φ; φ is frozen and put where the code is.
    code
        z, for its dtype and device.
    """

    def __init__(
        self, model: Callable[[Tensor], Any], generator: Callable[[Tensor], Any], code: Tensor
    ) -> None:
        super().__init__()
        if isinstance(generator, nn.Module):
            generator.requires_grad_(False).eval().to(dtype=code.dtype, device=code.device)
        self.generator, self.model = generator, model
        self.training = bool(getattr(model, "training", False))

    def forward(self, code: Tensor) -> Any:
        """Return f(φ(z))."""
        return self.model(self.generator(code))
