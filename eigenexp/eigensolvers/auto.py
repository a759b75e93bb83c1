"""``auto``: the method that needs the fewest products for the problem at hand, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Progress, Request, Settings
from eigenexp.eigensolvers.davidson import Davidson
from eigenexp.eigensolvers.exact import Exact
from eigenexp.eigensolvers.lanczos import Lanczos
from eigenexp.errors import CheckpointError
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Auto", "choose_method"]

CROWDED = 8
"""A pair of an end costs about this many products or more: with n / 8 wanted, J is cheaper."""
SMALLEST_PICTURE = 8
"""Side in pixels below which frequencies are too few to tell anything."""

_KINDS: dict[str, type[Eigensolver]] = {kind.name: kind for kind in (Lanczos, Davidson, Exact)}


def choose_method(settings: Settings) -> tuple[str, str]:
    """Return the method for a problem and the reason, a sentence.

    Parameters
    ----------
    settings
        What is asked; ``image_shape`` tells a picture from a bare vector.
    """
    n, shape = settings.n, settings.image_shape or (settings.n,)
    wanted = len(settings.wanted)
    if wanted * CROWDED >= n:
        return "exact", f"{wanted} of {n} eigenpairs are wanted: the dense Jacobian costs less"
    if settings.which == "top":
        return "lanczos", "only the top is wanted, where a Krylov space needs the fewest products"
    if len(shape) >= 2 and min(shape[-2:]) >= SMALLEST_PICTURE:
        return "davidson", (
            "the bottom is wanted, where eigenvalues crowd, and F of a picture can be "
            "preconditioned"
        )
    return "lanczos", "the input is no picture, so nothing is known to precondition F with"


class Auto(Eigensolver):
    """The best method for the problem: ``lanczos``, ``davidson`` or ``exact``.

    :func:`choose_method` decides from n, k, the ends and the picture's shape before the first
    product; ``davidson`` then decides from its products how far to trust its preconditioner. The
    choice and its reason are the first of the spectrum's ``notes``.

    Parameters
    ----------
    n, k, which, tol, seed, max_products, rank_bound, image_shape, dtype, device, start
        See :class:`~eigenexp.eigensolvers.base.Eigensolver`.
    """

    name: ClassVar[str] = "auto"

    def __init__(self, n: int, **settings: Any) -> None:
        super().__init__(n, **settings)
        self._chosen, self.reason = choose_method(self.settings)
        self._inner = _KINDS[self._chosen](n, **settings)

    @property
    def chosen(self) -> str:
        """Name of the method in use."""
        return self._chosen

    @property
    def request(self) -> Request:
        """What the chosen method requests."""
        return self._inner.request

    @property
    def block_size(self) -> int:
        """Columns the chosen method asks for at the most."""
        return self._inner.block_size

    @property
    def reads_responses(self) -> bool:
        """Whether the chosen method reads J V."""
        return self._inner.reads_responses

    @property
    def stored_vectors(self) -> int:
        """Vectors the chosen method stores."""
        return self._inner.stored_vectors

    def ask(self) -> Tensor:
        """Return the chosen method's next block."""
        return self._inner.ask()

    def tell(self, products: Tensor, responses: Tensor | None = None) -> None:
        """Hand the products to the chosen method."""
        self._inner.tell(products, responses)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to ask."""
        return self._inner.done

    @property
    def stop_reason(self) -> StopReason:
        """Why the chosen method stopped, or ``StopReason.RUNNING``."""
        return self._inner.stop_reason

    @property
    def num_products(self) -> int:
        """Products told so far, verification included."""
        return self._inner.num_products

    @property
    def num_verification_products(self) -> int:
        """Products spent only on the proof that the pairs are extremal."""
        return self._inner.num_verification_products

    def _progress(self) -> Progress:
        return self._inner.progress()

    def _result(self) -> Spectrum:
        found = self._inner.result()
        return replace(found, notes=(f"auto chose {self._chosen}: {self.reason}", *found.notes))

    def state_dict(self) -> dict[str, Any]:
        """Return the chosen method's state and its name."""
        inner = self._inner.state_dict()
        return {"version": inner["version"], "name": self.name, "chosen": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, of ``auto`` or of the method it chooses.

        Raises
        ------
        CheckpointError
            When the state belongs to another method or problem.
        """
        inner = state.get("chosen", state)
        name = str(inner.get("name"))
        if state.get("name") != self.name and name != self._chosen:
            raise CheckpointError(
                f"state: expected one of 'auto' or {self._chosen!r}, got {name!r}; resume with "
                f"method={name!r}"
            )
        self._inner.load_state_dict(inner)

    # The chosen method does all of this.

    def _ask(self) -> Tensor:
        return self._inner._ask()

    def _tell(self, block: Tensor, products: Tensor, responses: Tensor | None) -> None:
        self._inner._tell(block, products, responses)

    def _export_state(self) -> dict[str, Any]:
        return self._inner._export_state()

    def _import_state(self, state: Mapping[str, Any]) -> None:
        self._inner._import_state(state)
